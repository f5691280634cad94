"""Following one person: synthetic clips cut from a photograph, and a real one with cuts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.faces.follower import Choice, FaceFollower
from nphm_track.faces.landmarker import FaceLandmarker

SIZE = (360, 640)


@pytest.fixture(scope="module")
def face(astronaut):
    """The astronaut's head, 128 x 128."""
    return np.asarray(Image.fromarray(astronaut[0:200, 124:324]).resize((128, 128), Image.Resampling.BILINEAR))


def scene(*faces, seed=0, noise=0):
    """A frame with pictures pasted at (picture, x, y) over a smooth backdrop that depends on ``seed``."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 200, (5, 7, 3), np.uint8)
    frame = np.array(Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    for picture, x, y in faces:
        frame[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return np.clip(frame + np.random.default_rng(noise).normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def run(follower, frames, start=0):
    return [follower.step(frame, (start + i) / 25) for i, frame in enumerate(frames)]


def centre(result):
    return result.observation.landmarks[:, :2].mean(0)


def test_moving_face_is_tracked(landmarker, face):
    frames = [scene((face, 20 + 6 * i, 30 + 2 * i), noise=i) for i in range(20)]
    results = run(FaceFollower(landmarker), frames)
    assert all(r.status == "tracked" and r.confidence > 0.8 and not r.cut for r in results)
    path = np.array([centre(r) for r in results])
    np.testing.assert_allclose(np.diff(path, axis=0).mean(0), [6, 2], atol=0.2)


@pytest.mark.parametrize("split", [1, 4, 7, 9])
def test_resumes_exactly(landmarker, face, split):
    """Going on from a stored state gives the same bits, while tracked, lost and found again."""
    frames = [scene((face, 40 + 3 * i, 50), noise=i) for i in range(5)] + [scene(noise=9)] * 2
    frames += [scene((face, 60, 50), noise=i) for i in range(4)]
    whole = run(FaceFollower(landmarker), frames)
    first, second = FaceFollower(landmarker), FaceFollower(landmarker)
    run(first, frames[:split])
    stored = first.state()
    assert stored.dtype == np.float32 and stored.ndim == 1
    second.restore(stored)
    for expected, result in zip(whole[split:], run(second, frames[split:], split), strict=True):
        assert (result.status, result.confidence, result.cut) == (expected.status, expected.confidence, expected.cut)
        if expected.observation is not None:
            np.testing.assert_array_equal(result.observation.landmarks, expected.observation.landmarks)
            np.testing.assert_array_equal(result.observation.blendshapes, expected.observation.blendshapes)


def test_state_of_another_version(landmarker):
    follower = FaceFollower(landmarker)
    for vector in (np.zeros(3), np.full(follower.state().shape, np.nan)):
        with pytest.raises(InputError, match="state"):
            follower.restore(vector)


def test_brief_loss_within_a_shot(landmarker, face):
    frames = [scene((face, 60, 50), noise=i) for i in range(3)] + [scene(noise=i) for i in range(3)]
    frames += [scene((face, 70, 50), noise=i) for i in range(3)]
    status = [r.status for r in run(FaceFollower(landmarker), frames)]
    assert status == ["tracked"] * 3 + ["lost"] * 3 + ["tracked"] * 3


def test_no_jump_to_another_place_within_a_shot(landmarker, face):
    """The person disappears; a face far away in the next frame is somebody else, even if it looks the same."""
    frames = [scene((face, 0, 50), noise=i) for i in range(3)] + [scene((face, 290, 50), noise=i) for i in range(5)]
    results = run(FaceFollower(landmarker), frames)
    assert [r.status for r in results] == ["tracked"] * 3 + ["lost"] * 5 and not any(r.cut for r in results)


def test_hard_cut_back_to_the_person(landmarker, face):
    frames = [scene((face, 0, 50), noise=i) for i in range(4)] + [
        scene((face, 190, 100), seed=5, noise=i) for i in range(4)
    ]
    results = run(FaceFollower(landmarker), frames)
    assert [r.cut for r in results] == [False] * 4 + [True] + [False] * 3
    assert all(r.status == "tracked" for r in results)
    assert centre(results[4])[0] > centre(results[3])[0] + 150


def test_flash_is_no_cut(landmarker, face):
    plain = scene((face, 60, 50))
    flash = np.clip(plain.astype(int) + 120, 0, 255).astype(np.uint8)
    results = run(FaceFollower(landmarker), [plain, plain, flash, np.full_like(plain, 255), plain, plain])
    assert not any(r.cut for r in results)
    assert [r.status for r in results][-2:] == ["tracked"] * 2


def test_choice(landmarker, face):
    small = np.asarray(Image.fromarray(face).resize((96, 96)))
    frame = scene((small, 10, 20), (face, 170, 60))
    follow = lambda **choice: FaceFollower(landmarker, Choice(**choice)).step(frame, 0.0)  # noqa: E731
    assert centre(follow())[0] > 160
    assert centre(follow(index=0))[0] < 120
    assert centre(follow(index=1))[0] > 160
    assert centre(follow(at=(60, 70)))[0] < 120
    with pytest.raises(InputError):
        follow(index=2)
    with pytest.raises(InputError, match="faces are at") as error:
        follow(at=(500, 300))
    listed = [tuple(map(float, place.split(","))) for place in str(error.value).rpartition(" at ")[2].split(", ")]
    assert [follow(at=place).observation is not None for place in listed] == [True, True]
    assert listed[0][0] < 120 < 160 < listed[1][0]


def test_nothing_to_follow(landmarker):
    results = run(FaceFollower(landmarker, Choice(index=0)), [scene(seed=i) for i in range(3)])
    assert all(r.status == "lost" and r.observation is None and r.confidence == 0 for r in results)


def test_real_clip_with_cuts(landmarker, shared_data):
    """d09: the singer, then (frame 20) a man in profile, the singer again (82), the audience (211)."""
    av = pytest.importorskip("av")
    follower = FaceFollower(landmarker)
    wanted = {*range(23), *range(80, 85), *range(112, 122), *range(207, 218)}
    results = {}
    with av.open(str(next((shared_data / "videos").glob("d09*")))) as container:
        for index, frame in enumerate(itertools.islice(container.decode(video=0), max(wanted) + 1)):
            if index in wanted:
                results[index] = follower.step(frame.to_ndarray(format="rgb24"), frame.time)
    tracked = {index for index, result in results.items() if result.status == "tracked"}
    assert all(results[index].cut for index in (20, 82, 211))
    assert tracked >= {*range(20), *range(118, 122), *range(207, 211)}
    assert not tracked & {20, 21, 22, 80, 81, *range(211, 218)}


def test_a_person_chosen_later_is_sought_from_the_first_frame_on(landmarker, face):
    follower = FaceFollower(landmarker, Choice(at=(170 + 60, 60 + 60)))
    assert not follower.look_for(scene(), 0.0)
    assert follower.look_for(scene((face, 170, 60)), 2.0)
    results = run(follower, [scene((face, 30, 40)), scene((face, 32, 40))])
    assert [r.status for r in results] == ["tracked"] * 2


def test_a_face_may_have_gone_far_between_frames_that_are_far_apart(landmarker, face):
    small = np.asarray(Image.fromarray(face).resize((96, 96)))
    frames = [scene((small, 10, 60)), scene((small, 160, 60))]
    quick, slow = (FaceFollower(landmarker) for _ in range(2))
    steps = [quick.step(frame, time).status for frame, time in zip(frames, (0.0, 0.04), strict=True)]
    assert steps[0] == "tracked"
    assert [slow.step(frame, time).status for frame, time in zip(frames, (0.0, 1.0), strict=True)] == ["tracked"] * 2


@pytest.mark.parametrize("off", [-45, -30])
def test_a_face_on_its_side_is_looked_at_until_it_is_upright(landmarker, astronaut, monkeypatch, off):
    """Tiles cut such faces, and what is left of them points to the detector as if they were half upright."""
    picture = np.ascontiguousarray(np.rot90(astronaut[:300, 80:380]))
    right = FaceFollower(landmarker).step(picture, 0.0).observation.landmarks
    turn = Rotation.from_euler("z", off, degrees=True).as_matrix()[:2, :2]

    def turned(image, **_):
        (found, *_others) = FaceLandmarker.detect(landmarker, image)
        middle = found.keypoints.mean(0)
        return [replace(found, keypoints=(found.keypoints - middle) @ turn.T + middle)]

    monkeypatch.setattr(landmarker, "detect", turned)
    seen = FaceFollower(landmarker).step(picture, 0.0).observation.landmarks
    assert np.linalg.norm(seen - right, axis=1).mean() < 0.01 * np.ptp(right[:, 1])
