"""A sequence of heads as one mesh and a few morph targets: a truncated singular value decomposition of its motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.frames import canonical, vertices
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run

SAMPLE = 192
"""Frames the targets are found in, spread over the clip; memory does not grow with its length."""
MAX_BYTES = 24_000_000
"""Of all targets as float32."""
TOLERANCE_PX = 0.05
"""No more targets are added once ``SHARE`` of the sample's vertices are off by no more than this on screen."""
CHECK_EVERY = 3
"""Targets added between two looks at the error, which cost as much as a target."""
SHARE = 0.999
"""A few vertices between the lips jump from side to side; targets for them alone would cost most of the file."""


@dataclass(frozen=True)
class Morphs:
    """vertices = base + sum_k weights[k] targets[k], metres, head space.

    Weights stay within 0 and 1, since Blender clamps the others; so the neutral head is not ``base`` but at ``rest``.
    """

    neutral: NDArray[np.float32]  # [V, 3] the neutral head
    base: NDArray[np.float32]  # [V, 3]
    faces: NDArray[np.int32]  # [F, 3]
    targets: NDArray[np.float32]  # [K, V, 3] displacements at weight 1
    weights: NDArray[np.float32]  # [N, K] of the rows asked for, 0..1
    rest: NDArray[np.float32]  # [K] weights of the neutral head, 0..1
    error_px: float  # distance from the mesh on screen, pixels, that ``SHARE`` of the vertices keep in every frame
    largest_error_px: float  # of any vertex in any frame


def fit_morphs(run: Run, rows: NDArray[np.int64], progress: Progress, most: int | None = None) -> Morphs:
    """Morph targets of the heads of ``rows``, ``most`` at most: found in a sample of them, weights and errors measured
    in all."""
    neutral, faces = canonical(run)
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    progress.stage("morph targets", len(sample) + len(rows))
    motion = np.empty((len(sample), neutral.size), np.float32)
    for i, (_, points) in enumerate(vertices(run, sample)):
        motion[i] = (points - neutral).ravel()
        progress.advance()
    limit = MAX_BYTES // neutral.nbytes
    basis = _basis(motion, _pixels_per_metre(run, sample), limit if most is None else min(limit, most))
    del motion
    weights = np.empty((len(rows), len(basis)), np.float32)
    errors = np.empty((len(rows), 2))
    for i, (row, points) in enumerate(vertices(run, rows)):
        moved = (points - neutral).ravel()
        weights[i] = basis @ moved
        off = np.linalg.norm((moved - weights[i] @ basis).reshape(-1, 3), axis=1) * _pixels_per_metre(run, row)
        errors[i] = np.quantile(off, SHARE), off.max()
        progress.advance()
    turned = weights.max(0, initial=0) < -weights.min(0, initial=0)  # the base stays near the neutral head
    signs = np.where(turned, np.float32(-1), np.float32(1))
    basis, weights = basis * signs[:, None], weights * signs
    low = weights.min(0, initial=0)
    span = weights.max(0, initial=0) - low
    span[span == 0] = 1
    targets = (basis * span[:, None]).reshape(-1, *neutral.shape)
    base = neutral + (low @ basis).reshape(neutral.shape)
    weights = np.clip((weights - low) / span, 0, 1)  # no more than rounding is clipped
    return Morphs(neutral, base, faces, targets, weights, -low / span, *errors.max(0).tolist())


def _basis(motion: NDArray[np.float32], pixels: NDArray[np.float64], limit: int) -> NDArray[np.float32]:
    """Orthonormal leading right singular vectors [K, 3V] of the motion [N, 3V]: as many as the tolerance needs,
    ``limit`` at most.

    They come from the Gram matrix [N, N], which is small; ``motion`` is used up.
    """
    values, vectors = np.linalg.eigh(motion.astype(np.float64) @ motion.T.astype(np.float64))
    basis: list[NDArray[np.float32]] = []
    for i, k in enumerate(np.argsort(-values)[:limit]):
        if i % CHECK_EVERY == 0 and _good_enough(motion, pixels):
            break
        direction = vectors[:, k].astype(np.float32) @ motion
        direction /= np.linalg.norm(direction)
        motion -= (motion @ direction)[:, None] * direction
        basis.append(direction)
    if not basis:
        return np.empty((0, motion.shape[1]), np.float32)
    return np.ascontiguousarray(np.linalg.qr(np.stack(basis, 1))[0].T)  # the last ones are small: rounding tilts them


def _good_enough(motion: NDArray[np.float32], pixels: NDArray[np.float64]) -> bool:
    """What is left of the motion cannot be seen."""
    off = np.linalg.norm(motion.reshape(len(motion), -1, 3), axis=2) * pixels[:, None].astype(np.float32)
    return bool(np.quantile(off, SHARE) <= TOLERANCE_PX)


def _pixels_per_metre(run: Run, rows: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """On-screen size of a metre across the line of sight, at the head's origin."""
    track = run.track
    return np.asarray(max(track.K[0, 0], track.K[1, 1]) / track.t[rows, ..., 2])
