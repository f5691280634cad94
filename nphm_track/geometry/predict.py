"""From faces in images to tokens and dense maps: crops, trunk, landmark maps and networks in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_rois, frame_points_to_crop, roi_from_landmarks, scaled
from nphm_track.geometry.landmark_mesh import landmark_maps
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.geometry.networks import DENSE, TRUNK, GeometryNet


class GeometryPredictor:
    """E_n, E_p and their decoders on faces that were found; images are uint8 RGB [H, W, 3]."""

    def __init__(self, landmarker: FaceLandmarker, net: GeometryNet, mirror: bool = False) -> None:
        """``mirror``: maps are the average of two views, one of the mirrored face; twice the cost."""
        self.landmarker, self.net, self.mirror = landmarker, net, mirror
        self.mean = net.mean_landmarks.double().cpu().numpy()
        self.triangles = net.triangles.cpu().numpy()

    @torch.inference_mode()
    def tokens(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.float32], scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Tokens {"n": [B, 256, D], "p": [B, 256, D]} of each image and its face's ``landmarks`` [B, 478, 3] (px), and
        "d" [B, P, DETAIL]: the trunk's finest maps at ``DETAIL_POINTS``. ``scale``: of the crops' sides; below 1 is a
        closer crop.
        """
        crop, features, maps, rois = self._inputs(images, landmarks, scale)
        tokens = dict(zip("np", self.net.encode(crop, features, maps), strict=True))
        points = torch.from_numpy(landmarks).to(rois.device)
        return tokens | {"d": self.net.details(features, frame_points_to_crop(points, rois))}

    @torch.inference_mode()
    def maps(self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.float32]) -> GeometryMaps:
        """Dense maps of 128 x 128 pixels of each image and its face's ``landmarks`` [B, 478, 3] (px)."""
        crop, features, maps, rois = self._inputs(images, landmarks)
        out = self.net(crop, features, maps)
        normals, points = out["normals"], out["points"]
        sure_n, sure_p = out["normal_logit"].sigmoid(), out["point_logit"].sigmoid()
        if self.mirror:
            out = self.net(*self._mirrored(crop, maps))
            side = normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
            normals = F.normalize(normals + side * out["normals"].flip(-1), dim=1)
            points = (points + side * out["points"].flip(-1)) / 2
            sure_n = (sure_n + out["normal_logit"].sigmoid().flip(-1)) / 2
            sure_p = (sure_p + out["point_logit"].sigmoid().flip(-1)) / 2
        return GeometryMaps(normals.permute(0, 2, 3, 1), points.permute(0, 2, 3, 1), sure_n, sure_p, rois, crop)

    def _mirrored(self, crop: Tensor, maps: Tensor) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """The inputs of the mirrored faces. Head space mirrors along x, and so do the landmark maps drawn in it."""
        crop = crop.flip(-1)
        out = self.landmarker.landmark_net(crop.contiguous(memory_format=torch.channels_last), True)
        side = maps.new_tensor([-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0])[:, None, None]
        return crop, {s: out[f"features_{s}"].contiguous() for s in TRUNK}, maps.flip(-1) * side

    def landmark_mesh(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """The landmark maps [B, 7, 128, 128] that the networks start from, for comparison."""
        rois = torch.from_numpy(np.stack([roi_from_landmarks(points) for points in landmarks]))
        return self._landmark_maps(landmarks, rois)

    def _landmark_maps(self, landmarks: NDArray[np.float32], rois: Tensor) -> NDArray[np.float32]:
        points = frame_points_to_crop(torch.from_numpy(landmarks), rois)
        return landmark_maps(points.numpy(), self.mean, self.triangles, DENSE)

    def _inputs(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.float32], scale: float = 1.0
    ) -> tuple[Tensor, dict[int, Tensor], Tensor, Tensor]:
        device = self.net.mean_landmarks.device
        rois = scaled(np.stack([roi_from_landmarks(points) for points in landmarks]), scale)
        crop = crop_rois(images, rois, device=device)
        out = self.landmarker.landmark_net(crop, True)
        features = {s: out[f"features_{s}"].contiguous() for s in TRUNK}
        maps = torch.from_numpy(self._landmark_maps(landmarks, torch.from_numpy(rois))).to(device)
        return crop.contiguous(), features, maps, torch.from_numpy(rois).to(device)
