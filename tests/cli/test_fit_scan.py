from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nphm_track.cli import main
from nphm_track.errors import NoFaceError
from nphm_track.scans import fitting

ROW = {"scan": "a.ply", "median_mm": 0.44, "mean_mm": 0.6, "scale": 1000.0, "unit": "mm"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, Path, Any]]:
    seen: list[tuple[str, Path, Path, Any]] = []

    def one(scan: Path, out: Path, *, options: Any, overwrite: bool, progress: Any) -> dict[str, Any]:
        seen.append(("one", scan, out, options))
        if scan.name == "wall.ply":
            raise NoFaceError("no face found on the scan")
        return ROW

    def many(scan: Path, out: Path, *, options: Any, overwrite: bool, progress: Any) -> dict[str, Any]:
        seen.append(("many", scan, out, options))
        failed = {"name": "b", "state": "failed", "scan": "b.ply", "message": "broken"}
        return {"scans": [{"state": "done", "outlier": True, **ROW}, failed]}

    monkeypatch.setattr(fitting, "fit_scan", one)
    monkeypatch.setattr(fitting, "fit_folder", many)
    return seen


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nphm-track", "fit-scan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_one_scan(monkeypatch: pytest.MonkeyPatch, calls: list[Any], capsys: Any) -> None:
    assert run(monkeypatch, "x/a.ply", "--landmarks", "p.json", "--steps", "7", "--head-model", "other") == 0
    options = fitting.FitOptions("other", Path("p.json"), 7, "cpu")
    assert calls == [("one", Path("x/a.ply"), Path("a_fit"), options)]
    assert "a.ply: median 0.44 mm, mean 0.60 mm; scale 1000 (mm)" in capsys.readouterr().out


def test_defaults_are_the_librarys(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    assert run(monkeypatch, "a.ply", "-q") == 0
    assert calls[0][3] == fitting.FitOptions()


def test_folder(monkeypatch: pytest.MonkeyPatch, calls: list[Any], capsys: Any, tmp_path: Path) -> None:
    assert run(monkeypatch, str(tmp_path), "-o", "set") == 0
    assert calls[0][:3] == ("many", tmp_path, Path("set"))
    out = capsys.readouterr().out
    assert "outlier" in out and "b.ply: failed: broken" in out


def test_json_is_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, calls: list[Any], capsys: Any) -> None:
    assert run(monkeypatch, "a.ply", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ROW


def test_no_face_ends_with_3(monkeypatch: pytest.MonkeyPatch, calls: list[Any], capsys: Any) -> None:
    assert run(monkeypatch, "wall.ply", "-q") == 3
    assert capsys.readouterr().err == "nphm-track: no face found on the scan\n"


def test_bad_steps(monkeypatch: pytest.MonkeyPatch, calls: list[Any], capsys: Any) -> None:
    assert run(monkeypatch, "a.ply", "--steps", "0") == 2
    assert not calls
