"""Feed-forward codes of faces in images: geometry encoders and image regressor behind one door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nphm_track.conventions import BLENDSHAPE_NAMES, N_LANDMARKS
from nphm_track.errors import ModelError
from nphm_track.faces.landmarker import MIN_PRESENCE, FaceLandmarker, FaceObservation
from nphm_track.faces.roi import frame_points_to_crop, mirrored, scaled
from nphm_track.geometry.loading import Geometry, load_geometry
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import EMPTY_MAPS, GeometryPredictor, empty_crop
from nphm_track.inference import Engine
from nphm_track.regressor.image_regressor import Codes, ImageRegressor
from nphm_track.regressor.lookup import RELEASED, Regressor

BATCH = 4
AUGMENTED_VIEWS = ((True, 1.0), (False, 0.96), (True, 0.96))
"""Test-time augmentation, beside the face as it is found: mirrored or not, and the crop's side over the first one's. A
closer crop is predicted as well as the first, with other errors."""
Mirror = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Identity and expression codes of a head -> those of its mirror image."""


class CodePredictor:
    """Pix2NPHM's feed-forward path (section 3.3); images are uint8 RGB [H, W, 3]."""

    def __init__(
        self,
        geometry: GeometryPredictor,
        regressor: ImageRegressor,
        focal: float | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """``focal``: focal length of all images in pixels, when the camera is known. ``mirror``
        (``heads.editing.CodeMirror``): codes are the average of four views, as the face is found and from closer, and
        both of the mirrored face; four times the cost.
        """
        self.geometry, self.regressor, self.focal, self.mirror = geometry, regressor, focal, mirror
        points, scores = torch.rand(1, N_LANDMARKS, 3), torch.zeros(1, len(BLENDSHAPE_NAMES))
        self._codes = Engine(
            _CodesOfCrop(geometry.landmarker.landmark_net, geometry.net, regressor),
            [
                empty_crop(geometry.net),
                EMPTY_MAPS,
                points,
                points,
                scores,
                torch.ones(1, 2),
                torch.full((1,), torch.nan),
            ],
        )

    @classmethod
    def from_pretrained(
        cls,
        landmarker: FaceLandmarker,
        regressor: Regressor = RELEASED,
        *,
        device: torch.device | str = "cpu",
        focal: float | None = None,
        mirror: Mirror | None = None,
    ) -> CodePredictor:
        """Networks on top of a landmarker, the released ones if not others are named.

        Raises ModelError when a file is missing, damaged, or of networks that do not belong together.
        """
        net = load_geometry(regressor.geometry, device=device)
        codes = ImageRegressor.from_pretrained(regressor.name, device=device)
        if codes.image_config.encoders and codes.image_config.token_width != net.config.width:
            raise ModelError(f"{regressor.name} does not read tokens of {regressor.geometry}")
        return cls(GeometryPredictor(landmarker, net), codes, focal, mirror)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Lengths of identity code, expression code and log variances."""
        c = self.regressor.config
        return c.global_dim + c.n_members * c.local_dim, c.expression_dim, c.n_members + 1

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> Codes:
        """Codes of each pair of image and face."""
        codes = self._predict(images, faces)
        if self.mirror is None:
            return codes
        flipped = [np.ascontiguousarray(image[:, ::-1]) for image in images]
        rois = np.stack([face.next_roi for face in faces])
        twins = mirrored(rois, [image.shape[1] for image in images])
        z_id, z_ex, views = codes.z_id, codes.z_ex, torch.ones_like(codes.z_id[:, :1])
        for mirror, scale in AUGMENTED_VIEWS:
            pictures, regions = (flipped, twins) if mirror else (images, rois)
            seen = self.geometry.landmarker.observe_batch(pictures, scaled(regions, scale))
            again = self._predict(pictures, seen, scale)
            there = views.new_tensor([[face.presence >= MIN_PRESENCE] for face in seen])
            back = self.mirror(again.z_id, again.z_ex) if mirror else (again.z_id, again.z_ex)
            z_id, z_ex, views = z_id + there * back[0], z_ex + there * back[1], views + there
        return replace(codes, z_id=z_id / views, z_ex=z_ex / views)

    def _predict(
        self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation], scale: float = 1.0
    ) -> Codes:
        device = self.regressor.classifiers.device
        landmarks = np.stack([f.landmarks for f in faces])
        crop, maps, rois = self.geometry.inputs(images, landmarks, scale)
        points = torch.from_numpy(landmarks).to(device)
        scores = torch.from_numpy(np.stack([f.blendshapes for f in faces])).to(device)
        size = torch.tensor([i.shape[1::-1] for i in images], dtype=torch.float32, device=device)
        focal = torch.full((len(faces),), self.focal or torch.nan, device=device)
        return Codes(*self._codes(crop, maps, frame_points_to_crop(points, rois), points, scores, size, focal))


class _CodesOfCrop(nn.Module):
    """Trunk, encoders and regressor in one go."""

    def __init__(self, trunk: nn.Module, geometry: Geometry, regressor: ImageRegressor) -> None:
        super().__init__()
        self.trunk, self.geometry, self.regressor = trunk, geometry, regressor

    def forward(
        self,
        crop: Tensor,
        maps: Tensor,
        crop_landmarks: Tensor,
        landmarks: Tensor,
        scores: Tensor,
        size: Tensor,
        focal: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        features = self.geometry.features(self.trunk, crop)
        tokens = dict(zip("np", self.geometry.encode(crop, features, maps), strict=True))
        if isinstance(self.geometry, GeometryNet):
            tokens["d"] = self.geometry.details(features, crop_landmarks)
        codes = self.regressor.predict(landmarks, scores, size, tokens, focal)
        return codes.z_id, codes.z_ex, codes.log_variance
