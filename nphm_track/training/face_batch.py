"""What the streams of renders hand over: scenes as they are drawn, and batches with their targets."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from nphm_track.rendering.batched import BatchFragments
from nphm_track.training.texture_bank import HeadTensors


@dataclass(frozen=True)
class FaceBatch:
    """B crops with what they show; pixels of the imagined frame unless said otherwise.

    Attributes:
        crop: [B, 3, 256, 256] in 0..1.
        points, normals: [B, 3, 128, 128] metres and unit, head space. mask: [B, 128, 128] face that is seen.
        w, e: [B, 100], [B, E] ICT weights.
        K, R, t: camera and head pose. size: [B, 2] of the frame. roi: [B, 5] (``faces.roi``).
        landmarks: [B, 478, 3] found in the crop, in the frame; crop_landmarks: the same in crop pixels.
        scores: [B, 52] blendshape scores. valid: [B] the landmark network found the face.
        features: the landmark network's maps of the crop, by size.
    """

    crop: Tensor
    points: Tensor
    normals: Tensor
    mask: Tensor
    w: Tensor
    e: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    size: Tensor
    roi: Tensor
    landmarks: Tensor
    crop_landmarks: Tensor
    scores: Tensor
    valid: Tensor
    features: dict[int, Tensor]

    def columns(self) -> dict[str, Tensor]:
        """All tensors but the features, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}


@dataclass(frozen=True)
class View:
    """Cameras of B samples: K [B, 3, 3], head pose R [B, 3, 3] and t [B, 3] (metres), size [B, 2] of the frame (px)."""

    K: Tensor
    R: Tensor
    t: Tensor
    size: Tensor


@dataclass(frozen=True)
class Placed:
    """B heads before the cameras of their crops.

    Attributes:
        row: [B] photo of each. painted, follow: [B] heads without a photo, and photos whose surroundings follow them.
        w, e: [B, 100], [B, E] ICT weights. vertices: [B, V, 3] metres, head space; camera: in the crops' camera frame.
        K, R, t: intrinsics of the crops and the head's pose before them. view: of the frames. roi: [B, 5].
    """

    row: Tensor
    painted: Tensor
    follow: Tensor
    w: Tensor
    e: Tensor
    vertices: Tensor
    camera: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    view: View
    roi: Tensor

    def landmarks(self, heads: HeadTensors) -> Tensor:
        """True landmarks [B, 478, 3] in the crops' camera frame, metres."""
        return heads.landmarks(self.w, self.e) @ self.R.mT + self.t[:, None]


@dataclass(frozen=True)
class Scene:
    """Pictures of placed heads.

    Attributes:
        fragments, at: what the crops' pixels show, and its attributes. shown: [B, 256, 256] head that nothing hides.
        crop: [B, 3, 256, 256] in 0..1.
    """

    placed: Placed
    fragments: BatchFragments
    at: dict[str, Tensor]
    shown: Tensor
    crop: Tensor
