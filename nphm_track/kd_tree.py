"""Nearest neighbours among points."""

from __future__ import annotations

from numpy.typing import ArrayLike
from scipy.spatial import cKDTree


def kd_tree(points: ArrayLike) -> cKDTree:
    """scipy's tree of points [N, D], split in the middle.

    The default splits at medians. Where most points share a smallest coordinate, such as 0, that is the next larger
    number; next to 0 it is a denormal one, which counts as 0 where these are flushed (``_runtime``): points are never
    parted, and the recursion ends in a segmentation fault.
    """
    return cKDTree(points, balanced_tree=False)
