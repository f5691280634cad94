"""What the geometry networks say about face crops: normals and canonical points, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GeometryMaps:
    """What the geometry networks see in B face crops of n x n pixels.

    The centre of pixel (row i, column j) lies at the fraction ((j + 0.5) / n, (i + 0.5) / n) of its roi, turned with it
    (``faces.roi``).
    """

    normals: Tensor
    """[B, n, n, 3] unit, head frame (head rotation removed), outward."""
    points: Tensor
    """[B, n, n, 3] metres, head space (rigid pose removed, expression kept)."""
    normal_confidence: Tensor
    """[B, n, n] 0..1, 0 off the face."""
    point_confidence: Tensor
    """[B, n, n] 0..1, 0 off the face."""
    rois: Tensor
    """[B, 5] the crop's region in the frame (``faces.roi``): centre x, y, width, height, rotation; pixels of the
    original frame."""
    crops: Tensor
    """[B, 3, m, m] 0..1, the crops that the networks saw, of the same regions."""
