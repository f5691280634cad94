"""Observation goes on from its log as if it had never stopped, wherever it did: with stand-ins that would show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nphm_track.errors import InputChangedError
from nphm_track.regressor.predictor import BATCH
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.observe import observation_dtype, observe_clip
from nphm_track.tracking.progress import NullProgress
from nphm_track.video.source import FrameSource, VideoInfo

FRAMES = 2 * BATCH + 5


class Clip(FrameSource):
    """Frames whose grey is their number; ``ends`` raises KeyboardInterrupt before that frame, as a kill would."""

    def __init__(self, ends: int | None = None) -> None:
        super().__init__(None, None, 1)
        self.info, self.ends = VideoInfo(Path("clip"), "video", 2, 2), ends

    def pictures(self) -> Iterator[tuple[float, Any]]:
        for k in range(FRAMES):
            if k == self.ends:
                raise KeyboardInterrupt
            yield k / 25, k

    def develop(self, picture: Any) -> np.ndarray:
        return np.full((2, 2, 3), picture, np.uint8)


class Follower:
    """What it sees in a frame depends on all frames before; every seventh is lost, every fifth begins a shot."""

    def __init__(self) -> None:
        self.memory = 1.0

    def state(self) -> np.ndarray:
        return np.array([self.memory], np.float32)

    def restore(self, vector: np.ndarray) -> None:
        self.memory = float(vector[0])

    def step(self, image: np.ndarray, time: float) -> Any:
        number = int(image[0, 0, 0])
        self.memory = float(np.float32((self.memory * 7 + number) % 101))
        seen = SimpleNamespace(landmarks=np.full((478, 3), self.memory), blendshapes=np.full(52, self.memory))
        cut = number % 5 == 0 and number > 0
        return SimpleNamespace(cut=cut, observation=seen if number % 7 else None, confidence=0.5)


class Codes:
    """Codes of a frame depend on those that are encoded with it, as those of a network do in their last bits."""

    sizes = (3, 2, 1)

    def __call__(self, images: list[np.ndarray], faces: list[Any]) -> Any:
        together = sum(float(face.landmarks[0, 0]) for face in faces) + 1000 * len(faces)
        own = torch.tensor([[float(image[0, 0, 0])] for image in images])
        return SimpleNamespace(
            z_id=own.expand(-1, 3) + together / 1e4, z_ex=own.expand(-1, 2) + together, log_variance=own
        )


@dataclass
class Observer:
    folder: Path
    codes: Codes | None

    def observe(self, name: str, ends: int | None = None, **options: Any) -> np.ndarray:
        with ObservationLog(self.folder / name, observation_dtype(1, self.codes)) as log:  # type: ignore[arg-type]
            people = [(Follower(), log)]
            observe_clip(Clip(ends), people, self.codes, NullProgress(), **options)  # type: ignore[arg-type]
            return np.array(log.read())


@pytest.fixture(params=[Codes(), None], ids=["in batches", "one by one"])
def observer(request: pytest.FixtureRequest, tmp_path: Path) -> Observer:
    return Observer(tmp_path, request.param)


@pytest.mark.parametrize("ends", [1, 5, BATCH - 1, BATCH, BATCH + 3, 2 * BATCH, 2 * BATCH + 1, FRAMES - 1])
def test_it_goes_on_as_if_it_had_not_stopped(observer: Observer, ends: int) -> None:
    whole = observer.observe("whole")
    assert len(whole) == FRAMES and whole["shot"].max() == (FRAMES - 1) // 5
    with pytest.raises(KeyboardInterrupt):
        observer.observe("killed", ends)
    assert observer.observe("killed").tobytes() == whole.tobytes()


@pytest.mark.parametrize("cut", [BATCH - 3, BATCH + 1, 2 * BATCH - 1])
def test_it_goes_on_from_a_log_that_a_power_cut_left_in_mid_batch(observer: Observer, cut: int) -> None:
    whole = observer.observe("whole")
    path = observer.folder / "whole"
    size = path.stat().st_size // FRAMES
    content = path.read_bytes()
    path.write_bytes(content[: cut * size] + bytes(len(content) - cut * size))
    assert observer.observe("whole").tobytes() == whole.tobytes()


def test_nothing_is_kept_of_frames_read_after_the_clip_has_changed(observer: Observer) -> None:
    checks = iter([None, InputChangedError("clip has changed")])

    def check() -> None:
        if error := next(checks):
            raise error

    with pytest.raises(InputChangedError):
        observer.observe("changed", check_input=check)
    dtype = observation_dtype(1, observer.codes)  # type: ignore[arg-type]
    with ObservationLog(observer.folder / "changed", dtype) as log:
        assert len(log) == (BATCH if observer.codes else 1)
