from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, OutputError
from nphm_track.heads import parametric_fit, registration
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.heads.template import load_template
from nphm_track.rigid import Similarity
from nphm_track.scans import fitting
from nphm_track.scans.fitting import FitOptions, fit_folder, fit_scan, norm_outliers, unit_of
from nphm_track.scans.reading import ScanGeometry

sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))
from made_up_flame import write_flame

ERRORS: dict[int, Exception] = {0: InputError("c.ply is broken")}
"""What is wrong with the broken scan."""


def test_unit_of() -> None:
    assert [unit_of(s) for s in (1.0, 0.9, 103.0, 950.0, 11.0, 18.3)] == ["m", "m", "cm", "mm", "dm", "unknown"]


def test_norm_outliers() -> None:
    norms = np.random.default_rng(0).normal([3.0, 0.5], [0.2, 0.05], (40, 2))
    assert not norm_outliers(norms).any() or norm_outliers(norms).sum() <= 2
    norms[7, 0], norms[11, 1] = 6.0, 0.01
    assert {7, 11} <= set(np.flatnonzero(norm_outliers(norms)))
    assert not norm_outliers(norms[:5]).any()
    assert not norm_outliers(np.ones((20, 2))).any()


def test_error_colours() -> None:
    points = np.random.default_rng(0).normal(size=(4, 3))
    data = fitting.error_ply(ScanGeometry(points, None), np.array([0.0, 3.0, np.nan, 50.0]))
    colours = trimesh.load(trimesh.util.wrap_as_stream(data), file_type="ply").colors[:, :3]
    assert colours.tolist() == [[0, 0, 127], [127, 0, 0], [127, 127, 127], [127, 127, 127]]


