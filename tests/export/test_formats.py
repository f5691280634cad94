"""What all exports share: where they go, what they replace, what they refuse; and the worlds they are in."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError, OutputError
from nphm_track.export import formats
from nphm_track.export.formats import FORMATS, export
from nphm_track.export.options import ExportOptions
from nphm_track.heads.mesh import CanonicalMesh
from nphm_track.tracking.mesh_stream import StreamWriter
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import MESHES_NPZ, read_run
from nphm_track.tracking.surface import Surface
from nphm_track.tracking.written import RECORD, WrittenFiles


@pytest.mark.parametrize("unit, scale", [("mm", 1000), ("cm", 100), ("m", 1)])
def test_z_up_turns_the_head_upright_and_facing_minus_y(unit: str, scale: float) -> None:
    options = ExportOptions(unit, "z")
    np.testing.assert_allclose(options.points([[0, 0.1, 0], [0, 0, 0.2]]), [[0, 0, 0.1 * scale], [0, -0.2 * scale, 0]])
    R, t = options.head_pose(np.diag([1.0, -1, -1]), [0, 0, 0.5])  # frontal, half a metre before the camera
    np.testing.assert_allclose(R, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(t, [0, 0.5 * scale, 0], atol=1e-9)


def test_unknown_unit_and_axis() -> None:
    with pytest.raises(InputError, match="unknown unit 'inch'; choose from mm, cm, m"):
        ExportOptions(unit="inch")
    with pytest.raises(InputError, match="unknown up 'x'; choose from y, z"):
        ExportOptions(up="x")


@pytest.mark.parametrize("name", [name for name, kind in FORMATS.items() if not kind.model and name != "texture"])
def test_an_export_replaces_an_earlier_one_and_nothing_else(made, name: str, tmp_path: Path) -> None:
    if name == "usd":
        pytest.importorskip("pxr")
    written = export(made.run, name)
    assert written.parent == made.run.path / "export"
    assert export(made.run, name) == written
    beside = [written.stem + FORMATS[name].beside] if FORMATS[name].beside else []
    assert sorted(p.name for p in written.parent.iterdir()) == [written.name, *beside]
    mine = tmp_path / written.name
    if FORMATS[name].suffixes:
        mine.write_text("mine")
    else:
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not an export"):
        export(made.run, name, mine)
    assert (mine if mine.is_file() else mine / "notes.txt").read_text() == "mine"


def test_a_file_that_the_second_file_would_take_stays(made, tmp_path: Path) -> None:
    (tmp_path / "face_frames.csv").write_text("mine")
    with pytest.raises(OutputError, match="is not an export"):
        export(made.run, "blendshapes", tmp_path / "face.csv")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["face_frames.csv"]


def test_a_file_is_replaced_on_request_and_a_folder_never(made, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    assert export(made.run, "landmarks", mine, overwrite=True) == mine
    assert mine.read_text() != "mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not an export"):
        export(made.run, "obj", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "notes.txt").read_text() == "mine"


def test_backups_beside_an_export_stay(made, tmp_path: Path) -> None:
    for name in ("out.old", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for _ in range(2):
        export(made.run, "obj", tmp_path / "out")
    assert all((tmp_path / name / "notes.txt").read_text() == "mine" for name in ("out.old", "out.partial"))


def test_another_format_is_not_replaced(made, tmp_path: Path) -> None:
    export(made.run, "obj", tmp_path / "out")
    with pytest.raises(OutputError, match="not an export in format ply"):
        export(made.run, "ply", tmp_path / "out")


def test_failure_leaves_the_old_export_and_no_rest(made, tmp_path: Path) -> None:
    out = export(made.run, "ply", tmp_path / "out")
    before = sorted(p.name for p in out.iterdir())
    made.run.mesh_path(5).write_bytes(b"broken")
    with pytest.raises(InputError):
        export(made.run, "ply", out)
    assert sorted(p.name for p in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir() if path != made.run.path] == ["out"]


@pytest.mark.parametrize(
    "format, output, options, message",
    [
        ("fbx", None, {}, "unknown format 'fbx'; choose from obj, ply, glb"),
        ("glb", "head.gltf", {}, "end its name in .glb"),
        ("obj", "head.obj", {}, "'head.obj' looks like a file"),
        ("landmarks", None, {"unit": "mm"}, "no units or axes"),
        ("glb", None, {"images": True}, "--images goes with usd, transforms, colmap"),
    ],
)
def test_arguments_that_do_not_fit(made, format: str, output: str | None, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(made.run, format, output, ExportOptions(**options))


def test_missing_usd_names_the_command(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(InputError, match=r"pip install 'nphm-track\[usd\]'"):
        export(made.run, "usd")
    assert not list((made.run.path / "export").iterdir())


@pytest.mark.parametrize("name", ["obj", "ply", "glb", "usd", "transforms"])
def test_missing_meshes_are_told_before_anything_is_written(made, name: str) -> None:
    for row in (0, 4):
        made.run.mesh_path(row).unlink()
    options = ExportOptions(images=name == "transforms")
    with pytest.raises(InputError, match=r"lacks the meshes of 2 of 5 frames.*makes them again"):
        export(made.run, name, options=options)
    assert not (made.run.path / "export").exists()
    for other in ("transforms", "colmap", "opencv"):
        export(made.run, other)


def test_meshes_that_were_not_written_are_made_from_the_codes(made, monkeypatch: pytest.MonkeyPatch) -> None:
    with_meshes = {path.name: path.read_bytes() for path in export(made.run, "ply").glob("*.ply")}
    vertices, faces = made.run.canonical()
    read = {row: made.run.mesh(row)[0] for row in np.flatnonzero(made.run.track.status != Status.LOST)}
    surface = Surface(CanonicalMesh(vertices, faces), read.__getitem__)
    monkeypatch.setattr("nphm_track.tracking.surface.open_surface", lambda *given, **options: surface)
    monkeypatch.setattr("nphm_track.tracking.surface.model_of", lambda run: None)
    for change in ({"meshes": False}, {"meshes": True, "mesh_every": 4}):
        run = read_run(made.run.path)
        run.info.options.update(change)
        shutil.rmtree(run.path / "meshes", ignore_errors=True)
        assert {path.name: path.read_bytes() for path in export(run, "ply").glob("*.ply")} == with_meshes


@pytest.mark.parametrize("name", ["ply", "glb", "transforms", "colmap", "opencv", "landmarks", "blendshapes"])
def test_a_range_of_frames_is_written_like_the_whole(made, tmp_path: Path, name: str) -> None:
    frame = made.run.track.frame
    export(made.run, name, tmp_path / f"part{suffix(name)}", ExportOptions(frames=(int(frame[1]), int(frame[5]))))
    with pytest.raises(InputError, match="has no frame in 900 to its end"):
        export(made.run, name, tmp_path / f"none{suffix(name)}", ExportOptions(frames=(900, None)))
    if name == "ply":
        assert sorted(path.name for path in (tmp_path / "part").glob("*.ply")) == [
            f"{n:06d}.ply" for n in frame[[1, 2, 4, 5]]
        ]


def suffix(name: str) -> str:
    return {"glb": ".glb", "opencv": ".yaml", "landmarks": ".csv", "blendshapes": ".csv"}.get(name, "")


def test_missing_meshes_of_a_stream(made, tmp_path: Path) -> None:
    run = made.run
    vertices, faces = run.canonical()
    frame = run.track.frame[[0, 1, 2, 4]]
    written = WrittenFiles(tmp_path, ObservationLog(tmp_path / "written.bin", RECORD))
    writer = StreamWriter(tmp_path / "blocks", vertices, faces, frame, np.zeros(4, int), written)
    for index in range(4):
        writer.write(index, vertices)
    writer.join(run.path / MESHES_NPZ)
    run.info.options["mesh_format"] = "npz"
    with pytest.raises(InputError, match="lacks the meshes of 1 of 5 frames"):
        export(run, "obj")
    assert not (run.path / "export").exists()


def test_run_without_a_head(made) -> None:
    made.run.track.status[:] = 2
    for name in ("obj", "glb", "opencv", "colmap", "transforms"):
        with pytest.raises(InputError, match="no frame with a head"):
            export(made.run, name)
    for name in ("blendshapes", "landmarks"):
        export(made.run, name)


def test_clip_must_be_there_and_unchanged_for_images(made, tmp_path: Path) -> None:
    made.run.info.input.sha256 = "0" * 64
    with pytest.raises(InputError, match="it has changed; nphm-track relink"):
        export(made.run, "colmap", options=ExportOptions(images=True))


def test_place_that_cannot_be_written(made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        export(made.run, "opencv", tmp_path / "file" / "camera.yaml")


def test_damaged_manifest_is_not_ours(made, tmp_path: Path) -> None:
    for text in ("", "[]", json.dumps({"generator": "other", "format": "obj"})):
        (tmp_path / "export.json").write_text(text)
        assert not formats.is_manifest(tmp_path / "export.json", "obj")


class TestCommand:
    def invoke(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        from nphm_track.cli import main

        monkeypatch.setattr(sys, "argv", ["nphm-track", "export", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    def test_writes_and_says_where(self, made, tmp_path, monkeypatch, capsys) -> None:
        out = tmp_path / "camera.yml"
        arguments = ["--format", "opencv", "-o", str(out), "--unit", "mm", "--up", "z"]
        assert self.invoke(monkeypatch, str(made.run.path), *arguments) == 0
        assert capsys.readouterr().out.strip() == str(out)
        assert 'unit: "mm"\nup: "z"' in out.read_text()

    def test_errors_are_one_line(self, made, tmp_path, monkeypatch, capsys) -> None:
        assert self.invoke(monkeypatch, str(tmp_path / "none"), "--format", "obj") == 2
        assert "is not a run folder" in capsys.readouterr().err
        assert self.invoke(monkeypatch, str(made.run.path), "--format", "fbx") == 2
        assert capsys.readouterr().err.count("\n") == 1
