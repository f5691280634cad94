"""Feed-forward codes of faces in images: geometry encoders and image regressor behind one door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.faces.landmarker import MIN_PRESENCE, FaceLandmarker, FaceObservation
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.regressor.image_regressor import Codes, ImageRegressor

BATCH = 8
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
        (``heads.editing.CodeMirror``): codes are the average of two looks, one at the mirrored face; twice the cost.
        """
        self.geometry, self.regressor, self.focal, self.mirror = geometry, regressor, focal, mirror

    @classmethod
    def from_pretrained(
        cls,
        landmarker: FaceLandmarker,
        *,
        device: torch.device | str = "cpu",
        focal: float | None = None,
        mirror: Mirror | None = None,
    ) -> CodePredictor:
        """The released networks on top of a landmarker. Raises ModelError when a file is missing or damaged."""
        net = GeometryNet.from_pretrained(device=device)
        return cls(GeometryPredictor(landmarker, net), ImageRegressor.from_pretrained(device=device), focal, mirror)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Lengths of identity code, expression code and log variances."""
        c = self.regressor.config
        return c.global_dim + c.n_members * c.local_dim, c.expression_dim, c.n_members + 1

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> Codes:
        """Codes of each pair of image and face."""
        codes = self._look(images, faces)
        if self.mirror is None:
            return codes
        flipped, twins = self._mirrored(images, faces)
        seen = self._look(flipped, twins)
        z_id, z_ex = self.mirror(seen.z_id, seen.z_ex)
        found = codes.z_id.new_tensor([[t.presence >= MIN_PRESENCE] for t in twins])
        return replace(
            codes,
            z_id=torch.lerp(codes.z_id, z_id, found / 2),
            z_ex=torch.lerp(codes.z_ex, z_ex, found / 2),
        )

    def _mirrored(
        self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]
    ) -> tuple[list[NDArray[np.uint8]], list[FaceObservation]]:
        """The mirrored images and what is seen of the faces in them."""
        flipped = [np.ascontiguousarray(image[:, ::-1]) for image in images]
        rois = np.stack([face.next_roi for face in faces])
        rois[:, 0] = [image.shape[1] - x for image, x in zip(images, rois[:, 0], strict=True)]
        rois[:, 4] *= -1
        return flipped, self.geometry.landmarker.observe_batch(flipped, rois)

    def _look(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> Codes:
        device = self.regressor.classifiers.device
        tokens = self.geometry.tokens(images, faces)
        landmarks = torch.from_numpy(np.stack([f.landmarks for f in faces])).to(device)
        scores = torch.from_numpy(np.stack([f.blendshapes for f in faces])).to(device)
        size = torch.tensor([i.shape[1::-1] for i in images], dtype=torch.float32, device=device)
        focal = None if self.focal is None else torch.full((len(faces),), self.focal, device=device)
        return self.regressor.predict(landmarks, scores, size, tokens, focal)