def test_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file in centimetres with given landmarks to everything on disk, FLAME included."""
    monkeypatch.setattr(registration, "POOL", 2500)
    monkeypatch.setattr(parametric_fit, "POINTS", 500)
    monkeypatch.setattr(fitting, "extract_canonical", partial(extract_canonical, detail=0.5))
    model = load_head_model()
    z_id = model.identity_basis[:, 1] * 0.8
    mesh = extract_canonical(model, z_id, detail=0.5)
    pose = Similarity(100.0, np.eye(3)[[1, 2, 0]], np.array([3.0, 2, 1]))
    trimesh.Trimesh(pose(mesh.vertices), mesh.faces, process=False).export(tmp_path / "head.ply")
    np.save(tmp_path / "marks.npy", pose(model.landmarks(z_id).numpy() * MODEL_UNIT))
    flame, _ = write_flame(tmp_path, load_template())
    options = FitOptions(landmarks=tmp_path / "marks.npy", steps=40, to="flame", flame_model=flame)
    summary = fit_scan(tmp_path / "head.ply", tmp_path / "out", options=options)
    assert summary["unit"] == "cm" and abs(summary["scale"] / 100 - 1) < 0.05
    assert summary["median_mm"] < 1 and summary["median_mm"] <= summary["mean_mm"] <= summary["p90_mm"] * 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["flame"]["residual_mm"] < 3 and summary["flame"]["median_mm"] < 3
    assert fit_scan(tmp_path / "head.ply", tmp_path / "out", options=options) == summary  # not done again
    with pytest.raises(OutputError, match="other options"):
        fit_scan(tmp_path / "head.ply", tmp_path / "out", options=replace(options, to=None, flame_model=None))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "codes.npz",
        "error.ply",
        "flame.npz",
        "flame.ply",
        "mesh.ply",
        "summary.json",
    ]
    codes = np.load(tmp_path / "out" / "codes.npz", allow_pickle=False)
    assert codes["z_id"].shape == (model.config.identity_dim,) and codes["R"].shape == (3, 3)
    written = trimesh.load(tmp_path / "out" / "mesh.ply", process=False)
    assert np.abs(written.bounds - trimesh.load(tmp_path / "head.ply", process=False).bounds).max() < 1  # cm


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("a.ply", "b.obj", "b.ply", "c.ply"):
            (tmp_path / name).write_bytes(name.encode())
        return tmp_path

    @pytest.fixture
    def fitted(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the scans fitted by a stand-in; c.ply is broken."""
        seen: list[str] = []

        def fit_to(fitter: Any, file: Path, out: Path, landmarks: Path | None, progress: Any) -> dict[str, Any]:
            seen.append(f"{file.name} {landmarks.name if landmarks else ''}".strip())
            if file.name == "c.ply":
                raise ERRORS[0]
            summary = {
                "scan": file.name,
                "scan_sha256": fitting.sha256(file),
                "head_model_sha256": fitter.model_sha256,
                "landmarks_sha256": landmarks and fitting.sha256(landmarks),
                "options": {"steps": fitter.options.steps},
                "norm_id": 3.0,
                "norm_ex": 0.4,
            }
            out.mkdir(parents=True, exist_ok=True)
            (out / "summary.json").write_text(json.dumps(summary))
            return summary

        monkeypatch.setattr(fitting, "_fit_to", fit_to)
        return seen

    @pytest.mark.parametrize(
        "problem",
        [(InputError("c.ply is broken"), "c.ply is broken"), (IndexError("9 of 4"), "IndexError: 9 of 4")],
        ids=["foreseen", "not foreseen"],
    )
    def test_one_bad_scan_does_not_stop_the_rest(
        self,
        folder: Path,
        fitted: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        problem: tuple[Exception, str],
    ) -> None:
        (folder / "a.landmarks.json").write_text("{}")
        error, message = problem
        monkeypatch.setitem(ERRORS, 0, error)
        index = fit_folder(folder, tmp_path / "set")
        assert fitted == ["a.ply a.landmarks.json", "b.obj", "b.ply", "c.ply"]
        assert [(r["name"], r["state"]) for r in index["scans"]] == [
            ("a", "done"),
            ("b_obj", "done"),
            ("b_ply", "done"),
            ("c", "failed"),
        ]
        assert index["scans"][3]["message"] == message
        assert json.loads((tmp_path / "set" / "registrations.json").read_text()) == index

    def test_goes_on_where_it_stopped(self, folder: Path, fitted: list[str], tmp_path: Path) -> None:
        first = fit_folder(folder, tmp_path / "set")
        fitted.clear()
        assert fit_folder(folder, tmp_path / "set") == first
        assert fitted == ["c.ply"]
        (folder / "a.ply").write_bytes(b"another scan")
        (tmp_path / "set" / "a" / "summary.json").unlink()
        fit_folder(folder, tmp_path / "set")
        assert "a.ply" in fitted

    def test_fits_of_other_options_or_scans_are_kept(self, folder: Path, fitted: list[str], tmp_path: Path) -> None:
        out, other = tmp_path / "set", FitOptions(steps=7)
        first = fit_folder(folder, out)
        fitted.clear()
        (folder / "a.landmarks.json").write_text("{}")
        with pytest.raises(OutputError, match=r"other options \(landmarks, steps\); pass --overwrite"):
            fit_folder(folder, out, options=other)
        (folder / "a.landmarks.json").unlink()
        (folder / "b.ply").write_bytes(b"another scan")
        with pytest.raises(OutputError, match=r"b_ply holds the fit of another scan \(b.ply\); choose another with -o"):
            fit_folder(folder, out, overwrite=True)
        assert not fitted and json.loads((out / "registrations.json").read_text()) == first
        (folder / "b.ply").write_bytes(b"b.ply")
        fit_folder(folder, out, options=other, overwrite=True)
        assert fitted == ["a.ply", "b.obj", "b.ply", "c.ply"]

    def test_one_scan_is_kept_alike(self, folder: Path, fitted: list[str], tmp_path: Path) -> None:
        first = fit_scan(folder / "a.ply", tmp_path / "out")
        assert fit_scan(folder / "a.ply", tmp_path / "out") == first
        with pytest.raises(OutputError, match=r"other options \(steps\)"):
            fit_scan(folder / "a.ply", tmp_path / "out", options=FitOptions(steps=7))
        with pytest.raises(OutputError, match=r"another scan \(a.ply\)"):
            fit_scan(folder / "b.ply", tmp_path / "out")
        assert fitted == ["a.ply"]
        fit_scan(folder / "a.ply", tmp_path / "out", options=FitOptions(steps=7), overwrite=True)
        assert fitted == ["a.ply"] * 2

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no scans"):
            fit_folder(tmp_path, tmp_path / "set")
        with pytest.raises(InputError, match="landmarks"):
            fit_folder(tmp_path, tmp_path / "set", options=FitOptions(landmarks=tmp_path / "x.npy"))
        with pytest.raises(InputError, match="no scan at"):
            fit_scan(tmp_path / "none.ply", tmp_path / "out")
