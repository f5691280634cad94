from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.tracking.smoothing import fill_gaps, smooth_codes, smooth_poses

Array = NDArray[np.float64]


def clip(seconds: float, fps: float) -> tuple[Array, Array, NDArray[np.int64]]:
    times = np.arange(int(seconds * fps)) / fps
    return times, np.ones(len(times)), np.zeros(len(times), dtype=int)


def raised_cosine(times: Array, centre: float, width: float = 0.12) -> Array:
    inside = np.abs(times - centre) < width / 2
    return np.where(inside, 0.5 * (1 + np.cos(2 * np.pi * (times - centre) / width)), 0.0)


def centroid(times: Array, values: Array) -> float:
    return float((times * values).sum() / values.sum())


@pytest.mark.parametrize(("fps", "factor"), [(25, 1.35), (30, 1.5), (60, 2.2)])
@pytest.mark.parametrize("channels", [1, 52])
def test_static_noise_is_reduced(fps: float, factor: float, channels: int) -> None:
    times, confidence, segments = clip(20, fps)
    noise = np.random.default_rng(0).normal(size=(len(times), channels))
    smooth = smooth_codes(noise + 3, times, confidence, 1.0, segments)
    assert noise.std() / smooth.std() > factor
    stronger = smooth_codes(noise + 3, times, confidence, 2.0, segments)
    assert smooth.std() / stronger.std() > 1.2


@pytest.mark.parametrize("fps", [25, 30])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_blinks_keep_height_and_timing(fps: float, noise: float) -> None:
    times, confidence, segments = clip(10, fps)
    rng = np.random.default_rng(1)
    for centre in 3 + rng.uniform(0, 1 / fps, 10):
        clean = np.zeros((len(times), 8))
        clean[:, 0] = raised_cosine(times, centre)
        smooth = smooth_codes(clean + noise * rng.normal(size=clean.shape), times, confidence, 1.0, segments)
        assert smooth[:, 0].max() >= 0.85 * clean[:, 0].max()
        near = np.abs(times - centre) < 0.15
        assert abs(centroid(times[near], smooth[near, 0]) - centroid(times, clean[:, 0])) < 0.5 / fps


@pytest.mark.parametrize("hertz", [1.0, 3.0, 5.0])
def test_steady_motion_is_not_delayed_or_flattened(hertz: float) -> None:
    times, confidence, segments = clip(10, 30)
    motion = np.sin(2 * np.pi * hertz * times)[:, None]
    noisy = motion + 0.03 * np.random.default_rng(2).normal(size=motion.shape)
    smooth = smooth_codes(noisy, times, confidence, 1.0, segments)[:, 0]
    quadrature = np.cos(2 * np.pi * hertz * times)
    gain = smooth @ motion[:, 0] / (motion[:, 0] @ motion[:, 0])
    assert gain > 0.8
    assert abs(smooth @ quadrature / (quadrature @ quadrature)) < 0.03


def test_straight_lines_pass_on_irregular_times() -> None:
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.choice([1 / 60, 1 / 30, 1 / 12], size=200))
    line = np.stack([2 * times + 1, -times], axis=1)
    smooth = smooth_codes(line, times, np.ones(200), 1.0, np.zeros(200, dtype=int))
    assert np.allclose(smooth, line, atol=1e-8)


def test_time_not_index_sets_the_cutoff() -> None:
    rng = np.random.default_rng(4)
    gaps = rng.uniform(0.5, 1.5, 2000)
    ratios = []
    for fps in (30, 120):
        times = np.cumsum(gaps) / fps
        noise = rng.normal(size=(2000, 1))
        smooth = smooth_codes(noise, times, np.ones(2000), 1.0, np.zeros(2000, dtype=int))
        ratios.append(noise.std() / smooth.std())
    assert 1.7 < ratios[1] / ratios[0] < 2.6  # four times the samples, half the noise


def test_strength_zero_is_the_identity() -> None:
    times, confidence, segments = clip(2, 30)
    values = np.random.default_rng(5).normal(size=(60, 4))
    assert np.array_equal(smooth_codes(values, times, confidence, 0.0, segments), values)
    R = Rotation.random(60, random_state=5).as_matrix()
    smooth_R, smooth_t = smooth_poses(R, values[:, :3], times, confidence, 0.0, segments)
    assert np.array_equal(smooth_R, R) and np.array_equal(smooth_t, values[:, :3])


def test_segments_are_independent() -> None:
    times, confidence, segments = clip(4, 30)
    values = np.random.default_rng(6).normal(size=(120, 2)) * 0.1
    segments[60:] = 7
    changed = values.copy()
    changed[60:] = changed[60:] + 5.0
    before = smooth_codes(values, times, confidence, 1.0, segments)
    after = smooth_codes(changed, times, confidence, 1.0, segments)
    assert np.allclose(before[:60], after[:60], atol=1e-9)
    assert np.allclose(before[60:] + 5, after[60:], atol=1e-6)


