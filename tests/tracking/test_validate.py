from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from nphm_track import read_run
from nphm_track.errors import InputError
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import RunInfo, Track
from nphm_track.tracking.transforms import write_transforms
from nphm_track.tracking.validate import lacking_files, validate_run


def test_a_good_run_has_no_problems(run_path: Path) -> None:
    assert validate_run(run_path) == []


def change(path: Path, **values: Callable[[np.ndarray], object]) -> None:
    """Rewrite arrays of ``track.npz``; each function mends its array in place or returns another."""
    track = Track.load(path / "track.npz")
    for name, function in values.items():
        changed = function(getattr(track, name))
        if changed is not None:
            setattr(track, name, changed)
    track.save(path / "track.npz")


def put(index: object, value: object) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(index, value)


TRACK_MUTATIONS = {
    "frame numbers": {"frame": put(3, 9)},
    "times do not increase": {"time": put(2, 0.0)},
    "unknown values": {"status": put(1, 7)},
    "landmarks_fit is not finite in 1 frames, first in frame 4": {"landmarks_fit": put((4, 3, 1), np.nan)},
    "landmark_error_px is not finite": {"landmark_error_px": put(0, np.nan)},
    "z_id has values": {"z_id": put(0, np.inf)},
    "R is no rotation in 1 frames, first in frame 2": {"R": put((2, 0, 0), 0.3)},
    "R is no rotation in 5": {"R": lambda R: -R},
    "behind the camera": {"t": put((1, 2), -0.5)},
    "focal length": {"K": put((0, 0), -90.0)},
    "not an intrinsics matrix": {"K": put((1, 0), 1.0)},
    "z_ex has shape": {"z_ex": lambda z: z[:-1]},
    "image_size": {"image_size": put(0, 95)},
    "does not match the track": {"distortion": put(0, 0.1)},
    "other camera poses": {"t": lambda t: t + 0.01},
    "run.json counts 4 'tracked', the track 3": {"status": put(0, 1)},
}


@pytest.mark.parametrize("problem", TRACK_MUTATIONS)
def test_bad_tracks_are_found(run_path: Path, problem: str) -> None:
    change(run_path, **TRACK_MUTATIONS[problem])
    assert any(problem in line for line in validate_run(run_path)), validate_run(run_path)


def box(path: Path, scale: float = 0.1) -> None:
    mesh = trimesh.creation.box(extents=(scale, scale, scale))
    write_ply(path, mesh.vertices, mesh.faces)


def giant(path: Path) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=1, radius=100)
    write_ply(path, mesh.vertices, mesh.faces)


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FILE_MUTATIONS: dict[str, Callable[[Path], object]] = {
    "run.json cannot be read": lambda run: (run / "run.json").unlink(),
    "schema_version": lambda run: edit_json(run / "run.json", schema_version=2),
    "not finished (state: running)": lambda run: edit_json(run / "run.json", state="running"),
    "not a readable track": lambda run: (run / "track.npz").write_bytes(b"PK"),
    "1 of 5 meshes are missing, first 000003.ply": lambda run: (run / "meshes" / "000003.ply").unlink(),
    "1 files that are no mesh of this run, first 000005.ply": lambda run: box(run / "meshes" / "000005.ply"),
    "another header": lambda run: box(run / "meshes" / "000002.ply"),
    "another topology": lambda run: box(run / "canonical.ply"),
    "cannot be read": lambda run: (run / "canonical.ply").unlink(),
    "are these metres": lambda run: giant(run / "meshes" / "000000.ply"),
    "overlay.mp4 is missing": lambda run: (run / "overlay.mp4").unlink(),
    "not a readable video": lambda run: (run / "overlay.mp4").write_bytes(b"x" * 500),
    "transforms.json is missing": lambda run: (run / "transforms.json").unlink(),
    "report.html is missing": lambda run: (run / "report.html").unlink(),
    "report.html is cut short": lambda run: (run / "report.html").write_text("<html>"),
    "transforms.json is damaged": lambda run: (run / "transforms.json").write_text("{}"),
}


