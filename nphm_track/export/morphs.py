"""A sequence of heads as one mesh and morph targets, by a truncated SVD of the motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.frames import canonical, vertices
from nphm_track.export.glb_file import sparse
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run

SAMPLE = 320
"""Frames the targets are found in at a time: spread over the clip, then those that are worst; this bounds memory."""
ROUNDS = 4
PIECE = 4096
"""Columns that are multiplied at a time."""
MAX_BYTES = 64_000_000
"""Of all targets: 12 bytes a vertex, or 16 for each that moves when those are few."""
STILL_PX = 0.005
"""A target leaves those vertices alone that it never moves further than this on screen: skull, ears, neck."""
TOLERANCE_PX = 0.05
"""No more targets are added once ``SHARE`` of the vertices of every frame are off by no more than this on screen."""
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
    targets: NDArray[np.float32]  # [K, V, 3] displacements at weight 1, 0 where nothing is seen of them
    weights: NDArray[np.float32]  # [N, K] of the rows asked for, 0..1
    rest: NDArray[np.float32]  # [K] weights of the neutral head, 0..1
    error_px: float  # distance from the mesh on screen, pixels, that ``SHARE`` of the vertices keep in every frame
    largest_error_px: float  # of any vertex in any frame


def fit_morphs(run: Run, rows: NDArray[np.int64], progress: Progress, most: int | None = None) -> Morphs:
    """Morph targets of the heads of ``rows``, ``most`` at most: found in a sample of them, weights and errors measured
    in all."""
    neutral, faces = canonical(run)
    targets = _Targets(neutral.size // 3)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    for _ in range(ROUNDS):
        progress.stage("morph targets", len(chosen) + len(rows))
        motion = np.empty((len(chosen), neutral.size), np.float32)
        for i, (_, points) in enumerate(vertices(run, rows[chosen])):
            motion[i] = (points - neutral).ravel()
            progress.advance()
        full = targets.extend(motion, pixels_per_metre(run, rows[chosen]), most)
        del motion
        basis, shown = targets.arrays()
        weights = np.empty((len(rows), len(basis)), np.float32)
        errors = np.empty((len(rows), 2))
        for i, (row, points) in enumerate(vertices(run, rows)):
            moved = (points - neutral).ravel()
            weights[i] = basis @ moved
            off = np.linalg.norm((moved - weights[i] @ shown).reshape(-1, 3), axis=1) * pixels_per_metre(run, row)
            errors[i] = np.quantile(off, SHARE), off.max()
            progress.advance()
        chosen = np.sort(np.argsort(-errors[:, 0])[: min(SAMPLE, int((errors[:, 0] > TOLERANCE_PX).sum()))])
        if full or not len(chosen):
            break
    turned = weights.max(0, initial=0) < -weights.min(0, initial=0)  # the base stays near the neutral head
    signs = np.where(turned, np.float32(-1), np.float32(1))
    shown, weights = shown * signs[:, None], weights * signs
    low = weights.min(0, initial=0)
    span = weights.max(0, initial=0) - low
    span[span == 0] = 1
    displacements = (shown * span[:, None]).reshape(-1, *neutral.shape)
    base = neutral + (low @ shown).reshape(neutral.shape)
    weights = np.clip((weights - low) / span, 0, 1)  # no more than rounding is clipped
    return Morphs(neutral, base, faces, displacements, weights, -low / span, *errors.max(0).tolist())


class _Targets:
    """Orthonormal directions of motion [K, 3V] as they are found, and which vertices [K, V] each is seen to move."""

    def __init__(self, vertices: int) -> None:
        self.n, self.size = vertices, 0
        self.basis: list[NDArray[np.float32]] = []
        self.moving: list[NDArray[np.bool_]] = []

    def extend(self, motion: NDArray[np.float32], pixels: NDArray[np.float64], most: int | None) -> bool:
        """Add leading right singular vectors of what the targets so far leave of ``motion`` [N, 3V], which is used up.

        As many as the tolerance needs; True when ``most`` or ``MAX_BYTES`` of targets end it. They come from the Gram
        matrix [N, N], which is small.
        """
        for direction in self.basis:
            motion -= (motion @ direction)[:, None] * direction
        values, vectors = np.linalg.eigh(_gram(motion))
        for i, k in enumerate(np.argsort(-values)):
            if i % CHECK_EVERY == 0 and _good_enough(motion, pixels):
                return False
            direction = vectors[:, k].astype(np.float32) @ motion
            direction /= np.linalg.norm(direction)
            along = motion @ direction
            seen = np.linalg.norm(direction.reshape(-1, 3), axis=1) * np.abs(along * pixels).max() > STILL_PX
            if not seen.any():
                return False
            size = 16 * int(seen.sum()) if sparse(int(seen.sum()), self.n) else 12 * self.n
            if len(self.basis) == most or self.size + size > MAX_BYTES:
                return True
            motion -= along[:, None] * direction
            self.size += size
            self.basis.append(direction)
            self.moving.append(seen)
        return False

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The directions [K, 3V], and the same with zeros where nothing is seen to move."""
        if not self.basis:
            return (np.empty((0, 3 * self.n), np.float32),) * 2
        rows = np.ascontiguousarray(np.linalg.qr(np.stack(self.basis, 1))[0].T)  # rounding tilts the last ones
        return rows, rows * np.repeat(np.stack(self.moving), 3, 1)


def _gram(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, N] dot products of rows [N, M] in float64; in pieces, since a copy of all would be the largest array."""
    out = np.zeros((len(rows), len(rows)))
    for first in range(0, rows.shape[1], PIECE):
        piece = rows[:, first : first + PIECE].astype(np.float64)
        out += piece @ piece.T
    return out


def _good_enough(motion: NDArray[np.float32], pixels: NDArray[np.float64]) -> bool:
    """What is left of the motion cannot be seen in any frame."""
    off = np.linalg.norm(motion.reshape(len(motion), -1, 3), axis=2)
    return bool((np.quantile(off, SHARE, axis=1) * pixels).max() <= 0.9 * TOLERANCE_PX)  # the rest is for STILL_PX


def pixels_per_metre(run: Run, rows: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """On-screen size of a metre across the line of sight, at the head's origin."""
    track = run.track
    return np.asarray(max(track.K[0, 0], track.K[1, 1]) / track.t[rows, ..., 2])
