"""Feed-forward codes of faces in images: geometry encoders and image regressor behind one door."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.regressor.image_regressor import Codes, ImageRegressor

BATCH = 8


class CodePredictor:
    """Pix2NPHM's feed-forward path (section 3.3); images are uint8 RGB [H, W, 3]."""

    def __init__(self, geometry: GeometryPredictor, regressor: ImageRegressor, focal: float | None = None) -> None:
        """``focal``: focal length of all images in pixels, when the camera is known."""
        self.geometry, self.regressor, self.focal = geometry, regressor, focal

    @classmethod
    def from_pretrained(
        cls, landmarker: FaceLandmarker, *, device: torch.device | str = "cpu", focal: float | None = None
    ) -> CodePredictor:
        """The released networks on top of a landmarker. Raises ModelError when a file is missing or damaged."""
        net = GeometryNet.from_pretrained(device=device)
        return cls(GeometryPredictor(landmarker, net), ImageRegressor.from_pretrained(device=device), focal)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Lengths of identity code, expression code and log variances."""
        c = self.regressor.config
        return c.global_dim + c.n_members * c.local_dim, c.expression_dim, c.n_members + 1

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> Codes:
        """Codes of each pair of image and face."""
        device = self.regressor.classifiers.device
        tokens = self.geometry.tokens(images, faces)
        landmarks = torch.from_numpy(np.stack([f.landmarks for f in faces])).to(device)
        scores = torch.from_numpy(np.stack([f.blendshapes for f in faces])).to(device)
        size = torch.tensor([i.shape[1::-1] for i in images], dtype=torch.float32, device=device)
        focal = None if self.focal is None else torch.full((len(faces),), self.focal, device=device)
        return self.regressor.predict(landmarks, scores, size, tokens, focal)
