"""Whatever happens to a side file, its reader takes it or refuses it in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are not installed
from benchmarks.side_files import WORDS, attempt, damaged, make_seeds

NAMES = (
    "camera.json", "transforms.json", "camera.yaml", "code.npz", "code.json", "track.npz", "run.json", "mesh.ply",
    "meshes.npz", "model.safetensors", "scan.ply", "scan.obj", "scan.stl", "scan.off", "scan.glb", "scan.gltf",
    "text.ply", "points7.json", "points7.npy", "points7.txt", "points7.pp", "points68.json", "points68.npy",
    "points68.txt", "takes.csv", "takes.json", "recipe.toml", "session.json", "image.png", "image.jpg", "image.webp",
    "image.bmp", "image.tif", "grey16.png", "photo.jpg",
)  # fmt: skip
Seeds = dict[str, tuple[Path, Callable[[Path], Any]]]
CUTS = st.tuples(st.integers(0, 1000), st.integers(0, 100), st.one_of(st.sampled_from(WORDS), st.binary(max_size=8)))
"""Where something is cut out, how much of it (thousandths of the file), and what takes its place."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def cut(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    for where, much, word in cuts:
        start = where * len(data) // 1000
        data = data[:start] + word + data[start + much * len(data) // 1000 :]
    return data


def test_every_kind_of_file_is_tried_and_readable(seeds: Seeds) -> None:
    assert set(NAMES) == set(seeds)
    unreadable = {name: attempt(read, path) for name, (path, read) in seeds.items()}
    assert {name: end for name, end in unreadable.items() if end[0] != "read"} == {}


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(cuts=st.lists(CUTS, min_size=1, max_size=3), seed=st.one_of(st.none(), st.integers(0, 1000)))
@example(cuts=[(0, 1000, b"")], seed=None)
@example(cuts=[(0, 1000, b"[" * 200_000)], seed=None)
@example(cuts=[(0, 1000, b"\0" * 1000)], seed=None)
def test_a_damaged_file_is_read_or_refused_in_one_line(
    seeds: Seeds, name: str, cuts: list[tuple[int, int, bytes]], seed: int | None
) -> None:
    original, read = seeds[name]
    data = original.read_bytes()
    data = cut(data, cuts) if seed is None else damaged(data, np.random.default_rng(seed))
    path = original.with_name(f"damaged_{name}")
    path.write_bytes(data)
    ending, reason = attempt(read, path)
    assert ending != "finding", reason


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "loop"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_in_one_line(seeds: Seeds, tmp_path: Path, name: str, kind: str) -> None:
    path, read = tmp_path / name, seeds[name][1]
    if name in ("session.json",) or (name == "photo.jpg"):
        pytest.skip("it is found in a folder, or says nothing")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    ending, reason = attempt(read, path)
    assert ending == "refused" and str(path.name) in reason, (ending, reason)
