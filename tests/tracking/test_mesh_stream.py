from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError
from nphm_track.tracking.mesh_stream import STEP, StreamReader, StreamWriter
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.written import RECORD, WrittenFiles

V, M = 50, 7
RNG = np.random.default_rng(0)
CANONICAL = RNG.normal(0, 0.1, (V, 3)).astype(np.float32)
MESHES = (CANONICAL + np.cumsum(RNG.normal(0, 0.02, (M, V, 3)), 0)).astype(np.float32)
FRAME, BLOCK = np.arange(M) * 3, np.arange(M) // 3
FACES = np.array([[0, 1, 2], [2, 3, 4]])


def writer(folder: Path) -> StreamWriter:
    written = WrittenFiles(folder, ObservationLog(folder / "work" / "written.bin", RECORD))
    return StreamWriter(folder / "work", CANONICAL, FACES, FRAME, BLOCK, written)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    first = writer(tmp_path)
    for index in range(4):  # killed in the second block
        first.write(index, MESHES[index])
    again = writer(tmp_path)
    assert [again.has(block) for block in range(3)] == [True, False, False]
    np.testing.assert_array_equal(again.read(2), again.rounded(MESHES[2]))
    block = tmp_path / "work" / "00000.npy"
    content = block.read_bytes()
    block.write_bytes(bytes(len(content)))  # a power cut
    assert not writer(tmp_path).has(0)
    block.write_bytes(content)
    for index in range(3, M):
        again.write(index, MESHES[index])
    again.join(tmp_path / "meshes.npz")
    return tmp_path / "meshes.npz"


def test_round_trip(path: Path, tmp_path: Path) -> None:
    reader = StreamReader(path)
    np.testing.assert_array_equal(reader.faces, FACES)
    for index in (6, 0, 3, 1, 5, 2, 4):
        vertices = reader.vertices(int(FRAME[index]))
        assert vertices.dtype == np.float32
        np.testing.assert_array_equal(vertices, writer(tmp_path).rounded(MESHES[index]))
        np.testing.assert_allclose(vertices, MESHES[index], atol=0.51 * STEP, rtol=0)
    assert {p.name for p in tmp_path.iterdir()} == {"work", "meshes.npz"}
    with pytest.raises(InputError, match="no mesh of frame 1"):
        reader.vertices(1)


def test_damaged_files(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"meshes\.npz"):
            StreamReader(path)
    for at in range(100, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        try:
            reader = StreamReader(path)
            for frame in FRAME:
                reader.vertices(int(frame))
        except InputError as error:
            assert "\n" not in str(error)
    with pytest.raises(InputError, match=r"nothing\.npz cannot be read"):
        StreamReader(tmp_path / "nothing.npz")
