"""Zero-lag smoothing of codes and poses on the video's own time stamps.

A Whittaker smoother (penalised second differences, one banded system a shot) takes out jitter. Where what it took out
is clearly more than jitter - a blink, a plosive, a quick turn - a local Wiener gain gives it back, so fast motion keeps
its height and its timing. Nothing is ever smoothed across a cut or across a long gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solveh_banded
from scipy.ndimage import convolve1d
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CODES_CUTOFF_HZ = 5.0
"""Half-gain frequency of the base smoother for expression codes at strength 1; faster motion passes by its size."""
POSES_CUTOFF_HZ = 4.0
MAX_GAP_S = 0.5
"""Longest loss that is filled in, from the last frame before it to the first after it."""

_WIENER_MARGIN = 4.0
"""Times the usual jitter energy that counts as jitter still: short windows of pure noise reach it."""
_WINDOW_S = 0.07
"""Half width of the window motion energy is measured in."""
_QUIET_QUANTILE = 0.3
"""Jitter is read from the quietest parts of the clip, or constant speech would pass for noise."""
_FOURTH_DIFFERENCE = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
_CORRELATED_JITTER = 2.0
"""Times the jitter seen by fourth differences that the smoother's band may hold: real jitter is not quite white."""
_PROBES, _PROBE_FRAMES = 8, 4096


def fill_gaps(valid: ArrayLike, times: ArrayLike, segments: ArrayLike, max_gap: float = MAX_GAP_S) -> BoolArray:
    """Which lost frames may be filled in: those between two valid frames of one segment at most ``max_gap`` s apart.

    Args:
        valid: [T] bool, frames that were seen.
        times: [T] s, ascending.
        segments: [T] int, the shot each frame belongs to.
    """
    valid, times, segments = np.asarray(valid, dtype=bool), np.asarray(times, dtype=np.float64), np.asarray(segments)
    filled = np.zeros_like(valid)
    for run in _runs(valid, times, segments, max_gap):
        filled[run] = ~valid[run]
    return filled


def smooth_codes(
    values: ArrayLike,
    times: ArrayLike,
    confidence: ArrayLike,
    strength: float,
    segments: ArrayLike,
    *,
    max_gap: float = MAX_GAP_S,
) -> FloatArray:
    """Smooth ``values`` [T, D] over time; each column is one channel.

    Args:
        times: [T] s, ascending, any spacing.
        confidence: [T] in [0, 1]; frames at 0 are ignored (NaN allowed) and interpolated over gaps up to ``max_gap``,
            beyond which the nearest seen frame of the segment is held.
        strength: 0 leaves seen frames exactly as they are, 1 is the default, more smooths more.
        segments: [T] int, the shot each frame belongs to.

    Raises:
        InputError: lengths differ, the strength is negative or a frame with confidence is not finite.
    """
    values, clip = _checked(values, times, confidence, segments, strength)
    return _smooth(values, clip, CODES_CUTOFF_HZ, strength, max_gap, [values.shape[1]])


def smooth_poses(
    R: ArrayLike,
    t: ArrayLike,
    times: ArrayLike,
    confidence: ArrayLike,
    strength: float,
    segments: ArrayLike,
    *,
    max_gap: float = MAX_GAP_S,
) -> tuple[FloatArray, FloatArray]:
    """Smooth head poses ``R`` [T, 3, 3], ``t`` [T, 3]; the other arguments are those of ``smooth_codes``.

    Both go through one filter, as quaternions of continuous sign and as metres, so that errors of rotation, place and
    depth which cancel in the picture still do. The rotations returned are orthonormal.
    """
    R = np.array(R, dtype=np.float64)
    T = len(R)
    if T == 0:  # of which scipy makes no rotations before 1.12
        return R, np.asarray(t, dtype=np.float64)
    joined = np.concatenate([R.reshape(T, 9), np.asarray(t)], axis=1)
    joined, clip = _checked(joined, times, confidence, segments, strength)
    valid = clip.valid
    R[~valid] = np.eye(3)
    quaternions = Rotation.from_matrix(R).as_quat()
    seen = quaternions[valid]
    # q and -q are one rotation: choose each sign to continue from the seen frame before.
    quaternions[valid] = seen * np.cumprod(np.where(_step_dots(seen) < 0, -1.0, 1.0))[:, None]
    values = np.concatenate([quaternions, joined[:, 9:]], axis=1)
    smooth = _smooth(values, clip, POSES_CUTOFF_HZ, strength, max_gap, [4, 3], shared_gain=True)
    lost = np.linalg.norm(smooth[:, :4], axis=1) < 1e-6
    smooth[lost, :4] = (0, 0, 0, 1)
    rotations = Rotation.from_quat(smooth[:, :4]).as_matrix()
    if strength == 0:
        rotations[valid] = R[valid]
    return rotations, smooth[:, 4:]


