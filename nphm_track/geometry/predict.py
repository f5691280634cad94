"""From faces in images to tokens and dense maps: crops, trunk, landmark maps and networks in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.faces.roi import crop_rois
from nphm_track.geometry.landmark_mesh import frame_to_crop, landmark_maps
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.geometry.networks import DENSE, TRUNK, GeometryNet


class GeometryPredictor:
    """E_n, E_p and their decoders on faces that were found; images are uint8 RGB [H, W, 3]."""

    def __init__(self, landmarker: FaceLandmarker, net: GeometryNet) -> None:
        self.landmarker, self.net = landmarker, net
        self.mean = net.mean_landmarks.double().cpu().numpy()
        self.triangles = net.triangles.cpu().numpy()

    @torch.inference_mode()
    def tokens(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> dict[str, Tensor]:
        """Tokens {"n": [B, 256, D], "p": [B, 256, D]} of each pair of image and face."""
        crop, features, maps, _ = self._inputs(images, faces)
        return dict(zip("np", self.net.encode(crop, features, maps), strict=True))

    @torch.inference_mode()
    def maps(self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]) -> GeometryMaps:
        """Dense maps of 128 x 128 pixels of each pair of image and face."""
        crop, features, maps, rois = self._inputs(images, faces)
        out = self.net(crop, features, maps)
        return GeometryMaps(
            normals=out["normals"].permute(0, 2, 3, 1),
            points=out["points"].permute(0, 2, 3, 1),
            normal_confidence=out["normal_logit"].sigmoid(),
            point_confidence=out["point_logit"].sigmoid(),
            rois=rois,
        )

    def landmark_mesh(self, faces: Sequence[FaceObservation]) -> NDArray[np.float32]:
        """The landmark maps [B, 7, 128, 128] that the networks start from, for comparison."""
        rois = torch.from_numpy(np.stack([f.next_roi for f in faces]))
        return self._landmark_maps(faces, rois)

    def _landmark_maps(self, faces: Sequence[FaceObservation], rois: Tensor) -> NDArray[np.float32]:
        points = frame_to_crop(torch.from_numpy(np.stack([f.landmarks for f in faces])), rois)
        return landmark_maps(points.numpy(), self.mean, self.triangles, DENSE)

    def _inputs(
        self, images: Sequence[NDArray[np.uint8]], faces: Sequence[FaceObservation]
    ) -> tuple[Tensor, dict[int, Tensor], Tensor, Tensor]:
        device = self.net.mean_landmarks.device
        rois = np.stack([f.next_roi for f in faces])
        crop = crop_rois(images, rois, device=device)
        out = self.landmarker.landmark_net(crop, True)
        features = {s: out[f"features_{s}"].contiguous() for s in TRUNK}
        maps = torch.from_numpy(self._landmark_maps(faces, torch.from_numpy(rois))).to(device)
        return crop.contiguous(), features, maps, torch.from_numpy(rois).to(device)
