"""From faces in images to dense maps: crops, trunk, landmark maps and networks in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_rois, frame_points_to_crop, roi_from_landmarks, scaled
from nphm_track.geometry.landmark_mesh import MAP_CHANNELS, landmark_maps
from nphm_track.geometry.loading import Geometry
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.geometry.networks import DENSE
from nphm_track.inference import Engine

EMPTY_MAPS = torch.zeros(1, MAP_CHANNELS, DENSE, DENSE)


class GeometryPredictor:
    """E_n, E_p and their decoders on faces that were found; images are uint8 RGB [H, W, 3]."""

    def __init__(self, landmarker: FaceLandmarker, net: Geometry, mirror: bool = False) -> None:
        """``mirror``: maps are the average of two views, one of the mirrored face; twice the cost."""
        self.landmarker, self.net, self.mirror = landmarker, net, mirror
        self.mean = net.mean_landmarks.double().cpu().numpy()
        self.triangles = net.triangles.cpu().numpy()
        self._dense = Engine(_Dense(landmarker.landmark_net, net), [empty_crop(net), EMPTY_MAPS])

    def maps(self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.float32]) -> GeometryMaps:
        """Dense maps of 128 x 128 pixels of each image and its face's ``landmarks`` [B, 478, 3] (px)."""
        crop, maps, rois = self.inputs(images, landmarks)
        normals, points, sure_n, sure_p = self._dense(crop, maps)
        if self.mirror:
            # Head space mirrors along x, and so do the landmark maps drawn in it.
            side = maps.new_tensor([-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0])[:, None, None]
            again = [x.flip(-1) for x in self._dense(crop.flip(-1), maps.flip(-1) * side)]
            normals = F.normalize(normals + side[:3] * again[0], dim=1)
            points = (points + side[:3] * again[1]) / 2
            sure_n, sure_p = (sure_n + again[2]) / 2, (sure_p + again[3]) / 2
        return GeometryMaps(normals.permute(0, 2, 3, 1), points.permute(0, 2, 3, 1), sure_n, sure_p, rois, crop)

    def inputs(
        self, images: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.float32], scale: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What networks see of each image and its face's ``landmarks`` [B, 478, 3] (px): crops [B, 3, size, size] in
        0..1, landmark maps [B, 7, 128, 128], and the crops' rois [B, 5]. ``scale``: of the crops' sides; below 1 is a
        closer crop.
        """
        device = self.net.mean_landmarks.device
        rois = scaled(np.stack([roi_from_landmarks(points) for points in landmarks]), scale)
        crop = crop_rois(images, rois, self.net.crop_size, device).contiguous()
        maps = torch.from_numpy(self._landmark_maps(landmarks, torch.from_numpy(rois))).to(device)
        return crop, maps, torch.from_numpy(rois).to(device)

    def landmark_mesh(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """The landmark maps [B, 7, 128, 128] that the networks start from, for comparison."""
        rois = torch.from_numpy(np.stack([roi_from_landmarks(points) for points in landmarks]))
        return self._landmark_maps(landmarks, rois)

    def _landmark_maps(self, landmarks: NDArray[np.float32], rois: Tensor) -> NDArray[np.float32]:
        points = frame_points_to_crop(torch.from_numpy(landmarks), rois)
        return landmark_maps(points.numpy(), self.mean, self.triangles, DENSE)


def empty_crop(net: Geometry) -> Tensor:
    """A crop [1, 3, size, size] of the size that networks read."""
    return torch.zeros(1, 3, net.crop_size, net.crop_size)


class _Dense(nn.Module):
    """Trunk, encoders and decoders in one go."""

    def __init__(self, trunk: nn.Module, net: Geometry) -> None:
        super().__init__()
        self.trunk, self.net = trunk, net

    def forward(self, crop: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.net(crop, self.net.features(self.trunk, crop), maps)
        return out["normals"], out["points"], out["normal_logit"].sigmoid(), out["point_logit"].sigmoid()
