"""Units, axes and extras of an export, and what they do to points, poses and cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.errors import InputError
from nphm_track.tracking.transforms import OPENGL_FROM_OPENCV

METRES_PER_UNIT = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
AXES = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}
"""Rotation from head space (y up, the face looks along z) to axes with that one up; z up, the face looks along -y."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExportOptions:
    """How an export is written.

    Two worlds follow from it, both in ``unit`` and right-handed with ``up`` pointing up:

    - the **head-fixed** world is head space itself; cameras move around it;
    - the **camera-fixed** world has the camera at its origin, level, looking along -z (y up) or +y (z up); the head
      moves in front of it.

    Raises InputError for an unknown unit or axis.
    """

    unit: str = "m"
    """"mm", "cm" or "m"."""
    up: str = "y"
    """"y" or "z"."""
    images: bool = False
    """Write the frames of the clip (and mattes where the format knows them) beside the export."""
    frames: tuple[int | None, int | None] = (None, None)
    """First and last frame of the clip to write; None: from its beginning, to its end."""

    clip: Path | None = None
    """Where the run's clip is, for ``images``; by default it is looked for (``tracking.clip.find_clip``)."""

    textured: bool = False
    """Colour the skin from the clip; for format glb."""
    flame_model: Path | None = None
    """The user's file of FLAME 2020 or 2023, ``.npz`` or ``.pkl``; for format flame."""
    gnm_model: Path | None = None
    """The user's ``gnm_head.npz`` of Google's GNM Head 3; for format gnm."""

    def __post_init__(self) -> None:
        for name, known in (("unit", METRES_PER_UNIT), ("up", AXES)):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} '{getattr(self, name)}'; choose from {', '.join(known)}")

    @property
    def scale(self) -> float:
        """Units in a metre."""
        return 1 / METRES_PER_UNIT[self.unit]

    @property
    def axes(self) -> Array:
        """[3, 3] rotation of y-up coordinates to those of the export."""
        return AXES[self.up]

    def points(self, points: ArrayLike) -> Array:
        """Points [..., 3] of head space (metres) in the head-fixed world."""
        return self.scale * np.asarray(points, np.float64) @ self.axes.T

    def head_pose(self, R: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        """Rotation [..., 3, 3] and translation [..., 3] from the head-fixed to the camera-fixed world.

        Args:
            R, t: head-to-camera, OpenCV axes, metres.
        """
        turned = self.axes @ OPENGL_FROM_OPENCV
        return turned @ np.asarray(R, np.float64) @ self.axes.T, self.scale * np.asarray(t, np.float64) @ turned.T

    def extrinsics(self, R: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        """OpenCV extrinsics (x_cam = R x_world + t, in ``unit``) of the head-fixed world; arguments as above."""
        return np.asarray(R, np.float64) @ self.axes.T, self.scale * np.asarray(t, np.float64)

    def described(self) -> dict[str, Any]:
        """What a file says of itself."""
        return {"unit": self.unit, "up": self.up}
