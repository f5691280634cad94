"""What the fits believe of expressions: how large a weight usually is, and within which range it lies.

Weights are those of the head model's named, ARKit-like expressions: 0 at rest, 1 for the whole of one. As with
``landmark_model``, what each fit assumes stands here side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WHOLE = (-0.2, 1.1)
"""What head models have seen of a weight: a face may rest a little below 0 or go a little beyond a whole expression."""


@dataclass(frozen=True)
class ExpressionPrior:
    """What one fit believes of an expression weight.

    Attributes:
        sigma: standard deviation of a weight about its centre: 0, or what a network predicted.
        low, high: its range.
        hard: weights stay within the range; otherwise leaving it costs.
        step: a change by the fit is no larger than that.
    """

    sigma: float
    low: float = -np.inf
    high: float = np.inf
    hard: bool = True
    step: float = np.inf


REST = ExpressionPrior(0.15, step=0.5)
"""A person's rest expression, added to all frames (``tracking.rest``)."""

FRAME = ExpressionPrior(0.15, -0.4, 1.3, step=0.5)
"""What a frame has beyond the rest expression (``tracking.rest``). Within this range the correlation of ten clips' brow
heights with the observed ones is 0.96, within ``WHOLE`` 0.94, from -0.6 to 1.5 0.96 (``benchmarks expressions``)."""

FITTED_CODES = ExpressionPrior(0.3)
"""Codes without a regressor (``tracking.code_fit``), about 0. Without a range: not measured."""

REFINEMENT = ExpressionPrior(0.06, *WHOLE, hard=False)
"""Refinement (``refine``), about the feed-forward weights; beyond one sigma a distance costs linearly."""

SCAN = ExpressionPrior(0.25, 0.0, 1.0)
"""Registration to a scan (``heads.registration``), about 0. A narrower range than elsewhere: not measured."""

PHOTO = ExpressionPrior(0.3, -0.05, 1.1)
"""Linear heads fitted to photos (``training.photo_fit``), about 0; the range is that of the training's own heads."""

PHOTO_SEEN = ExpressionPrior(0.15, PHOTO.low, PHOTO.high)
"""The same about the weights that the networks see in the photo."""
