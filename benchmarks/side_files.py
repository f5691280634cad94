"""Side files damaged at random; every reader must take them or refuse them in one line.

Small valid calibrations, identity codes, runs' records, meshes, scans, points, lists, recipes, models and images are
mutated, in bytes and in words that readers stumble over, and read. Any other exception than one of the package is a
finding, and its file is kept in --out.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image

from benchmarks.fuzz import mutate
from benchmarks.harness import Out, Report, table
from nphm_track.batch.manifest import Job, Manifest
from nphm_track.batch.plan import find_takes
from nphm_track.cameras.calibration_file import read_calibration
from nphm_track.cameras.intrinsics import focal_from_exif
from nphm_track.errors import NphmTrackError
from nphm_track.evaluation.points7 import NAMES7, read_points7
from nphm_track.models import read_weights, write_weights
from nphm_track.rendering.ply import read_ply, write_ply
from nphm_track.scans.landmarks import read_landmarks
from nphm_track.scans.reading import read_scan
from nphm_track.tracking.identity import load_identity
from nphm_track.tracking.mesh_stream import StreamReader
from nphm_track.tracking.records import InputInfo, RunInfo, Track
from nphm_track.training.recipe import read_recipe
from nphm_track.video.reader import read_image

WORDS = (
    b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 400, b"[" * 50_000, b"{" * 50_000, b"null", b"[]", b"{}", b"true",
    b'"word"', b"\xff\xfe", b"\0" * 64, b"\n" * 500, b"99999999999", b".", b"e", b",", b":",
)  # fmt: skip
"""What is put into text, also into the text inside other files."""

Read = Callable[[Path], Any]


def run(out: Out, files: int = 50_000, seed: int = 0, slow: float = 10.0) -> Report:
    """Counts how the files ended; one that took longer than ``slow`` seconds is a finding, too."""
    rng = np.random.default_rng(seed)
    counts: Counter[tuple[str, str]] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as scratch:
        seeds = make_seeds(Path(scratch))
        for number in range(files):
            name = list(seeds)[number % len(seeds)]
            original, read = seeds[name]
            path = original.with_name(f"damaged_{original.name}")
            path.write_bytes(damaged(original.read_bytes(), rng))
            start = time.perf_counter()
            ending, reason = attempt(read, path)
            took = time.perf_counter() - start
            if took > slow:
                ending, reason = "finding", f"took {took:.0f} s"
            counts[name, ending] += 1
            if ending == "finding":
                findings.append(f"{number:05d}_{original.name}: {reason}")
                print(findings[-1], flush=True)
                out.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, out / f"{number:05d}_{original.name}")
    kinds = ("read", "refused", "finding")
    rows = [[name, *(counts[name, kind] for kind in kinds)] for name in seeds]
    facts = {"counts": {f"{name} {kind}": n for (name, kind), n in counts.items()}, "findings": findings}
    return Report(facts, [table(["file", *kinds], rows), *findings], not findings)


def attempt(read: Read, path: Path) -> tuple[str, str]:
    """How reading a file ended, "read", "refused" or "finding", and what it said."""
    try:
        read(path)
        return "read", ""
    except NphmTrackError as error:
        lines = str(error).count("\n") + 1
        return ("refused", str(error)) if lines == 1 else ("finding", f"{lines} lines: {error}")
    except Exception as error:
        return "finding", f"{type(error).__name__}: {error}"


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy with bytes changed, or words put into it, or both."""
    if rng.random() < 0.5:
        data = mutate(data, rng)
    for _ in range(rng.integers(0, 3)):
        start = int(rng.integers(len(data) + 1))
        word = WORDS[rng.integers(len(WORDS))]
        data = data[:start] + word + data[start + int(rng.choice([0, 1, len(word)])) :]
    return data


def make_seeds(folder: Path) -> dict[str, tuple[Path, Read]]:
    """Small valid files by name, each with its reader."""
    torch.manual_seed(0)
    seeds: dict[str, Read] = {}
    for make in (_cameras, _codes_and_runs, _scans, _points, _lists, _images):
        seeds |= make(folder)
    return {name: (folder / name, read) for name, read in seeds.items()}


def _cameras(folder: Path) -> dict[str, Read]:
    K = [[500.0, 0, 320], [0, 500, 180], [0, 0, 1]]
    (folder / "camera.json").write_text(json.dumps({"K": K, "size": [640, 360], "distortion": [0.1, 0, 0, 0, 0]}))
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 500.0, "cx": 320, "cy": 180, "w": 640, "h": 360}))
    (folder / "camera.yaml").write_text(
        "%YAML:1.0\n---\nimage_width: 640\nimage_height: 360\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n"
        "   dt: d\n   data: [ 500., 0., 320., 0., 500., 180., 0., 0., 1. ]\n"
    )
    return dict.fromkeys(("camera.json", "transforms.json", "camera.yaml"), read_calibration)


