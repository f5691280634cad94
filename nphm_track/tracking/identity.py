"""Identity codes that come from outside a clip: files that hold one, and what the frames of a clip say about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import Arrays, finite_array, read_json, reading

_LIMIT = 1 << 20
"""Bytes of a file with one code, many times what it needs."""


@dataclass(frozen=True)
class Identity:
    """One person's identity code ``z_id`` [D_id] and the SHA-256 of the head model it belongs to, where known."""

    z_id: NDArray[np.float32]
    model: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers: the same code has the same digest in every kind of file."""
        return hashlib.sha256(np.ascontiguousarray(self.z_id, "<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class IdentityVotes:
    """What single frames of one clip say: codes [M, D_id] and their weights [M]."""

    z_id: NDArray[np.float32]
    weight: NDArray[np.float32]


def load_identity(path: str | Path) -> Identity:
    """The code of a run folder, or of an ``.npz`` or ``.json`` file with ``z_id`` (and ``model``, when it says so).

    Raises InputError when there is none.
    """
    path = Path(path)
    with reading(f"identity {path}", "an identity code"):
        if path.is_dir():
            with Arrays(path / "track.npz") as file:
                z_id: Any = file["z_id"]
            record = read_json(path / "run.json")
            model = record["models"].get(record["options"].get("head_model", "nphm-small"))
        elif path.suffix.lower() == ".json":
            record = read_json(path, _LIMIT)
            z_id, model = record["z_id"], record.get("model")
        else:
            with Arrays(path, _LIMIT) as file:
                z_id = file["z_id"]
                model = str(file["model"]) if "model" in file else None
        z_id = finite_array(z_id, (None,), np.float32)
        if not len(z_id) or not (model is None or isinstance(model, str)):
            raise ValueError("it has no numbers" if not len(z_id) else "its model is no text")
    return Identity(z_id, model)


def code_for(path: str | Path, head_model: str, length: int) -> NDArray[np.float32]:
    """The code [length] in a file, for the head model with this SHA-256. Raises InputError when it is another's."""
    given = load_identity(path)
    if given.model not in (None, head_model) or len(given.z_id) != length:
        raise InputError(f"identity {path}: it belongs to another head model")
    return given.z_id


def merge_identity(z_id: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """One identity [D] from many frames [T, D]: their weighted geometric median, which outliers cannot drag."""
    mean = np.average(z_id, axis=0, weights=weight)
    for _ in range(20):
        distance = np.linalg.norm(z_id - mean, axis=1)
        w = weight / np.maximum(distance, 0.1 * np.median(distance) + 1e-9)
        mean = np.average(z_id, axis=0, weights=w)
    return mean.astype(np.float32)
