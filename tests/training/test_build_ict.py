"""The npz of ICT-FaceKit, built from made-up files in the layout of its public repository."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from nphm_track.training.ict import load_ict

SCRIPT = Path(__file__).parents[2] / "training" / "build_ict.py"
POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 2, 0.25]])
QUAD, TRIANGLE = "f 1/1 2/2 3/3 4/4", "f 4/5 3/3 5/6"
UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [1.5, 0.5], [1.25, 0.75]])


def write_obj(path: Path, points: np.ndarray, faces: tuple[str, ...] = (QUAD, TRIANGLE)) -> None:
    vertices = [f"v {x:.15f} {y:.15f} {z:.15f}" for x, y, z in points]
    path.write_text("\n".join([*vertices, *(f"vt {u:.6f} {v:.6f}" for u, v in UV), *faces, ""]))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "ICT-FaceKit" / "FaceXModel"
    folder.mkdir(parents=True)
    write_obj(folder / "generic_neutral_mesh.obj", POINTS)
    for k in range(3):
        write_obj(folder / f"identity{k:03d}.obj", POINTS + np.array([0, 0, k + 1]))
    for k, name in enumerate(("jawOpen", "browDown_L", "PupilDilate_L")):
        write_obj(folder / f"{name}.obj", POINTS - np.array([0, k + 1, 0]))
    (folder / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": [0] * 68}))
    (folder.parent / "LICENSE").write_text("MIT")
    return folder


def build(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(model), "--out", str(out)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_arrays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(model, tmp_path / "out", monkeypatch) == 0
    data = np.load(tmp_path / "out" / "ict_facekit_light_full.npz")
    np.testing.assert_allclose(data["neutral"], POINTS)
    np.testing.assert_allclose(data["identity_deltas"][:, :, 2], [[1] * 5, [2] * 5, [3] * 5])
    assert data["expression_names"].tolist() == ["PupilDilate_L", "browDown_L", "jawOpen"]
    np.testing.assert_allclose(data["expression_deltas"][:, 0, 1], [-3, -2, -1])
    assert data["faces"].tolist() == [[0, 1, 2, 3], [3, 2, 4, -1]]
    assert data["face_uv"].tolist() == [[0, 1, 2, 3], [4, 2, 5, -1]]
    np.testing.assert_allclose(data["uv"], UV)
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT" and (tmp_path / "out" / "vertex_indices.json").is_file()


@pytest.mark.parametrize("fault", ["another mesh", "no number", "no identities", "no list"])
def test_what_is_no_face_kit(
    model: Path, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "another mesh":
        write_obj(model / "jawOpen.obj", POINTS[:4])
    elif fault == "no number":
        (model / "jawOpen.obj").write_text("v 1 2 three\n")
    elif fault == "no identities":
        for path in model.glob("identity*"):
            path.unlink()
    else:
        (model / "vertex_indices.json").unlink()
    assert build(model, tmp_path / "out", monkeypatch) == 2
    named = {"another mesh": "jawOpen", "no number": "jawOpen", "no identities": "identities", "no list": "indices"}
    assert named[fault] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_real_mesh_comes_back_as_it_was(
    model: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ICT's own vertices and polygons with one shape of each kind, through OBJ and back, are read by the trainers."""
    real = np.load(shared_data / "ict_facekit" / "ict_facekit_light_full.npz")
    for path in model.glob("*.obj"):
        path.unlink()
    corners = np.stack([real["faces"], real["face_uv"]], -1) + 1
    faces = tuple("f " + " ".join(f"{v}/{t}" for v, t in face if v > 0) for face in corners.tolist())
    jaw = real["expression_names"].tolist().index("jawOpen")
    write_obj(model / "generic_neutral_mesh.obj", real["neutral"].astype(float), faces)
    write_obj(model / "identity000.obj", real["neutral"].astype(float) + real["identity_deltas"][0])
    write_obj(model / "jawOpen.obj", real["neutral"].astype(float) + real["expression_deltas"][jaw])
    build(model, tmp_path / "out", monkeypatch)
    data = np.load(tmp_path / "out" / "ict_facekit_light_full.npz")
    for name in ("neutral", "faces", "face_uv"):
        np.testing.assert_array_equal(data[name], real[name])
    np.testing.assert_allclose(data["expression_deltas"][0], real["expression_deltas"][jaw], atol=1e-6)
    heads = load_ict(tmp_path / "out")
    assert heads.expression_names == ("jawOpen",) and len(heads.identity) == 1