def _codes_and_runs(folder: Path) -> dict[str, Read]:
    rng = np.random.default_rng(0)
    code = rng.standard_normal(8).astype(np.float32)
    np.savez(folder / "code.npz", z_id=code, model=np.array("ab" * 32))
    (folder / "code.json").write_text(json.dumps({"z_id": code.tolist(), "model": "ab" * 32}))
    arrays: dict[str, Any] = {f.name: np.zeros((2, 3), np.float32) for f in fields(Track)}
    np.savez(folder / "track.npz", **arrays)
    info = InputInfo(path="clip.mp4", sha256="ab", size=1, width=4, height=4)
    RunInfo(input=info, options={"start": None, "every": 1, "meshes": True}).save(folder / "run.json")
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    write_ply(folder / "mesh.ply", corners, faces)
    np.savez_compressed(
        folder / "meshes.npz", frame=np.arange(2), block=np.zeros(2, int), step=1e-5, canonical=corners, faces=faces,
        offsets_00000=np.zeros((2, 4, 3), np.int16),
    )  # fmt: skip
    write_weights(folder / "model.safetensors", {"layer.weight": torch.randn(4, 4)}, {"kind": "x", "head": {"a": [1]}})
    return {
        "code.npz": load_identity, "code.json": load_identity, "track.npz": Track.load, "run.json": RunInfo.load,
        "mesh.ply": read_ply, "meshes.npz": _read_stream, "model.safetensors": read_weights,
    }  # fmt: skip


def _read_stream(path: Path) -> None:
    stream = StreamReader(path)
    for frame in stream.frame[:2].tolist():
        stream.vertices(frame)


def _scans(folder: Path) -> dict[str, Read]:
    ball = trimesh.creation.icosphere(1)
    ball.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (len(ball.vertices), 4), np.uint8)
    names = [f"scan.{kind}" for kind in ("ply", "obj", "stl", "off", "glb", "gltf")]
    for name in names[:5]:
        ball.export(folder / name)
    for name, content in ball.export(file_type="gltf").items():
        (folder / (names[5] if name.endswith(".gltf") else name)).write_bytes(content)
    ball.export(folder / "text.ply", encoding="ascii")
    return dict.fromkeys([*names, "text.ply"], read_scan)


def _points(folder: Path) -> dict[str, Read]:
    rows = np.random.default_rng(0).standard_normal((68, 3))
    (folder / "points68.json").write_text(json.dumps(rows.tolist()))
    np.save(folder / "points68.npy", rows)
    np.savetxt(folder / "points68.txt", rows)
    named = dict(zip(NAMES7, rows[:7].tolist(), strict=True))
    (folder / "points7.json").write_text(json.dumps({"points7": named, "nose_tip": [0.0, 0.0, 0.1]}))
    np.save(folder / "points7.npy", rows[:7])
    np.savetxt(folder / "points7.txt", rows[:7], delimiter=",")
    picked = "".join(f'<point x="{x}" y="{y}" z="{z}" active="1" name="{i}"/>' for i, (x, y, z) in enumerate(rows[:7]))
    (folder / "points7.pp").write_text(f"<!DOCTYPE PickedPoints><PickedPoints>{picked}</PickedPoints>")
    seven = dict.fromkeys([f"points7.{kind}" for kind in ("json", "npy", "txt", "pp")], read_points7)
    return seven | dict.fromkeys([f"points68.{kind}" for kind in ("json", "npy", "txt")], read_landmarks)


def _lists(folder: Path) -> dict[str, Read]:
    (folder / "takes.csv").write_text(
        "input,person,name,fov,start\nmodel.safetensors,ann,one,40,1.5\ncode.npz,bob,,,\n"
    )
    (folder / "takes.json").write_text(json.dumps([{"input": "code.npz", "person": "ann", "every": 2}]))
    (folder / "recipe.toml").write_text(
        'task = "head"\n[trainer]\nsteps = 10\nlearning_rate = 1e-3\n[data]\nheads = "folder"\n'
    )
    session = Manifest(root=".")
    session.jobs.append(Job(input="clip.mp4", person="ann", name="one"))
    session.save(folder)
    return {
        "takes.csv": _read_takes, "takes.json": _read_takes, "recipe.toml": read_recipe, "session.json": _read_session,
    }  # fmt: skip


def _read_takes(path: Path) -> None:
    find_takes(path, path.parent / "session")


def _read_session(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "session.json")
        Manifest.load(Path(folder))


def _images(folder: Path) -> dict[str, Read]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    names = [f"image.{kind}" for kind in ("png", "jpg", "webp", "bmp", "tif")]
    for name in names:
        picture.save(folder / name, exif=exif) if name != "image.bmp" else picture.save(folder / name)
    Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)).save(folder / "grey16.png")
    picture.save(folder / "photo.jpg", exif=exif)
    readers: dict[str, Read] = dict.fromkeys([*names, "grey16.png"], read_image)
    return readers | {"photo.jpg": lambda path: focal_from_exif(path, (32, 24))}
