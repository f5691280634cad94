"""The optional landmark backend: what a user is told when a part of it is missing."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from nphm_track.errors import ModelError
from nphm_track.faces.backends import FaceAlignmentBackend


class FakeAligner:
    def __init__(self, kind, *, device, compile, face_detector):
        assert (kind, device, compile, face_detector) == (2, "cpu", False, "folder")

    def get_landmarks_from_image(self, image, detected_faces):
        x0, y0, *_ = detected_faces[0]
        return [np.tile([x0, y0], (68, 1))]


def install(monkeypatch, module):
    def load(name):
        assert name == "face_alignment"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(importlib, "import_module", load)


def fake(aligner):
    return SimpleNamespace(LandmarksType=SimpleNamespace(TWO_D=2), FaceAlignment=aligner)


def test_points_in_our_pixel_convention(monkeypatch):
    install(monkeypatch, fake(FakeAligner))
    points = FaceAlignmentBackend().landmarks(np.zeros((9, 9, 3), np.uint8), np.array([3, 4, 7, 8]))
    np.testing.assert_array_equal(points, np.tile(np.float32([3.5, 4.5]), (68, 1)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ModuleNotFoundError("no", name="face_alignment"), "pip install"),
        (ImportError("libGL.so.1: cannot open shared object file", name="cv2"), "libgl1"),
    ],
)
def test_missing_parts(monkeypatch, module, message):
    install(monkeypatch, module)
    with pytest.raises(ModelError, match=message):
        FaceAlignmentBackend()


def test_missing_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    install(monkeypatch, fake(refuse))
    with pytest.raises(ModelError, match="weights"):
        FaceAlignmentBackend()