def test_values_without_confidence_never_leak() -> None:
    times, confidence, segments = clip(4, 30)
    values = np.sin(times)[:, None] + 0.01 * np.random.default_rng(7).normal(size=(120, 3))
    confidence[[0, 1, 40, 41, 42, 43, 80, 119]] = 0
    poisoned = values.copy()
    poisoned[confidence == 0] = np.nan
    smooth = smooth_codes(poisoned, times, confidence, 1.0, segments)
    assert np.isfinite(smooth).all()
    poisoned[confidence == 0] = 1e9
    assert np.array_equal(smooth_codes(poisoned, times, confidence, 1.0, segments), smooth)
    assert np.abs(smooth[40:44, 0] - np.sin(times[40:44])).max() < 0.03
    assert np.array_equal(smooth[0], smooth[2])  # nothing to interpolate at the ends: held


def test_low_confidence_outlier_is_taken_out() -> None:
    times, confidence, segments = clip(4, 30)
    values = 0.01 * np.random.default_rng(8).normal(size=(120, 3))
    values[60] += 1
    confidence[60] = 0.02
    assert np.abs(smooth_codes(values, times, confidence, 1.0, segments)).max() < 0.2


def test_gaps_to_fill() -> None:
    times = np.arange(40) / 20
    valid = np.ones(40, dtype=bool)
    valid[[0, 5, 6, 39]] = False  # the ends have nothing on one side
    valid[10:25] = False  # 0.8 s
    valid[29:31] = False  # over the cut
    segments = np.r_[np.zeros(30, dtype=int), np.ones(10, dtype=int)]
    assert np.flatnonzero(fill_gaps(valid, times, segments)).tolist() == [5, 6]
    assert fill_gaps(valid, times, segments, max_gap=1.0)[10:25].all()
    assert not fill_gaps(valid, times, segments, max_gap=0.05).any()
    assert not fill_gaps(np.zeros(40, dtype=bool), times, segments).any()


def test_long_gap_separates() -> None:
    times, confidence, segments = clip(4, 30)
    values = np.where(times < 2, 0.0, 1.0)[:, None]
    confidence[40:80] = 0
    smooth = smooth_codes(values, times, confidence, 1.0, segments)[:, 0]
    assert np.allclose(smooth[:60], 0) and np.allclose(smooth[60:], 1)


def test_poses_stay_rotations_through_half_turns() -> None:
    times, confidence, segments = clip(6, 30)
    rng = np.random.default_rng(9)
    clean = Rotation.from_rotvec(np.stack([0 * times, 2.5 * times, 0.3 * np.sin(times)], axis=1))
    noisy = Rotation.from_rotvec(0.01 * rng.normal(size=(len(times), 3))) * clean
    t = np.array([0.1, 0, 0.6]) + 0.002 * rng.normal(size=(len(times), 3))
    R = noisy.as_matrix()
    R[50:53] = np.nan
    confidence[50:53] = 0
    smooth_R, smooth_t = smooth_poses(R, t, times, confidence, 1.0, segments)
    assert np.allclose(smooth_R @ smooth_R.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(smooth_R), 1)
    error = (Rotation.from_matrix(smooth_R) * clean.inv()).magnitude()
    assert error.mean() < 0.7 * (noisy * clean.inv()).magnitude().mean()
    assert error.max() < 0.04
    assert smooth_t.std(axis=0).max() < 0.0015


def test_quick_turn_survives() -> None:
    times, confidence, segments = clip(6, 30)
    yaw = np.radians(30) / (1 + np.exp(-(times - 3) / 0.04))  # 30 degrees in about 0.2 s
    rng = np.random.default_rng(10)
    noisy = Rotation.from_rotvec(np.outer(yaw, [0, 1, 0]) + 0.003 * rng.normal(size=(len(times), 3)))
    t = np.tile([0, 0, 0.6], (len(times), 1)) + 0.001 * rng.normal(size=(len(times), 3))
    smooth_R, _ = smooth_poses(noisy.as_matrix(), t, times, confidence, 1.0, segments)
    assert np.abs(Rotation.from_matrix(smooth_R).as_rotvec()[:, 1] - yaw).max() < np.radians(1.2)


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 4])
def test_short_clips(frames: int) -> None:
    times, confidence, segments = np.arange(frames) / 30, np.ones(frames), np.zeros(frames, dtype=int)
    values = np.random.default_rng(11).normal(size=(frames, 5))
    smooth = smooth_codes(values, times, confidence, 1.0, segments)
    assert smooth.shape == values.shape and np.isfinite(smooth).all()
    if frames <= 2:
        assert np.array_equal(smooth, values)
    R, t = smooth_poses(np.tile(np.eye(3), (frames, 1, 1)), values[:, :3], times, confidence, 1.0, segments)
    assert np.allclose(R, np.eye(3)) and np.isfinite(t).all()


def test_wholly_lost_clip_is_finite() -> None:
    times, confidence, segments = clip(1, 30)
    lost = np.full((30, 3), np.nan)
    assert np.isfinite(smooth_codes(lost, times, 0 * confidence, 1.0, segments)).all()
    R, t = smooth_poses(np.full((30, 3, 3), np.nan), lost, times, 0 * confidence, 1.0, segments)
    assert np.allclose(R, np.eye(3)) and np.isfinite(t).all()


def test_bad_input_is_refused() -> None:
    times, confidence, segments = clip(1, 30)
    with pytest.raises(InputError):
        smooth_codes(np.zeros((29, 2)), times, confidence, 1.0, segments)
    with pytest.raises(InputError):
        smooth_codes(np.zeros((30, 2)), times, confidence, -1.0, segments)
    with pytest.raises(InputError):
        smooth_codes(np.full((30, 2), np.nan), times, confidence, 1.0, segments)
