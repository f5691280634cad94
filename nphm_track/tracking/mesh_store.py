"""Where the meshes of a run go while it is drawn: PLY files, or one stream."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nphm_track.heads.mesh import CanonicalMesh
from nphm_track.rendering.ply import read_ply, write_ply
from nphm_track.tracking import render, surface
from nphm_track.tracking.mesh_stream import StreamWriter
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import VERTICES, WORK, RunFolder
from nphm_track.tracking.written import WrittenFiles

Vertices = NDArray[np.float32]


class MeshStore(Protocol):
    """Meshes by the row of the track, asked for and written in ascending order."""

    def __contains__(self, row: int) -> bool:
        """Whether an earlier, killed run left this row's mesh, so that it need not be carried again."""

    def read(self, row: int) -> Vertices:
        """Vertices [V, 3] of a row that is here."""

    def write(self, row: int, vertices: Vertices) -> Vertices:
        """Keep a row's vertices [V, 3], if it is one that is kept; returns them as they will be read back."""

    def finish(self) -> None:
        """All rows have been written."""


def open_store(
    kind: str, folder: RunFolder, mesh: CanonicalMesh, track: Track, every: int, written: WrittenFiles
) -> MeshStore:
    """The store of ``TrackOptions.mesh_format``; of the rows every ``every``-th is kept.

    ``written`` are the run's finished files, among which its meshes go.
    """
    store = MeshStream if kind == "npz" else MeshFiles
    return store(folder, mesh, track, every, written)


class MeshFiles:
    """A PLY file for each mesh."""

    def __init__(self, folder: RunFolder, mesh: CanonicalMesh, track: Track, every: int, written: WrittenFiles) -> None:
        self.folder, self.mesh, self.track, self.every, self.written = folder, mesh, track, every, written
        self._blocks = render.WrittenBlocks(folder, track, written)
        folder.mesh_path(0).parent.mkdir(exist_ok=True)

    def __contains__(self, row: int) -> bool:
        return self.every == 1 and row in self._blocks  # rows between kept ones are carried, from all before them

    def read(self, row: int) -> Vertices:
        return read_ply(self.folder.mesh_path(int(self.track.frame[row])))[0]

    def write(self, row: int, vertices: Vertices) -> Vertices:
        if row % self.every == 0:
            path = self.folder.mesh_path(int(self.track.frame[row]))
            write_ply(path, vertices, self.mesh.faces)
            self.written.add(path)
        return vertices

    def finish(self) -> None:
        pass


class MeshStream:
    """``meshes.npz``."""

    def __init__(self, folder: RunFolder, mesh: CanonicalMesh, track: Track, every: int, written: WrittenFiles) -> None:
        self.folder, self.every = folder, every
        self.rows = mesh_rows(track, every)
        frame = np.asarray(track.frame)[self.rows]
        work = folder.path / WORK / VERTICES
        self._stream = StreamWriter(work, mesh.vertices, mesh.faces, frame, self.rows // surface.BLOCK, written)

    def __contains__(self, row: int) -> bool:
        return self.every == 1 and self._stream.has(row // surface.BLOCK)

    def read(self, row: int) -> Vertices:
        return self._stream.read(int(np.searchsorted(self.rows, row)))

    def write(self, row: int, vertices: Vertices) -> Vertices:
        if row % self.every == 0:
            self._stream.write(int(np.searchsorted(self.rows, row)), vertices)
        return self._stream.rounded(vertices)

    def finish(self) -> None:
        self._stream.join(self.folder.mesh_stream)


def mesh_rows(track: Track, every: int) -> NDArray[np.int64]:
    """Rows of the track that have a mesh in a run that keeps every ``every``-th."""
    rows = np.arange(0, len(track), every)
    return rows[track.status[rows] != Status.LOST]
