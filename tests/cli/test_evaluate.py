"""``evaluate`` and ``view`` as a user meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from nphm_track.cli import main
from nphm_track.evaluation.points7 import NAMES7


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch) -> Any:
    def invoke(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["nphm-track", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    return invoke


@pytest.fixture
def bowl(tmp_path: Path) -> tuple[str, str]:
    """A face-like bowl in millimetres, and its seven points."""
    x, y = np.meshgrid(np.linspace(-90, 90, 46), np.linspace(-110, 110, 56))

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 60 - 0.0025 * x**2 - 0.0017 * y**2 + 20 * np.exp(-((x / 12) ** 2) - ((y + 5) / 20) ** 2)

    i = np.arange(x.size).reshape(x.shape)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, 1:].ravel(), i[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    vertices = np.stack([x, y, height(x, y)], -1).reshape(-1, 3)
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "scan.ply")
    xy = np.array([(-44, 27), (-18, 26), (18, 26), (44, 27), (0, -21), (-24, -43), (24, -43)], float)
    points = np.column_stack([xy, height(*xy.T)])
    (tmp_path / "points.json").write_text(json.dumps(dict(zip(NAMES7, points.tolist(), strict=True))))
    return str(tmp_path / "scan.ply"), str(tmp_path / "points.json")


def test_scan_against_mesh(run_cli: Any, bowl: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    scan, points = bowl
    common = ("evaluate", "scan", "--scan", scan, "--points7", points)
    out = str(tmp_path / "out")
    assert run_cli(*common, "--mesh", scan, "--pred-points7", points, "-o", out, "--json", "-q") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["similarity"]["mean"] < 1e-3 and facts["similarity"]["scale"] == pytest.approx(1, abs=1e-4)
    assert facts["command"].startswith("nphm-track evaluate scan --scan") and facts["models"] == {}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == facts
    assert "scan to mesh, mean mm" in (tmp_path / "out" / "results.md").read_text()


def test_scan_says_what_is_wrong(run_cli: Any, bowl: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    scan, points = bowl
    common = ("evaluate", "scan", "--scan", scan, "--points7", points)
    for arguments, message in (
        ((), "one of --mesh, --run, --image"),
        (("--mesh", scan), "--mesh and --pred-points7 belong together"),
        (("--run", "r", "--intrinsics", "c.json"), "--intrinsics to --image"),
        (("--run", str(tmp_path)), "not a run folder"),
    ):
        assert run_cli(*common, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_data_sets_say_what_is_wrong(run_cli: Any, tmp_path: Path, capsys: Any) -> None:
    for command, message in (("now", "not the NoW data set"), ("nersemble", "not the SVFR data set")):
        out = tmp_path / command
        assert run_cli("evaluate", command, "--dataset", str(tmp_path), "--out", str(out), "-q") == 2
        assert message in capsys.readouterr().err and not out.exists()


def test_view_without_viser_says_so(run_cli: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from nphm_track.tracking import run_folder

    monkeypatch.setitem(sys.modules, "viser", None)
    monkeypatch.setattr(run_folder, "read_run", lambda path: None)
    assert run_cli("view", "run") == 2
    assert "pip install 'nphm-track[viewer]'" in capsys.readouterr().err
