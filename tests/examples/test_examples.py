"""Every example does its work, on small data and at low resolution."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from skimage import data

from nphm_track import Run, TrackOptions, read_run, track
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.export.glb_file import Buffer, write_chunks
from nphm_track.export.manifest import GENERATOR
from nphm_track.heads import registration
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.rendering.ply import read_ply
from nphm_track.rigid import Similarity
from nphm_track.scans import fitting
from nphm_track.tracking.records import Status

EXAMPLES = Path(__file__).parents[2] / "examples"
DETAIL = 0.3
Main = Callable[..., int]


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs an example as a script; returns its exit code."""

    def run(name: str, *arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            load(name).main()
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else 1
        return 0

    return run


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images of a face that moves to the right."""
    folder = tmp_path_factory.mktemp("clip") / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(data.astronaut()[:300, 90 - 10 * i : 390 - 10 * i]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def run(clip: Path) -> Run:
    options = TrackOptions(overlay=False, mesh_resolution=48)
    return track(clip, clip.parent / "run", options=options)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of the model's own as scans in centimetres, with their landmarks beside them."""
    prepare_torch()
    model = load_head_model()
    folder = tmp_path_factory.mktemp("scans")
    pose = Similarity(100.0, np.eye(3)[[1, 2, 0]], np.array([3.0, 2, 1]))
    for name, column in (("anna", 1), ("bert", 2)):
        z_id = model.identity_basis[:, column] * 0.8
        mesh = extract_canonical(model, z_id, detail=DETAIL)
        trimesh.Trimesh(pose(mesh.vertices), mesh.faces, process=False).export(folder / f"{name}.ply")
        np.save(folder / f"{name}.landmarks.npy", pose(model.landmarks(z_id).numpy() * MODEL_UNIT))
    return folder


@pytest.fixture(scope="session")
def registered(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans with heads fitted to them, roughly."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "LANDMARK_STEPS", 8)
        patch.setattr(fitting, "extract_canonical", lambda model, z: extract_canonical(model, z, detail=DETAIL))
        index = fitting.fit_folder(scans, folder, options=fitting.FitOptions(steps=3))
    assert [row["state"] for row in index["scans"]] == ["done", "done"]
    return folder


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_say_what_they_are(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    compile(source, path.name, "exec")
    assert source.startswith('"""') and f"examples/{path.name}" in source


def test_demo_clip(main: Main, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "astronaut", lambda: np.zeros((512, 512, 3), np.uint8))
    assert main("demo_clip", tmp_path, "--compare", tmp_path / "nowhere") == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_track_clip(main: Main, clip: Path, run: Run, capsys: Any) -> None:
    assert main("track_clip", clip.parent / "nothing.mp4", clip.parent / "out") == 2
    directions = load("track_clip").looking_direction(run.track)
    assert run.info.quality["tracked"] == 3
    assert np.abs(directions).max() < 40  # the astronaut smiles at the camera
    turned = load("track_clip").looking_direction(_turned(np.diag([1.0, -1, -1])))
    np.testing.assert_allclose(turned, [[0, 0]], atol=1e-9)
    c, s = np.cos(0.3), np.sin(0.3)
    to_left = np.diag([1.0, -1, -1]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # +z of the head towards its +x
    np.testing.assert_allclose(
        load("track_clip").looking_direction(_turned(to_left)), [[np.degrees(0.3), 0]], atol=1e-9
    )


def _turned(R: np.ndarray) -> Any:
    made = ModuleType("track")
    made.R = R[None]  # type: ignore[attr-defined]
    return made


def test_read_run(main: Main, run: Run, tmp_path: Path, capsys: Any) -> None:
    assert main("read_run", run.path, "--out", tmp_path / "points.png") == 0
    assert "z_ex" in capsys.readouterr().out
    drawn = np.argwhere(np.asarray(Image.open(tmp_path / "points.png")))[:, ::-1] + 0.5
    row = int(run.track.confidence.argmax())
    low, high = np.quantile(run.track.landmarks_fit[row], [0.1, 0.9], axis=0)
    assert (drawn.min(0) < low).all() and (drawn.max(0) > high).all()
    vertices, faces = read_ply(run.mesh_path(row))
    read = load("read_run").read_ply(run.mesh_path(row))
    assert np.array_equal(read[0], vertices) and np.array_equal(read[1], faces)
    assert main("read_run", tmp_path) == 2


class TestBlender:
    def test_camera_and_pose(self, run: Run) -> None:
        """A Blender camera at the origin, looking along +y, puts a vertex where the track's own camera does."""
        blender, track = load("blender_run"), run.track
        K = np.array([[300.0, 0, 140], [0, 300, 160], [0, 0, 1]])
        settings, (width, height) = blender.lens(K, track.image_size), track.image_size
        points = run.canonical()[0].astype(float)
        x, y, z = (points @ (matrix := blender.head_matrix(track.R[0], track.t[0]))[:3, :3].T + matrix[:3, 3]).T
        scale = settings["lens"] / blender.SENSOR * width
        seen = np.stack([
            width / 2 + scale * x / y - width * settings["shift_x"],
            height / 2 - scale * z / y + width * settings["shift_y"],
        ], 1)  # fmt: skip
        np.testing.assert_allclose(seen, load("read_run").project(points, track.R[0], track.t[0], K), atol=1e-6)

    def test_scene(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Blender is told, since there is none here."""
        bpy, matrices = MagicMock(), MagicMock()
        monkeypatch.setitem(sys.modules, "mathutils", matrices)
        scene = bpy.context.scene
        scene.frame_current = 1
        load("blender_run").build(bpy, run.path)
        head = bpy.data.objects.new.return_value
        keys = [call.args[0] for call in head.keyframe_insert.call_args_list]
        assert keys.count("location") == keys.count("rotation_quaternion") == 3
        (update,) = bpy.app.handlers.frame_change_pre.append.call_args.args
        assert (scene.frame_start, scene.frame_end, scene.render.resolution_x) == (1, 3, 300)
        scene.frame_current = 2
        update(scene)
        attribute, values = bpy.data.meshes.new.return_value.vertices.foreach_set.call_args.args
        assert attribute == "co" and np.array_equal(values.reshape(-1, 3), run.mesh(1)[0])

    def test_without_blender(self, main: Main, run: Run, tmp_path: Path) -> None:
        assert main("blender_run", run.path) == 1
        assert main("blender_run", tmp_path) == 1

    def test_conversion(self, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Blender is told to make FBX and Alembic of an export."""
        bpy, head = MagicMock(), tmp_path / "head.glb"
        monkeypatch.setitem(sys.modules, "bpy", bpy)
        asset = {"generator": GENERATOR, "extras": {"frame_rate": 30000 / 1001, "frames": 90}}
        write_chunks(head, {"asset": asset}, Buffer())
        scene = bpy.context.scene
        assert main("blender_convert", head, tmp_path / "head.fbx") == 0
        assert scene.render.fps / scene.render.fps_base == pytest.approx(30000 / 1001)
        assert bpy.ops.export_scene.fbx.call_args.kwargs["bake_anim_simplify_factor"] == 0
        assert main("blender_convert", head, tmp_path / "head.abc") == 0
        assert bpy.ops.wm.alembic_export.call_args.kwargs["end"] == scene.frame_end == 89
        for wrong in ((head,), (head, "head.usd"), (tmp_path / "no.glb", "a.fbx"), (Path(__file__), "a.fbx")):
            assert main("blender_convert", *wrong) == 1


def test_gaussian_avatar(main: Main, run: Run, tmp_path: Path) -> None:
    assert main("gaussian_avatar", run.path, tmp_path / "avatar", "--frame", "1") == 0
    assert (tmp_path / "avatar" / "data" / "transforms_train.json").is_file()
    header, _, body = (tmp_path / "avatar" / "splats.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in header.decode().splitlines() if line.startswith("property")]
    splats = dict(zip(names, np.frombuffer(body, "<f4").reshape(-1, len(names)).T, strict=True))
    vertices, faces = run.mesh(1)
    assert len(splats["x"]) > 0.99 * len(faces)
    centres = np.stack([splats[axis] for axis in "xyz"], 1)
    assert cKDTree(vertices[faces].mean(1)).query(centres)[0].max() < 1e-6
    assert main("gaussian_avatar", tmp_path, tmp_path / "other") == 2
    assert main("gaussian_avatar", run.path, tmp_path / "avatar", "--frame", "9") == 2


def test_fit_scan(main: Main, registered: Path, tmp_path: Path) -> None:
    load("fit_scan").write_expressions(registered / "anna", DETAIL)
    neutral, smile, opened = (read_ply(registered / "anna" / f"{name}.ply") for name in ("neutral", "smile", "open"))
    assert np.array_equal(neutral[1], opened[1])
    assert 0.3 < np.abs(smile[0] - neutral[0]).max() < 4  # cm
    assert main("fit_scan", tmp_path / "none.ply", tmp_path / "out") == 2


def test_train_on_scans(scans: Path, registered: Path, tmp_path: Path, main: Main) -> None:
    assert main("train_on_scans", scans, registered, tmp_path / "runs", "--steps", "3") == 0
    trained, before = load_head_model(tmp_path / "runs" / "model.safetensors"), load_head_model()
    changed = [
        name for name, value in trained.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    ]
    assert changed and all(name.startswith("ensemble.") for name in changed)
    assert main("train_on_scans", scans, tmp_path / "nothing", tmp_path / "other") == 2


def test_transfer(main: Main, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One person's expressions on another's face, here on its own: nothing may change."""
    heads = load("edit_heads")
    monkeypatch.setattr(heads, "extract_canonical", lambda model, z: extract_canonical(model, z, detail=DETAIL))
    heads.transfer(load_head_model(), run.path, run.path, tmp_path)
    rows = np.flatnonzero(read_run(run.path).track.status != Status.LOST)
    assert len(list((tmp_path / "transfer").glob("*.ply"))) == len(rows)
    assert (tmp_path / "transfer.png").is_file()