@dataclass(frozen=True)
class _ClipTimes:
    times: FloatArray  # [T] s
    confidence: FloatArray  # [T]
    segments: NDArray[np.int64]  # [T]

    @property
    def valid(self) -> BoolArray:
        return self.confidence > 0


def _checked(
    values: ArrayLike, times: ArrayLike, confidence: ArrayLike, segments: ArrayLike, strength: float
) -> tuple[FloatArray, _ClipTimes]:
    """Arrays of agreeing length; what lies under zero confidence becomes 0."""
    values = np.array(values, dtype=np.float64)
    confidence = np.nan_to_num(np.asarray(confidence, dtype=np.float64))
    clip = _ClipTimes(np.asarray(times, dtype=np.float64), confidence, np.asarray(segments))
    T = len(values)
    if values.ndim != 2 or any(x.shape != (T,) for x in (clip.times, clip.confidence, clip.segments)):
        raise InputError(f"smoothing needs values [T, D] and times, confidence, segments [T], not {values.shape}")
    if strength < 0:
        raise InputError(f"smoothing strength must not be negative, not {strength:g}")
    values[~clip.valid] = 0
    if not np.isfinite(values).all() or not np.isfinite(clip.times).all():
        raise InputError("cannot smooth values or times that are not finite")
    return values, clip


def _step_dots(rows: FloatArray) -> FloatArray:
    """[T] product of each row with the one before; 1 for the first."""
    return np.concatenate([np.ones(min(len(rows), 1)), np.einsum("td,td->t", rows[1:], rows[:-1])])


def _runs(valid: BoolArray, times: FloatArray, segments: NDArray[np.int64], max_gap: float) -> Iterator[slice]:
    """Stretches that begin and end with a valid frame, stay in one segment and hold no gap longer than ``max_gap``."""
    seen = np.flatnonzero(valid)
    if not len(seen):
        return
    cut = np.flatnonzero(np.diff(segments) != 0) + 1  # first frames of new segments
    shot = np.searchsorted(cut, seen, side="right")
    lost_between = np.diff(seen) > 1
    breaks = (np.diff(shot) != 0) | (lost_between & (np.diff(times[seen]) > max_gap + 1e-9))
    for run in np.split(seen, np.flatnonzero(breaks) + 1):
        yield slice(int(run[0]), int(run[-1]) + 1)


def _smooth(
    values: FloatArray,
    clip: _ClipTimes,
    cutoff_hz: float,
    strength: float,
    max_gap: float,
    groups: list[int],
    shared_gain: bool = False,
) -> FloatArray:
    """Both passes. ``groups`` splits the columns into quantities; ``shared_gain`` gives all columns one gain."""
    cutoff = cutoff_hz / max(strength, 0.05)
    runs = list(_runs(clip.valid, clip.times, clip.segments, max_gap))
    out = values.copy()
    for run in runs:
        out[run] = _whittaker(values[run], clip.times[run], clip.confidence[run], cutoff)
    seen = clip.valid[:, None]
    if strength == 0:
        out = np.where(seen, values, out)
    elif clip.valid.any():
        removed = np.where(seen, values - out, 0.0)
        ratio = _energy_ratio(values, removed, clip, runs, cutoff)
        edges = np.cumsum([0, *groups])
        pooled = np.max([ratio[:, a:b].mean(axis=1) for a, b in pairwise(edges)], axis=0)
        ratio = np.broadcast_to(pooled[:, None], ratio.shape) if shared_gain else np.maximum(ratio, pooled[:, None])
        gain = np.maximum(0.0, 1 - _WIENER_MARGIN / np.maximum(ratio, 1e-12))
        trust = np.minimum(clip.confidence / np.median(clip.confidence[clip.valid]), 1.0)
        out = out + gain * trust[:, None] * removed
    return _hold(out, clip, runs)


def _whittaker(values: FloatArray, times: FloatArray, confidence: FloatArray, cutoff_hz: float) -> FloatArray:
    """Columns x [T, D] minimising the integral of ``confidence (y - x)^2 + x''^2 / (2 pi cutoff)^4``."""
    T = len(values)
    if T < 3:
        return values.copy()
    h = np.maximum(np.diff(times), 1e-3)
    cell = 0.5 * (np.r_[h[0], h] + np.r_[h, h[-1]])
    span = 0.5 * (h[:-1] + h[1:])
    # Second derivative at the inner frames: a x[i-1] + b x[i] + c x[i+1], integrated over its span.
    a, c = 1 / (h[:-1] * span), 1 / (h[1:] * span)
    b = -(a + c)
    penalty = span / (2 * np.pi * cutoff_hz) ** 4
    bands = np.zeros((3, T))  # lower form: diagonal, first, second below
    bands[0] = confidence * cell
    bands[0, :-2] += penalty * a * a
    bands[0, 1:-1] += penalty * b * b
    bands[0, 2:] += penalty * c * c
    bands[1, :-2] += penalty * a * b
    bands[1, 1:-1] += penalty * b * c
    bands[2, :-2] += penalty * a * c
    return solveh_banded(bands, (confidence * cell)[:, None] * values, lower=True, check_finite=False)


