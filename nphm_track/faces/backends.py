"""Other landmark networks behind one small interface; each is an optional package."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from nphm_track.errors import ModelError


class FaceAlignmentBackend:
    """iBUG-68 landmarks by the ``face-alignment`` package (2DFAN4).

    The package downloads its weights (95 MB) on first use into the torch hub folder; files placed there are used.
    Raises ModelError when the package, one of its system libraries or its weights are missing.
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            package = importlib.import_module("face_alignment")
        except ImportError as error:
            if error.name == "face_alignment":
                raise ModelError("face-alignment is not installed: pip install 'nphm-track[face-alignment]'") from None
            hint = "OpenCV may need the system packages libgl1 and libglib2.0-0"
            raise ModelError(f"face-alignment cannot be imported ({error}); {hint}") from None
        try:
            self._aligner: Any = package.FaceAlignment(
                package.LandmarksType.TWO_D, device=device, compile=device != "cpu", face_detector="folder"
            )
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise ModelError(f"the weights of face-alignment cannot be loaded: {error}") from None

    def landmarks(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Points [68, 2] float32, px with pixel centres at 0.5; ``image`` uint8 RGB [H, W, 3], ``box`` [4] xyxy."""
        (points,) = self._aligner.get_landmarks_from_image(image, detected_faces=[np.asarray(box, np.float32)])
        return np.asarray(points, np.float32)[:, :2] + 0.5
