"""What the fits believe of expressions: how large a weight usually is, and within which range it lies.

Weights are those of the head model's named, ARKit-like expressions: 0 at rest, 1 for the whole of one. As with
``landmark_model``, what each fit assumes stands here side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WHOLE = (-0.2, 1.1)
"""What head models have seen of a weight: a face may rest a little below 0 or go a little beyond a whole expression."""


@dataclass(frozen=True)
class ExpressionPrior:
    """What one fit believes of an expression weight.

    Attributes:
        sigma: standard deviation of a weight about its centre: 0, or what a network predicted.
        low, high: its range.
        positive: beginnings of the names of those that are not below 0 even where ``low`` is.
        hard: weights stay within the range; otherwise leaving it costs.
        step: a change by the fit is no larger than that.
    """

    sigma: float
    low: float = -np.inf
    high: float = np.inf
    positive: tuple[str, ...] = ()
    hard: bool = True
    step: float = np.inf

    def lowest(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Lower ends [E] of the ranges of the weights ``names``."""
        return np.array([max(self.low, 0.0) if name.startswith(self.positive) else self.low for name in names])


REST = ExpressionPrior(0.15, step=0.5)
"""A person's rest expression, added to all frames (``tracking.rest``)."""

FRAME = ExpressionPrior(0.3, -0.4, 1.3, positive=("jaw", "eye"))
"""The weights of a frame, about the predicted ones and the rest expression (``tracking.rest``). Within this range the
correlation of ten clips' brow heights with the observed ones is 0.96, within ``WHOLE`` 0.94 (``benchmarks
expressions``). A jaw that closes further than its teeth let it stands for a chin shorter than the predicted head's;
other shapes close the lips then. Were no weight to be negative, jaws would open 0.1 further to make up for it, and
chins be 1.3 % of the eyes' distance lower."""

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
