"""Colours of wide-gamut and high-dynamic-range video brought to BT.709, the colours that everything here works in.

Numbers: ITU-R BT.2100 (HLG, PQ), BT.1886 (SDR displays), BT.2408 (diffuse white at 203 cd/m2), BT.2087 (gamuts).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

DIFFUSE_WHITE = 203.0
"""cd/m2 of what SDR calls white (BT.2408)."""
HLG_PEAK = 1000.0
"""cd/m2 of the display that HLG's system gamma of 1.2 belongs to."""
KNEE = 0.7
"""Linear light, of SDR's white, from which highlights are compressed; skin stays below."""
GRID = 33

_GAMUTS: dict[str, FloatArray] = {
    "BT.2020": np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
    ),
    "Display P3": np.array(
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]
    ),
}  # fmt: skip
"""Linear RGB of a gamut to linear BT.709."""
_PRIMARIES = {9: "BT.2020", 11: "Display P3", 12: "Display P3"}
Transfer = Literal["PQ", "HLG", "SDR"]
_TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}
_BT2020_MATRICES = (9, 10)


@dataclass(frozen=True)
class ColourSpace:
    """A colour space other than BT.709: the name of its gamut, and its transfer function."""

    gamut: str
    transfer: Transfer

    @classmethod
    def of(cls, primaries: int, transfer: int, matrix: int) -> ColourSpace | None:
        """From the code points of ITU-T H.273; None for SDR in the colours of BT.709 and its elders."""
        curve: Transfer = _TRANSFERS.get(transfer, "SDR")
        gamut = _PRIMARIES.get(primaries, "BT.2020" if curve != "SDR" or matrix in _BT2020_MATRICES else "")
        return cls(gamut, curve) if gamut else None

    def __str__(self) -> str:
        return self.gamut if self.transfer == "SDR" else f"{self.gamut} {self.transfer}"

    def to_sdr(self, coded: FloatArray) -> FloatArray:
        """Coded RGB [..., 3] of BT.709, 0..1, from that of this space, 0..1.

        Light between black and a little below diffuse white is shown as it is; what is brighter is compressed.
        """
        light = _LIGHT[self.transfer](coded) @ _GAMUTS[self.gamut].T
        return np.clip(_compressed(light, _PEAK[self.transfer]), 0, 1) ** (1 / 2.4)


def _sdr_light(coded: FloatArray) -> FloatArray:
    return coded**2.4


def _hlg_light(coded: FloatArray) -> FloatArray:
    """With the system gamma on each channel, as SDR displays apply theirs, which keeps SDR's saturation (BT.2390)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    return scene**1.2 * (HLG_PEAK / DIFFUSE_WHITE)


def _pq_light(coded: FloatArray) -> FloatArray:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = coded ** (1 / m2)
    return (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * (10_000 / DIFFUSE_WHITE)


_LIGHT = {"SDR": _sdr_light, "HLG": _hlg_light, "PQ": _pq_light}
"""Coded RGB to light on the display, 1 at diffuse white."""
_PEAK = {"SDR": 1.0, "HLG": HLG_PEAK / DIFFUSE_WHITE, "PQ": 1000.0 / DIFFUSE_WHITE}
"""Light that becomes SDR's white; phones and graded films use PQ up to 1000 cd/m2."""


def _compressed(light: FloatArray, peak: float) -> FloatArray:
    """Light [..., 3] with the brightest channel brought from KNEE..peak to KNEE..1 and the hue kept."""
    if peak <= 1:
        return light
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-9)
    x, end = (brightest - KNEE) / (1 - KNEE), (peak - KNEE) / (1 - KNEE)
    bent = KNEE + (1 - KNEE) * x * (1 + x / end**2) / (1 + x)
    return np.where(brightest > KNEE, light * (bent / brightest), light)


@contextmanager
def sdr_cube(space: ColourSpace) -> Iterator[Path]:
    """``ColourSpace.to_sdr`` as a .cube file, which FFmpeg's ``lut3d`` reads; it is gone when the block ends."""
    handle, name = tempfile.mkstemp(suffix=".cube")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(_cube_text(space))
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@lru_cache(maxsize=2)
def _cube_text(space: ColourSpace) -> str:
    steps = np.linspace(0, 1, GRID)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red runs fastest
    values = space.to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3))
    return f"LUT_3D_SIZE {GRID}\n" + "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in values.tolist()) + "\n"
