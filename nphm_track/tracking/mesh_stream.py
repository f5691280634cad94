"""``meshes.npz``: the meshes of a run as one compressed stream of vertices instead of a PLY file for each.

It holds ``frame`` [M] and ``block`` [M] of each mesh, ``faces`` [F, 3], ``canonical`` [V, 3] (metres, head space),
``step`` (metres), and for each block ``offsets_<block>``, int16 [n, V, 3]: whole steps from the canonical vertex, of
which each mesh of a block but the first holds the change since the one before, modulo 2^16. What it gives back is off
by half a step at most, 5 micrometres, in each coordinate.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError, OutputError
from nphm_track.files.reading import Arrays, finite_array, reading
from nphm_track.tracking.records import replacing
from nphm_track.tracking.written import WrittenFiles

STEP = 1e-5
OFFSETS = "offsets_{:05d}"
Vertices = NDArray[np.float32]


class StreamWriter:
    """Keeps finished blocks in files of a work folder, so that a killed run loses one at most; joins them in the end.

    Args:
        work: folder of the blocks.
        canonical: vertices [V, 3], metres, head space.
        faces: [F, 3].
        frame: frame of the clip of each mesh [M], ascending.
        block: block of each mesh [M], ascending.
        written: the run's finished files, which blocks that are finished are among.
    """

    def __init__(
        self,
        work: Path,
        canonical: Vertices,
        faces: NDArray[Any],
        frame: NDArray,
        block: NDArray,
        written: WrittenFiles,
    ) -> None:
        self.work, self.frame, self.block, self.written = work, frame, block, written
        self.canonical, self.faces = np.asarray(canonical, np.float32), np.asarray(faces, np.int32)
        self._pending: list[NDArray[np.int16]] = []
        work.mkdir(parents=True, exist_ok=True)

    def has(self, block: int) -> bool:
        """Whether a block is finished."""
        return self._path(block) in self.written

    def read(self, index: int) -> Vertices:
        """Vertices [V, 3] of the ``index``-th mesh, whose block is finished."""
        block = int(self.block[index])
        steps = np.load(self._path(block), mmap_mode="r")
        return _vertices(steps[index - int(np.searchsorted(self.block, block))], self.canonical, STEP)

    def rounded(self, vertices: Vertices) -> Vertices:
        """The vertices [V, 3] as they will be read back."""
        return _vertices(self._steps(vertices), self.canonical, STEP)

    def write(self, index: int, vertices: Vertices) -> None:
        """Add the ``index``-th mesh; those of a block come in order. Raises OutputError when it cannot be written."""
        block = int(self.block[index])
        first, last = np.flatnonzero(self.block == block)[[0, -1]]
        if index == first:
            self._pending = []
        self._pending.append(self._steps(vertices))
        if index == last:
            try:
                with replacing(self._path(block)) as partial, open(partial, "wb") as file:
                    np.save(file, np.stack(self._pending))
                self.written.add(self._path(block))
            except OSError as error:
                raise OutputError(f"cannot write {self._path(block)}: {error.strerror or error}") from None

    def join(self, path: Path) -> None:
        """Write the stream, all blocks being finished. Raises OutputError when it cannot be written."""
        head = {
            "frame": self.frame,
            "block": self.block,
            "faces": self.faces,
            "canonical": self.canonical,
            "step": np.array(STEP),
        }
        try:
            with (
                replacing(path) as partial,
                zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
            ):
                for name, values in head.items():
                    _add(archive, name, values)
                for block in np.unique(self.block).tolist():
                    steps = np.load(self._path(block))
                    steps[1:] -= steps[:-1].copy()
                    _add(archive, OFFSETS.format(block), steps)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None

    def _steps(self, vertices: Vertices) -> NDArray[np.int16]:
        limit = np.iinfo(np.int16).max  # a third of a metre, beyond any head
        return np.clip(np.rint((vertices - self.canonical) / STEP), -limit, limit).astype(np.int16)

    def _path(self, block: int) -> Path:
        return self.work / f"{block:05d}.npy"


class StreamReader:
    """Reads a stream, a block at a time. Raises InputError when the file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "a stream of meshes"), Arrays(path) as file:
            self.frame, self.block = finite_array(file["frame"], (None,), np.int64), file["block"]
            self._step = float(file["step"])
            self.canonical: Vertices = finite_array(file["canonical"], (None, 3), np.float32)
            self.faces: NDArray[np.int32] = finite_array(file["faces"], (None, 3), np.int32)
            if self.block.shape != self.frame.shape:
                raise ValueError("arrays that do not fit together")
            if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < len(self.canonical):
                raise ValueError("faces of vertices it does not have")
        self._loaded, self._steps = -1, np.empty((0, 0, 3), np.int16)

    def vertices(self, frame: int) -> Vertices:
        """Vertices [V, 3] (head space, metres) of a frame of the clip. Raises InputError when it has no mesh."""
        index = int(np.searchsorted(self.frame, frame))
        if index == len(self.frame) or self.frame[index] != frame:
            raise InputError(f"cannot read {self.path}: it has no mesh of frame {frame}")
        block = int(self.block[index])
        if block != self._loaded:
            self._steps, self._loaded = self._load(block), block
        return _vertices(self._steps[index - int(np.searchsorted(self.block, block))], self.canonical, self._step)

    def _load(self, block: int) -> NDArray[np.int16]:
        with reading(self.path, "a whole stream of meshes"), Arrays(self.path) as file:
            offsets = file[OFFSETS.format(block)]
            if offsets.dtype != np.int16 or offsets.shape != (np.sum(self.block == block), *self.canonical.shape):
                raise ValueError(f"block {block} has shape {offsets.shape}")
        return np.cumsum(offsets, axis=0, dtype=np.int16)


def _vertices(steps: NDArray[np.int16], canonical: Vertices, step: float) -> Vertices:
    return canonical + steps.astype(np.float32) * np.float32(step)


def _add(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asarray(values, order="C"), allow_pickle=False)
