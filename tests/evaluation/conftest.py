"""A made-up face and a predictor that knows it, for benchmarks of a few pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import NoFaceError
from nphm_track.evaluation.predict import Heads, Mesh7
from nphm_track.tracking.options import TrackOptions


def face_like(bump: float = 0.0) -> Mesh7:
    """A bowl with a nose, metres, head space; ``bump`` metres of relief that no alignment explains."""
    x, y = np.meshgrid(np.linspace(-0.09, 0.09, 61), np.linspace(-0.11, 0.11, 71))

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nose = 0.02 * np.exp(-((x / 0.012) ** 2) - ((y + 0.005) / 0.02) ** 2)
        return 0.06 - 2.5 * x**2 - 1.7 * y**2 + nose

    vertices = np.stack([x, y, height(x, y) + bump * np.sign(np.sin(400 * x))], -1).reshape(-1, 3)
    i = np.arange(61 * 71).reshape(71, 61)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, 1:].ravel(), i[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]).astype(np.int32)
    xy = np.array([(-44, 27), (-18, 26), (18, 26), (44, 27), (0, -21), (-24, -43), (24, -43)]) * 1e-3
    return Mesh7(vertices.astype(np.float32), faces, np.column_stack([xy, height(*xy.T)]).astype(np.float32))


class FakePredictor:
    """Predicts what it is told, and counts; an image called ``noface`` has none."""

    def __init__(self, head: Mesh7) -> None:
        self.head, self.calls = head, 0
        self.options = TrackOptions()
        self.models = {"nphm-small": "ab" * 32}

    def __call__(self, image: Path) -> Heads:
        self.calls += 1
        if "noface" in str(image):
            raise NoFaceError("no face found")
        return {"neutral": self.head, "posed": self.head}

    def mean(self) -> Heads:
        flat = Mesh7(self.head.vertices * [1, 1, 0.5], self.head.faces, self.head.points7 * [1, 1, 0.5])
        return {"neutral": flat, "posed": flat}


@pytest.fixture
def fake() -> Callable[[Mesh7], FakePredictor]:
    return FakePredictor
