"""Made-up data sets in the layout of NoW and of NeRSemble-SVFR: predictions, submissions, numbers, resuming."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from nphm_track.errors import InputError, OutputError
from nphm_track.evaluation import region
from nphm_track.evaluation.now import evaluate_now
from nphm_track.evaluation.predict import Mesh7
from nphm_track.evaluation.svfr import evaluate_svfr
from nphm_track.tracking.progress import NullProgress

from .conftest import FakePredictor, face_like
from .test_region import pp

NOW_IMAGES = ("S1/multiview_neutral/IMG_1.jpg", "S1/selfie/IMG_2.jpg", "S2/multiview_neutral/IMG_noface.jpg")
Fake = Callable[[Mesh7], FakePredictor]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "SAMPLES", 400)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)


@pytest.fixture
def now_data(tmp_path: Path) -> Path:
    root = tmp_path / "NoW_Dataset"
    for name in NOW_IMAGES:
        picture(root / "final_release_version" / "iphone_pictures" / name)
    (root / "imagepathsvalidation.txt").write_text("\n".join(NOW_IMAGES) + "\n")
    head = face_like(bump=0.001)
    for subject in ("S1", "S2"):
        for folder in ("scans", "scans_lmks_onlypp"):
            (root / folder / subject).mkdir(parents=True)
        trimesh.Trimesh(1e3 * head.vertices, head.faces, process=False).export(root / "scans" / subject / "scan.obj")
        (root / "scans_lmks_onlypp" / subject / "scan.pp").write_text(pp(1e3 * head.points7))
    return tmp_path


def test_now(now_data: Path, tmp_path: Path, fake: Fake) -> None:
    predictor, out = fake(face_like()), tmp_path / "out"
    facts = evaluate_now(now_data, out, predictor, NullProgress(), command="nphm-track evaluate now")
    assert predictor.calls == 3 and facts["images"] == facts["measured"] == 3
    assert facts["failures"] == {"S2/multiview_neutral/IMG_noface": "no face found"}
    rows = {row["images"]: row for row in facts["results"]}
    assert list(rows) == ["all", "all without failures", "multiview_neutral", "selfie"]
    assert [rows[name]["count"] for name in rows] == [3, 2, 2, 1]
    assert 0.5 < rows["selfie"]["similarity"]["mean"] < 1.1  # the scan's relief of 1 mm
    assert rows["all"]["similarity"]["mean"] > rows["all without failures"]["similarity"]["mean"]
    pooled = [np.load(file) for file in (out / "distances").rglob("*.npz")]
    assert rows["all"]["metrical"]["median"] == pytest.approx(
        float(np.median(np.concatenate([p["metrical"] for p in pooled]))), abs=1e-6
    )
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(facts))
    assert "abababababab" in (out / "results.md").read_text()


def test_now_predictions_are_what_its_code_takes(now_data: Path, tmp_path: Path, fake: Fake) -> None:
    head = face_like()
    evaluate_now(now_data, tmp_path / "out", fake(head), NullProgress())
    for name in NOW_IMAGES:
        stem = tmp_path / "out" / "predictions" / name[:-4]
        mesh: Any = trimesh.load_mesh(stem.with_suffix(".ply"), process=False)
        points = np.load(stem.with_suffix(".npy"), allow_pickle=False)
        assert mesh.vertices.shape == head.vertices.shape and points.shape == (7, 3)
    np.testing.assert_allclose(np.load(tmp_path / "out/predictions/S1/selfie/IMG_2.npy"), head.points7)


def test_an_evaluation_goes_on(now_data: Path, tmp_path: Path, fake: Fake) -> None:
    out = tmp_path / "out"
    first = evaluate_now(now_data, out, fake(face_like()), NullProgress())
    (out / "predictions/S1/selfie/IMG_2.npy").unlink()
    again = fake(face_like())
    second = evaluate_now(now_data, out, again, NullProgress())
    assert again.calls == 1 and second["results"] == first["results"] and second["failures"] == first["failures"]
    other = fake(face_like())
    other.models = {"nphm-small": "cd" * 32}
    with pytest.raises(OutputError, match="other models"):
        evaluate_now(now_data, out, other, NullProgress())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(OutputError, match="not empty"):
        evaluate_now(now_data, tmp_path / "mine", other, NullProgress())


def test_now_without_scans(now_data: Path, tmp_path: Path, fake: Fake) -> None:
    (now_data / "NoW_Dataset" / "imagepathstest.txt").write_text("S1/selfie/IMG_2.jpg\n")
    (now_data / "NoW_Dataset" / "scans").rename(tmp_path / "elsewhere")
    facts = evaluate_now(now_data, tmp_path / "out", fake(face_like()), NullProgress(), split="test")
    assert facts["measured"] == 0 and facts["results"] == []
    assert "predictions only" in (tmp_path / "out" / "results.md").read_text()


def test_other_folders_are_refused(now_data: Path, tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(InputError, match="imagepathstest"):
        evaluate_now(now_data, tmp_path / "out", fake(face_like()), NullProgress(), split="test")
    with pytest.raises(InputError, match="not the SVFR data set"):
        evaluate_svfr(now_data, tmp_path / "out2", fake(face_like()), NullProgress())
    (now_data / "NoW_Dataset" / "imagepathsvalidation.txt").write_text("S2/multiview_neutral/IMG_noface.jpg\n")
    with pytest.raises(InputError, match="no image could be predicted; the first: no face found"):
        evaluate_now(now_data, tmp_path / "out3", fake(face_like()), NullProgress())


@pytest.fixture
def svfr_data(tmp_path: Path) -> Path:
    root = tmp_path / "svfr"
    picture(root / "017" / "EMO-1-shout+laugh_6_221501007" / "rgb.png")
    picture(root / "060" / "FREE_0_222200041" / "rgb.png")
    return tmp_path


def test_svfr_submission(svfr_data: Path, tmp_path: Path, fake: Fake) -> None:
    facts = evaluate_svfr(svfr_data, tmp_path / "out", fake(face_like()), NullProgress())
    assert facts["results"] == []
    with zipfile.ZipFile(tmp_path / "out" / "svfr_submission.zip") as archive:
        names = set(archive.namelist())
        points = np.load(io.BytesIO(archive.read("017/EMO-1-shout+laugh_006_221501007/landmarks_posed.npy")))
    folders = ("017/EMO-1-shout+laugh_006_221501007", "060/FREE_000_222200041")
    files = ("mesh_posed.ply", "mesh_neutral.ply", "landmarks_posed.npy", "landmarks_neutral.npy")
    assert names == {f"{folder}/{file}" for folder in folders for file in files}
    assert points.shape == (7, 3)


def test_svfr_numbers_where_there_are_scans(svfr_data: Path, tmp_path: Path, fake: Fake) -> None:
    head = face_like()
    shifted = head.vertices + 2.0  # where a scan lies does not matter
    person = svfr_data / "svfr" / "017"
    image = person / "EMO-1-shout+laugh_6_221501007"
    trimesh.Trimesh(shifted, head.faces, process=False).export(image / "scan_posed.ply")
    np.save(image / "landmarks_posed.npy", head.points7 + 2.0)
    rough = face_like(bump=0.001)
    trimesh.PointCloud(1e3 * rough.vertices).export(person / "scan_neutral.ply")
    np.save(person / "landmarks_neutral.npy", 1e3 * rough.points7)
    facts = evaluate_svfr(svfr_data, tmp_path / "out", fake(head), NullProgress())
    rows = {row["task"]: row for row in facts["results"]}
    assert rows["posed"]["l2"] < 0.01 and rows["posed"]["normal_consistency"] > 0.99
    assert rows["posed"]["recall_2p5mm"] == pytest.approx(1) and rows["posed"]["count"] == 1
    assert (
        0.5 < rows["neutral"]["l2"] < 1.1
        and rows["neutral"]["l2"] < rows["neutral"]["l1"] < 1.74 * rows["neutral"]["l2"]
    )
    assert 0.5 < rows["neutral"]["normal_consistency"] < 1
    (image / "landmarks_posed.npy").unlink()
    with pytest.raises(InputError, match="lacks its seven points"):
        evaluate_svfr(svfr_data, tmp_path / "out", fake(head), NullProgress())
