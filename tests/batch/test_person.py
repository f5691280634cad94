"""Key frames of several takes as one clip: what is asked of one camera must be what each take's own camera saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nphm_track.batch.person import VIEWS, Take, _moved, _Part, _TakesTogether, key_views
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.faces.roi import frame_to_crop_matrix
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.refine.clip import Clip
from nphm_track.refine.codes import State
from nphm_track.refine.pixels import camera_directions
from nphm_track.tracking.options import TrackOptions

CAMERAS = (
    Intrinsics(np.array([[500.0, 0, 320], [0, 500, 180], [0, 0, 1]]), (640, 360)),
    Intrinsics(
        np.array([[1400.0, 0, 930], [0, 1390, 550], [0, 0, 1]]), (1920, 1080), np.array([-0.1, 0.02, 0.001, 0.0, 0.0])
    ),
)
CELLS, FRAMES = 8, 3


def record(frames: int) -> NDArray[Any]:
    log = np.zeros(
        frames,
        [
            ("frame", "i8"), ("time", "f8"), ("seen", "?"), ("shot", "i4"), ("confidence", "f4"),
            ("landmarks", "f4", (478, 3)), ("state", "f4", 4),
        ],
    )  # fmt: skip
    log["frame"], log["time"] = 2 * np.arange(frames), np.arange(frames) / 25
    log["seen"], log["confidence"] = True, 0.9
    log["landmarks"] = np.random.default_rng(0).uniform(0, 100, (478, 3))
    return log


class TestKeyViews:
    def test_moving_unsure_and_unseen_frames_are_left_out(self) -> None:
        log = record(40)
        log["landmarks"][10:20] += 20 * np.arange(10)[:, None, None]  # nods
        log["landmarks"][20:] += 180
        log["confidence"][30:34] = 0.3
        log["seen"][34:36], log["landmarks"][34:36] = False, np.nan
        views = key_views(log)
        assert set(range(10)) <= set(views["row"].tolist())
        assert not set(views["row"].tolist()) & {*range(11, 19), *range(30, 36)}
        np.testing.assert_array_equal(views["frame"], 2 * views["row"])
        assert "state" not in (views.dtype.names or ())

    @pytest.mark.parametrize("frames", [1, 2, 5000])
    def test_there_are_always_some(self, frames: int) -> None:
        assert 0 < len(key_views(record(frames))) <= VIEWS

    def test_single_frames_between_cuts(self) -> None:
        log = record(6)
        log["shot"] = np.arange(6)
        assert len(key_views(log)) == 6


@pytest.fixture
def parts() -> list[_Part]:
    made = []
    for k, camera in enumerate(CAMERAS):
        generator = torch.Generator().manual_seed(k)
        start = State(
            torch.zeros(4),
            torch.randn(FRAMES, 2, generator=generator),
            torch.eye(3, dtype=torch.float64).repeat(FRAMES, 1, 1),
            torch.randn(FRAMES, 3, generator=generator).double(),
            torch.from_numpy(camera.K.copy()),
        )
        landmarks = np.random.default_rng(k).uniform(0.2, 0.8, (FRAMES, 478, 2)) * camera.size
        times, one = np.arange(FRAMES) / 25, np.ones(FRAMES, np.float32)
        clip = Clip(start, camera, True, False, times, np.arange(FRAMES), one, landmarks.astype(np.float32))
        views = record(FRAMES)
        made.append(_Part(Take(f"take{k}", Path(), Path(), TrackOptions()), views, clip))
    return made


def maps(camera: Intrinsics, frames: int) -> GeometryMaps:
    generator = torch.Generator().manual_seed(9)
    shape = (frames, CELLS, CELLS)
    width, height = camera.size
    rois = torch.tensor([[0.4 * width, 0.5 * height, 0.3 * width, 0.3 * width, 0.2]]).repeat(frames, 1).double()
    vectors = torch.randn(*shape, 3, generator=generator)
    return GeometryMaps(
        vectors, vectors, torch.rand(shape, generator=generator), torch.rand(shape), rois, torch.zeros(frames, 3, 8, 8)
    )


def test_rays_are_those_of_each_takes_camera(parts: list[_Part]) -> None:
    person = _TakesTogether.of(parts, np.zeros(4, np.float32))
    rows = np.array([0, 2, 3, 4, 5])
    own = [(0, np.array([0, 2])), (1, np.array([0, 1, 2]))]
    theirs = [maps(parts[k].clip.camera, len(some)) for k, some in own]
    moved = [
        torch.cat([_moved(m.rois, parts[k].scale, -parts[k].centre * parts[k].scale)])
        for (k, _), m in zip(own, theirs, strict=True)
    ]
    joined = GeometryMaps(
        *(torch.cat([getattr(m, name) for m in theirs]) for name in ("normals", "points")),
        *(torch.cat([getattr(m, name) for m in theirs]) for name in ("normal_confidence", "point_confidence")),
        torch.cat(moved),
        torch.cat([m.crops for m in theirs]),
    )
    found = person.evidence(rows, joined, 20, independent=True)
    assert len(found.landmarks) == len(rows) and len(set(found.segments.tolist())) == len(rows)
    at = 0
    for (k, some), m in zip(own, theirs, strict=True):
        part = parts[k].clip
        expected, K = part.evidence(some, m, 20, independent=True), part.start.K
        here = slice(at, at + len(some))
        for name, ours, single in (
            ("pixels", found.targets.pixels[here], expected.targets.pixels),
            ("landmarks", found.landmarks[here], expected.landmarks),
        ):
            directions = camera_directions(ours, person.start.K)
            assert torch.allclose(directions, camera_directions(single, K), atol=1e-5), name
        assert torch.equal(found.targets.normals[here], expected.targets.normals)
        assert torch.equal(found.start.t[here], expected.start.t)
        share = found.eyes[here] / expected.eyes * (K[0, 0] * K[1, 1]).sqrt()
        assert torch.allclose(share, person.start.K[0, 0].expand(len(some)))
        at += len(some)


def test_the_head_is_drawn_into_the_same_crop(parts: list[_Part]) -> None:
    """Exactly for square pixels; others turn a turned region into a sheared one."""
    part = parts[0]
    roi = maps(part.clip.camera, 1).rois
    moved = _moved(roi, part.scale, -part.centre * part.scale)
    common = _TakesTogether.of(parts, np.zeros(4, np.float32)).start.K.numpy()
    through = frame_to_crop_matrix(moved.numpy(), 64)[0] @ common
    np.testing.assert_allclose(through, frame_to_crop_matrix(roi.numpy(), 64)[0] @ part.clip.camera.K, atol=1e-6)


def test_names_and_order(parts: list[_Part]) -> None:
    person = _TakesTogether.of(parts, np.zeros(4, np.float32))
    assert person.names(np.array([1, 4])) == ["take0 2", "take1 2"]
    assert (np.diff(person.times) > 0).all() and len(person) == 2 * FRAMES
