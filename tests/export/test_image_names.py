"""Runs of folders of images: every export says which image each of its frames is."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

from nphm_track import Run, read_run
from nphm_track.export.formats import export
from nphm_track.export.frames import frame_names
from nphm_track.export.options import ExportOptions

IMAGES = [f"anna {1001 + 2 * row}.jpg" for row in range(7)]
STEMS = [f"anna_{1001 + 2 * row}" for row in range(7)]
PRESENT = [0, 1, 2, 4, 5]


@pytest.fixture
def images(made) -> Run:
    """The made-up run, as if its clip were a folder of images."""
    track = made.run.track
    track.image = np.array(IMAGES)
    track.save(made.run.path / "track.npz")
    return read_run(made.run.path)


def table(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [row.get("image") or row["Image"] for row in rows]


def test_tables_have_the_name_in_every_row(images: Run, tmp_path: Path) -> None:
    export(images, "blendshapes", tmp_path / "shapes.csv")
    assert table(tmp_path / "shapes_frames.csv") == IMAGES
    export(images, "blendshapes", tmp_path / "shapes.csv")  # which it knows for its own
    assert table(export(images, "landmarks", tmp_path / "points.csv")) == IMAGES
    text = export(images, "landmarks", tmp_path / "points.json").read_text()
    assert [frame["image"] for frame in json.loads(text)["frames"]] == IMAGES


@pytest.mark.parametrize("format", ["obj", "ply"])
def test_meshes_are_called_as_their_images(images: Run, tmp_path: Path, format: str) -> None:
    out = export(images, format, tmp_path / "out")
    assert {path.stem for path in out.glob(f"*.{format}")} == {STEMS[row] for row in PRESENT}
    frames = json.loads((out / "export.json").read_text())["frames"]
    assert [(f["file"], f["image"]) for f in frames] == [(f"{STEMS[row]}.{format}", IMAGES[row]) for row in PRESENT]


def test_a_data_set_is_called_as_the_images(images: Run, tmp_path: Path) -> None:
    out = export(images, "transforms", tmp_path / "out", ExportOptions(images=True))
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert [(frame["image"], frame["timestep_id"]) for frame in frames] == [(IMAGES[r], STEMS[r]) for r in PRESENT]
    for row, frame in zip(PRESENT, frames, strict=True):
        for key in ("file_path", "mask_path", "mesh", "flame_param_path"):
            assert Path(frame[key]).stem == STEMS[row] and (out / frame[key]).is_file()


def test_cameras_name_the_images(images: Run, tmp_path: Path) -> None:
    out = export(images, "colmap", tmp_path / "colmap", ExportOptions(images=True))
    lines = (out / "sparse/0/images.txt").read_text().splitlines()[1::2]
    assert [line.split()[-1] for line in lines] == [f"{STEMS[row]}.png" for row in PRESENT]
    assert all((out / "images" / line.split()[-1]).is_file() for line in lines)
    text = export(images, "opencv", tmp_path / "camera.yaml").read_text().replace("%YAML:1.0", "")
    plain = text.replace("!!opencv-matrix", "")
    assert yaml.safe_load(plain)["image"] == [IMAGES[row] for row in PRESENT]


def test_a_glb_lists_the_images(images: Run, tmp_path: Path) -> None:
    data = export(images, "glb", tmp_path / "head.glb").read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    assert json.loads(data[20 : 20 + length])["asset"]["extras"]["images"] == IMAGES


def test_a_usd_plate_is_the_sequence_itself(images: Run, tmp_path: Path) -> None:
    usd = pytest.importorskip("pxr.Usd")
    info = images.info.model_copy(update={"input": images.info.input.model_copy(update={"kind": "folder"})})
    info.save(images.path / "run.json")
    out = export(read_run(images.path), "usd", tmp_path / "usd")
    stage = usd.Stage.Open(str(out / "head.usdc"))
    plate = stage.GetPrimAtPath("/World/Camera").GetAttribute("plate:file")
    paths = [plate.Get(code).path for code in plate.GetTimeSamples()]
    assert [Path(path).name for path in paths] == IMAGES and not Path(paths[0]).is_absolute()


def test_frames_that_would_be_called_the_same_go_by_number(images: Run) -> None:
    track = images.track
    track.image = np.array(["a.jpg", "a.png", "b.png", "c.png", "d.png", "e.png", "f.png"])
    assert frame_names(track)[:2] == ["000000", "000002"]
    track.image = np.array(["🙂.png", *(f"ä{row}.png" for row in range(6))])
    assert frame_names(track)[:2] == ["_", "ä0"]
