"""Training images with what is known of them, in tar shards of WebDataset's layout.

A sample is ``KEY.jpg``, the crop of a face, and ``KEY.npz``, its columns (``COLUMNS``). Shards are read at any row, so
that a step's samples depend on its number alone: not on the number of processes, nor on where a run began.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nphm_track.errors import InputError

COLUMNS = {
    "roi": "[5] region of the crop in the frame (faces.roi)",
    "size": "[2] of the frame, px",
    "K": "[3, 3] of the frame",
    "R": "[3, 3] head to camera",
    "t": "[3] metres",
    "landmarks": "[478, 3] px of the frame",
    "blendshapes": "[52] scores",
    "normals": "[n, n, 3] int8, unit normals times 127, head space; 0 off the face",
    "points": "[n, n, 3] metres, head space",
    "mask": "[n, n] the face",
}
REGISTERED = {
    "z_id": "[D_id] of the head model that the shard was made for",
    "z_ex": "[D_ex]",
    "surface": "[P, 3] points of the registered surface, metres, head space",
}
"""Columns of samples whose head is known, beside the others: 3-D data."""
Sample = Mapping[str, Any]
"""Arrays by name."""


def write_shard(path: str | Path, samples: Iterable[tuple[bytes, Sample]]) -> int:
    """Write JPEG crops and columns as one shard, atomically; returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(path.name + ".partial"), 0
    with tarfile.open(partial, "w") as tar:
        for count, (jpeg, columns) in enumerate(samples, 1):
            packed = io.BytesIO()
            np.savez_compressed(packed, **columns)
            for suffix, data in (("jpg", jpeg), ("npz", packed.getvalue())):
                member = tarfile.TarInfo(f"{path.stem}_{count - 1:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    os.replace(partial, path)
    return count


class Samples:
    """All shards (``*.tar``) of a folder, read row by row."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError when the folder has no shards, or one that cannot be read."""
        paths = sorted(Path(folder).glob("*.tar"))
        self.rows = [row for path in paths for row in _rows(path)]
        if not self.rows:
            raise InputError(f"no samples in {folder}: *.tar with pairs of .jpg and .npz")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> dict[str, NDArray[Any]]:
        """The columns of a sample, and ``jpeg`` as bytes [N]."""
        path, *places = self.rows[row]
        with open(path, "rb") as file:
            jpeg, packed = (os.pread(file.fileno(), size, offset) for offset, size in places)
        try:
            with np.load(io.BytesIO(packed), allow_pickle=False) as columns:
                return {**columns, "jpeg": np.frombuffer(jpeg, np.uint8)}
        except (ValueError, OSError, KeyError) as error:
            raise InputError(f"{path}: sample {row} is damaged ({error})") from None

    def take(self, rows: Sequence[int], pool: ThreadPoolExecutor | None = None) -> dict[str, Any]:
        """Columns of some rows, stacked; ``jpeg`` as a list."""
        found = list((pool.map if pool else map)(self.read, rows))
        return {k: [s[k] for s in found] if k == "jpeg" else np.stack([s[k] for s in found]) for k in found[0]}


def _rows(path: Path) -> Iterator[tuple[Path, tuple[int, int], tuple[int, int]]]:
    """Place and size of each sample's two files in a shard."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                found.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is no shard ({error})") from None
    for parts in found.values():
        if "jpg" in parts and "npz" in parts:
            yield path, parts["jpg"], parts["npz"]


def read_crops(jpegs: Sequence[NDArray[np.uint8]], size: int, pool: ThreadPoolExecutor | None = None) -> Tensor:
    """Crops [B, 3, size, size] in 0..1 of JPEG pictures [N] bytes of any size."""

    def one(jpeg: NDArray[np.uint8]) -> Tensor:
        picture = Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    return torch.stack(list((pool.map if pool else map)(one, jpegs))).float() / 255


def draw_rows(count: int, of: int, seed: int, step: int) -> Tensor:
    """Rows [count] of ``of`` samples for a step: every sample once before one comes again.

    Steps walk through a new permutation in each epoch; the same in every process.
    """
    places = torch.arange(step * count, (step + 1) * count)
    epochs = places // of
    out = torch.empty(count, dtype=torch.int64)
    for epoch in epochs.unique().tolist():
        order = torch.randperm(of, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        here = epochs == epoch
        out[here] = order[places[here] % of]
    return out