@pytest.mark.parametrize("problem", FILE_MUTATIONS)
def test_bad_files_are_found(run_path: Path, problem: str) -> None:
    FILE_MUTATIONS[problem](run_path)
    assert any(problem in line for line in validate_run(run_path)), validate_run(run_path)


def test_overlay_must_keep_frames_and_time(run_path: Path) -> None:
    change(run_path, time=lambda time: time * 2)
    assert any("keeps another time" in line for line in validate_run(run_path))


def test_overlay_of_an_image_is_an_image(run_path: Path) -> None:
    described = json.loads((run_path / "run.json").read_text())["input"]
    edit_json(run_path / "run.json", input=described | {"kind": "image"})
    assert validate_run(run_path) == ["overlay.png is missing"]
    Image.new("RGB", (4, 4)).save(run_path / "overlay.png")
    assert validate_run(run_path) == []
    (run_path / "overlay.png").write_bytes(b"x")
    assert "not a readable image" in validate_run(run_path)[0]


def test_what_was_not_asked_for_is_not_missed(run_path: Path) -> None:
    info = RunInfo.load(run_path / "run.json")
    info.options |= {"meshes": False, "overlay": False}
    info.save(run_path / "run.json")
    for path in [run_path / "overlay.mp4", *(run_path / "meshes").iterdir()]:
        path.unlink()
    assert validate_run(run_path) == ["transforms.json does not match the track"]  # it names the meshes
    write_transforms(run_path / "transforms.json", Track.load(run_path / "track.npz"), meshes=False)
    assert validate_run(run_path) == []


LACKING: dict[str, Callable[[Path], object]] = {
    "overlay.mp4": lambda run: (run / "overlay.mp4").unlink(),
    "overlay.mp4 ": lambda run: (run / "overlay.mp4").write_bytes(bytes(999)),
    "meshes": lambda run: (run / "meshes" / "000002.ply").unlink(),
    "meshes ": lambda run: (run / "meshes" / "000002.ply").write_bytes(b""),
    "canonical.ply": lambda run: (run / "canonical.ply").write_bytes(bytes(999)),
    "transforms.json": lambda run: (run / "transforms.json").write_bytes(b""),
    "report.html": lambda run: (run / "report.html").write_bytes(bytes(99)),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_quick_look_finds_what_a_finished_run_lacks(run_path: Path, name: str) -> None:
    run = read_run(run_path)
    assert lacking_files(run, run.track) == set()
    LACKING[name](run_path)
    assert name.strip() in lacking_files(run, run.track)


BAD_RUNS: dict[str, Callable[[Path], object]] = {
    "no options": lambda run: edit_json(run / "run.json", options={}),
    "an option of another type": lambda run: edit_options(run / "run.json", every="often"),
    "no input size": lambda run: edit_input(run / "run.json", width=0),
    "a giant": lambda run: [edit_input(run / "run.json", width=10**6), change(run, image_size=put(0, 10**6))],
    "a giant in the track": lambda run: change(run, image_size=put(slice(None), 10**6)),
    "rotations of two rows": lambda run: change(run, R=lambda R: R[:, :2, :2]),
    "nothing but NaN": lambda run: change(run, **{n: put(slice(None), np.nan) for n in ("R", "t", "z_ex", "K")}),
    "a status that is none": lambda run: change(run, status=put(1, 7)),
    "no status that is one": lambda run: change(run, status=put(slice(None), 7)),
    "text for numbers": lambda run: change(run, t=lambda t: t.astype(str)),
    "a number for a list": lambda run: change(run, frame=lambda frame: np.int64(3)),
}


@pytest.mark.parametrize("what", BAD_RUNS)
def test_a_bad_run_is_one_clear_line_for_whoever_opens_it(run_path: Path, what: str) -> None:
    BAD_RUNS[what](run_path)
    with pytest.raises(InputError) as refused:
        _ = read_run(run_path).track
    assert "\n" not in str(refused.value)
    assert validate_run(run_path)


def edit_options(path: Path, **values: object) -> None:
    edit_json(path, options=json.loads(path.read_text())["options"] | values)


def edit_input(path: Path, **values: object) -> None:
    edit_json(path, input=json.loads(path.read_text())["input"] | values)