def _energy_ratio(
    values: FloatArray, removed: FloatArray, clip: _ClipTimes, runs: list[slice], cutoff: float
) -> FloatArray:
    """Local energy [T, D] of what was smoothed away, over that of the clip's jitter."""
    energy = _local_energy(removed, clip, runs)
    noise = np.quantile(energy[clip.valid], _QUIET_QUANTILE, axis=0)
    bends, probe_bends, probe_energy = _jitter_probe(values, clip, runs, cutoff)
    if len(bends):
        # Steady fast motion has no quiet parts, but bends far less from frame to frame than jitter of its size.
        white = np.quantile(bends, _QUIET_QUANTILE, axis=0) / np.quantile(probe_bends, _QUIET_QUANTILE)
        noise = np.minimum(noise, _CORRELATED_JITTER * white * np.quantile(probe_energy, _QUIET_QUANTILE))
    # Nothing below a millionth of the largest motion is jitter worth telling from it.
    noise = np.maximum(noise, 1e-12 * energy.max(axis=0))
    return np.divide(energy, noise, out=np.zeros_like(energy), where=noise > 0)


def _local_energy(removed: FloatArray, clip: _ClipTimes, runs: list[slice]) -> FloatArray:
    """Mean square [T, D] of the seen frames under a triangular window; 0 outside the runs."""
    energy = np.zeros_like(removed)
    for run in runs:
        steps = np.diff(clip.times[run])
        spacing = max(float(np.median(steps)), 1e-3) if len(steps) else 1.0
        half = int(np.clip(round(_WINDOW_S / spacing), 1, 12))
        kernel = 1.0 - np.abs(np.arange(-half, half + 1)) / (half + 1)
        weight = convolve1d(clip.valid[run].astype(np.float64), kernel, mode="constant")
        local = convolve1d(removed[run] ** 2, kernel, axis=0, mode="constant")
        energy[run] = local / np.maximum(weight, 1e-12)[:, None]
    return energy


def _jitter_probe(
    values: FloatArray, clip: _ClipTimes, runs: list[slice], cutoff: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """White noise sent through the smoother on the same time stamps (the first ``_PROBE_FRAMES`` of them).

    Returns squared fourth differences of the values [M, D] and of the noise [M, P], and the energy [K, P] the smoother
    takes out of the noise at the seen frames.
    """
    T = min(len(values), _PROBE_FRAMES)
    head = _ClipTimes(clip.times[:T], clip.confidence[:T], clip.segments[:T])
    runs = [slice(run.start, min(run.stop, T)) for run in runs if run.start < T]
    noise = np.random.default_rng(0).standard_normal((T, _PROBES))
    removed = np.zeros_like(noise)
    value_bends, noise_bends = [np.zeros((0, values.shape[1]))], [np.zeros((0, _PROBES))]
    for run in runs:
        removed[run] = noise[run] - _whittaker(noise[run], head.times[run], head.confidence[run], cutoff)
        if run.stop - run.start >= 5:
            whole = sliding_window_view(head.valid[run], 5).all(axis=-1)
            for rows, bends in ((values, value_bends), (noise, noise_bends)):
                bends.append((sliding_window_view(rows[run], 5, axis=0)[whole] @ _FOURTH_DIFFERENCE) ** 2)
    removed[~head.valid] = 0
    energy = _local_energy(removed, head, runs)[head.valid]
    return np.concatenate(value_bends), np.concatenate(noise_bends), energy


def _hold(values: FloatArray, clip: _ClipTimes, runs: list[slice]) -> FloatArray:
    """Frames outside every run take the value of the frame nearest in time that is in one, within their segment."""
    known = np.zeros(len(values), dtype=bool)
    for run in runs:
        known[run] = True
    if known.all():
        return values
    cut = np.r_[0, np.flatnonzero(np.diff(clip.segments) != 0) + 1, len(values)]
    for start, stop in pairwise(cut):
        source = start + np.flatnonzero(known[start:stop])
        missing = start + np.flatnonzero(~known[start:stop])
        if len(source) and len(missing):
            after = np.searchsorted(source, missing).clip(0, len(source) - 1)
            before = (after - 1).clip(0)
            gap_before = np.abs(clip.times[missing] - clip.times[source[before]])
            gap_after = np.abs(clip.times[source[after]] - clip.times[missing])
            values[missing] = values[source[np.where(gap_before <= gap_after, before, after)]]
    return values
