"""What the fits believe of landmarks: how far they are off, how many of them count, and how much each.

Seven fits look at the same 478 landmarks, each for something else and beside other evidence. What they assume is
decided here and nowhere else, side by side. Entries that differ without a measurement that says why, say so.

The errors of landmarks are not independent: neighbours err alike, and much of an error is the same in all frames of a
person (a landmark that the network puts elsewhere than the head model). ``evidence`` and ``shared_sigma`` are what the
fits know of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from nphm_track.conventions import (
    FACE_OUTLINE,
    IBUG68_FROM_478,
    INNER_LIPS,
    LIDS,
    LIPS,
    LOWER_LIP,
    OUTER_EYE_CORNERS,
)

if TYPE_CHECKING:  # run folders are read with this module, and need no torch
    from torch import Tensor

Landmarks = TypeVar("Landmarks", NDArray[np.floating], "Tensor")

REGIONS: dict[str, frozenset[int]] = {
    "outline": frozenset(FACE_OUTLINE),
    "mouth": frozenset(IBUG68_FROM_478[48:]),
    "lips": frozenset(LIPS),
    "lip seam": frozenset((*LOWER_LIP, *INNER_LIPS)),
    "lids": frozenset(LIDS),
}
"""Parts of the 478 landmarks that fits weigh differently."""
OPENINGS = (61, 67), (62, 66), (63, 65), (37, 41), (38, 40), (43, 47), (44, 46)
"""iBUG-68 points, upper and lower, of the inner lips and of the lids."""


@dataclass(frozen=True)
class LandmarkModel:
    """What one fit believes of landmarks.

    Attributes:
        sigma: standard deviation of a landmark in ``unit``; NaN where it is estimated from the residuals.
        unit: ``eyes``: the distance of the outer eye corners in the picture; ``face``: the RMS radius of the landmarks
            in the picture; ``head``: metres of the head; ``pixels``.
        outlier: standard deviations beyond which a landmark pulls less; infinite where the fit is not robust.
        evidence: independent landmarks that a frame counts as at most; infinite where every landmark counts.
        shared_sigma: the part of the error that all frames of a person share, in ``unit``; NaN: not told apart.
        opening: standard deviation, in ``unit``, of how far the rims of lips and lids are apart: neighbours err alike,
            so a gap is known better than either rim; infinite where only the points count.
        distance: standard deviation of the head's distance, of that of the pose given; infinite where it says nothing.
        weights: weight of the points of a region; 1 elsewhere. Of several regions the first counts.
    """

    sigma: float
    unit: str
    outlier: float = np.inf
    evidence: float = np.inf
    shared_sigma: float = np.nan
    opening: float = np.inf
    distance: float = np.inf
    weights: dict[str, float] = field(default_factory=dict)

    def of(self, points: Sequence[int]) -> NDArray[np.float64]:
        """Weights [N] of landmarks, given by their index among the 478."""
        return np.array([next((w for r, w in self.weights.items() if p in REGIONS[r]), 1.0) for p in points])


def openings(points: Sequence[int]) -> NDArray[np.int64]:
    """Places [P, 2] in ``points`` (of the 478 landmarks) of those that face each other across the lips and the lids."""
    place = {point: i for i, point in enumerate(points)}
    pairs = [(IBUG68_FROM_478[upper], IBUG68_FROM_478[lower]) for upper, lower in OPENINGS]
    return np.array(
        [[place[upper], place[lower]] for upper, lower in pairs if {upper, lower} <= set(place)], int
    ).reshape(-1, 2)


POSE = LandmarkModel(np.nan, "pixels", outlier=3, weights={"outline": 0.15, "mouth": 0.4})
"""Head pose (``cameras.pnp``). The outline slides along the silhouette as the head turns; where the mouth is depends on
the expression, which is not known well yet."""

FOCAL = LandmarkModel(np.nan, "pixels", outlier=3, evidence=20, weights=POSE.weights)
"""Focal length of a clip (``cameras.focal``)."""

REST = LandmarkModel(0.035, "eyes", shared_sigma=0.05, opening=0.01, weights=POSE.weights | {"lids": 3.0})
"""A person's rest expression (``tracking.rest``). ``sigma`` is the error from frame to frame, also that of another view
of a head, which the networks tell from another expression better than landmarks do; the shared error is that of the
landmark network and of a predicted identity: taken for an expression it would bend the head. A blink is seen by few
points, so lids count more. Without openings the lips of ten clips are in the mean up to
3.6 % of the eyes' distance closer than in the picture (closed ones pass through each other) and lids up to 2.6 %
further apart, with 0.02 1.1 and 1.5 %, with 0.01 0.7 and 0.8 %."""

FRAME = LandmarkModel(0.015, "eyes", opening=0.006, distance=0.004, weights={"outline": 0.05, "lids": 3.0})
"""What a frame's expression has beyond the rest expression (``tracking.rest``). The mouth counts in full here: it is
what is sought. Ten clips (``benchmarks expressions``): with 0.035 and no openings lids and brows move 0.89 and 0.7 as
far as in the picture, with 0.01 and 0.004 correlations fall again. Landmarks of eye corners go apart in squeezed eyes:
were ``distance`` not held, a nearer head with other expressions would explain it."""

FITTED_CODES = LandmarkModel(0.002, "head", outlier=5, evidence=20, weights=POSE.weights)
"""Codes without a regressor (``tracking.code_fit``). 2 mm are 0.02 of the eyes' distance, less than ``REST`` believes:
no prediction stands beside the landmarks here. That the mouth counts as little as in ``POSE`` is not measured."""

REFINEMENT = LandmarkModel(0.015, "eyes", outlier=3, evidence=45, weights={"lids": 10.0, "lips": 4.0})
"""Refinement (``refine``), beside dense normals and points: lids and lips are small, and what people look at. Of a
blink that the networks miss, only the landmarks of the lids tell. Outline points are left out."""

SCAN = LandmarkModel(0.0025, "head", outlier=1, evidence=60, weights={"lids": 3.0, "lip seam": 3.0})
"""Registration to a scan (``heads.registration``): landmarks found on pictures of the scan. Whether eyes and mouth are
open is seen by their rims; a closed lid is hardly a millimetre off an open eye's ball."""

PHOTO = LandmarkModel(0.05, "face", weights={"outline": 1 / 16})
"""Linear heads fitted to photos (``training.photo_fit``) from landmarks alone. Neighbours err alike and there is no
``evidence``, so the noise is larger than what a fit leaves."""

PHOTO_SEEN = LandmarkModel(0.2, "face", weights=PHOTO.weights)
"""The same beside weights that the networks see in the photo, next to which landmarks tell little
(``training/README.md`` has the figures)."""


def eye_distance(landmarks: Landmarks) -> Landmarks:
    """Distance [...] of the outer eye corners of landmarks [..., 478, D], in their unit."""
    right, left = OUTER_EYE_CORNERS
    gap = landmarks[..., right, :] - landmarks[..., left, :]
    return (gap**2).sum(-1) ** 0.5
