"""The seven points of the NoW protocol: reading them from files, and the unit of the scan they lie on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from nphm_track.conventions import POINTS7_478
from nphm_track.errors import InputError
from nphm_track.files.reading import finite_array, read_bytes, read_json, read_npy, read_text, reading

FloatArray = NDArray[np.float64]
LARGEST_XML = 1 << 16
"""Bytes of a file of picked points, which may name itself many times over."""
NAMES7 = tuple(POINTS7_478)
"""Order of the seven points wherever they are an array."""
EYES_APART = 0.06, 0.13
"""Metres; the outer eye corners of any face are so far apart."""
UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
"""Metres in one of each."""


@dataclass(frozen=True)
class Points7:
    """Points [7, 3] in the order of ``NAMES7`` and the nose tip [3] where the file has it, in the file's unit."""

    points: FloatArray
    nose_tip: FloatArray | None = None


def read_points7(path: str | Path) -> Points7:
    """Read seven points: JSON (named points, ``nose_tip`` among them or not, or a list of seven), ``.npy``, text with
    seven rows, or MeshLab's ``.pp`` in the order of ``NAMES7``. Raises InputError when it is something else.
    """
    path = Path(path)
    tip = None
    with reading(path, f"a file of seven points ({', '.join(NAMES7)})"):
        if path.suffix == ".json":
            points, tip = _from_json(read_json(path, finite=False))
        elif path.suffix == ".npy":
            points = read_npy(path)
        elif path.suffix == ".pp":
            picked = ElementTree.fromstring(read_bytes(path, LARGEST_XML)).iter("point")
            points = [[float(point.attrib[axis]) for axis in "xyz"] for point in picked]
        else:
            text = read_text(path)
            points = np.loadtxt(text.splitlines(), delimiter="," if "," in text else None, ndmin=2, max_rows=8)
        return Points7(checked7(points), None if tip is None else finite_array(tip, (3,)))


def _from_json(content: Any) -> tuple[Any, Any]:
    if not isinstance(content, dict):
        return content, None
    named = content.get("points7", content)
    points = [named[name] for name in NAMES7] if isinstance(named, dict) else named
    return points, content.get("nose_tip")


def checked7(points: Any) -> FloatArray:
    """The points as [7, 3]. Raises InputError when they are not seven finite ones."""
    array = np.asarray(points, np.float64)
    if array.shape != (7, 3) or not np.isfinite(array).all():
        raise InputError(f"seven finite points are needed ({', '.join(NAMES7)}), not an array of {list(array.shape)}")
    return array


def unit_of(points: FloatArray) -> str:
    """Unit (m, cm or mm) in which the outer eye corners of seven points [7, 3] are as far apart as in a face.

    Raises InputError when there is none: errors in millimetres need a scan of known size.
    """
    apart = float(np.linalg.norm(points[0] - points[3]))
    for unit, metres in UNITS.items():
        if EYES_APART[0] <= apart * metres <= EYES_APART[1]:
            return unit
    raise InputError(
        f"the outer eye corners are {apart:.4g} apart, no face in m, cm or mm: wrong points, or an arbitrary unit"
    )
