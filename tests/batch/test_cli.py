"""``nphm-track batch`` as a user meets it, with the quick stand-in for tracking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import fake_steps
import numpy as np
import pytest
from fake_steps import InlinePool, contents, write_take

from nphm_track.batch import driver, steps
from nphm_track.cli import batch as cli_batch
from nphm_track.cli import export as cli_export
from nphm_track.cli import main
from nphm_track.export import formats
from nphm_track.export.options import ExportOptions
from nphm_track.tracking import run_folder

Run = Callable[..., int]


class NoPool(InlinePool):
    """Has nothing to do."""

    def submit(self, key: str, work: object) -> None:
        raise AssertionError(key)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code of ``nphm-track batch ...`` in a folder with three takes in ``in``, one of them no video."""
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(tmp_path / "in" / name)
    (tmp_path / "in" / "ben" / "two.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "local_pool", lambda manifest, workers: InlinePool())

    def call(*arguments: str) -> int:
        return nphm_track("batch", *arguments, monkeypatch=monkeypatch)

    return call


def test_from_plan_to_retry(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in", "-o", "out", "--dry-run") == 0
    assert "anna/one  queued  anna/one.mp4" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run("in", "-o", "out") == 6
    said = capsys.readouterr()
    assert said.out == "3 of 4 takes done; see out/index.html\n"
    assert said.err.splitlines()[0] == "4 takes of 2 people, 4 to do"
    assert said.err.splitlines()[-1] == "nphm-track: 1 take failed; nphm-track batch status out says why"
    assert run("status", "out") == 0
    status = capsys.readouterr().out.splitlines()
    assert status[-1] == "3 done, 1 failed"
    assert any(line.startswith("ben/two: ") and "two.mp4" in line for line in status)  # in full, however long
    assert run("status", "out", "--json") == 0
    assert [job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["done"] * 3 + ["failed"]
    assert run("retry", "out") == 2 and "--failed" in capsys.readouterr().err
    write_take(tmp_path / "in" / "ben" / "two.mp4")
    assert run("retry", "out", "--failed", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert run("retry", "out", "--failed") == 2 and "no take has failed" in capsys.readouterr().err


def test_programs_are_told_in_json(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in", "-o", "out", "--json") == 6
    told = json.loads(capsys.readouterr().out)
    assert (told["takes"], told["done"], [take["take"] for take in told["failed"]]) == (4, 3, ["ben/two"])
    assert run("in", "-o", "out", "--every", "0", "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert run("export", "out", "-f", "colmap", "--json") == 6  # the stand-in's runs have no track that can be read
    assert len(json.loads(capsys.readouterr().out)["failed"]) == 3
    assert run("export", "out", "-f", "nothing") == 2 and "unknown format" in capsys.readouterr().err


def test_takes_are_exported_as_single_runs_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("in", "-o", "out")
    asked = []

    def export(of: object, format: str, place: Path | None, options: ExportOptions, *others: object) -> Path:
        asked.append((place, options))
        return place or Path("in its run folder")

    monkeypatch.setattr(formats, "export", export)
    monkeypatch.setattr(run_folder, "read_run", lambda path: path)
    given = ("--unit", "cm", "--up", "z", "--images", "--frames", "2:5", "--flame-model", "flame.npz", "--overwrite")
    assert run("export", "out", "-f", "blendshapes", "-o", "csv", *given, "--textured", "--gnm-model", "g.npz") == 0
    assert [place for place, _ in asked] == [
        Path("csv") / name for name in ("anna/one.csv", "anna/two.csv", "ben/one.csv")
    ]
    assert asked[0][1] == ExportOptions(
        unit="cm",
        up="z",
        images=True,
        frames=(2, 5),
        textured=True,
        flame_model=Path("flame.npz"),
        gnm_model=Path("g.npz"),
    )
    assert run("export", "out", "-f", "usd", "-o", "scenes") == 0 and asked[-1][0] == Path("scenes/ben/one/usd")
    assert run("export", "out", "-f", "usd") == 0 and asked[-1][0] is None
    single = {p.name for p in signature(cli_export.export).parameters.values()} - {"run", "clip"}
    assert single <= {p.name for p in signature(cli_batch.export).parameters.values()}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_an_array_of_steps_does_what_a_session_does(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, order: tuple[int]
) -> None:
    monkeypatch.setattr(steps, "run", fake_steps.run)
    assert run("in", "-o", "whole", "-q") == 6
    assert run("in", "-o", "out", "--plan") == 0 and "step out 0 to 3" in capsys.readouterr().out
    codes = [run("step", "out", str(index), "-q") for index in order]
    assert codes == [6 if index == 3 else 0 for index in order]
    assert not list((tmp_path / "out").rglob("track.npz"))
    assert [run("step", "out", str(index), "-q") for index in order] == codes
    assert json.loads((tmp_path / "out" / "session.json").read_text())["jobs"][0]["state"] == "queued"
    monkeypatch.setattr(driver, "local_pool", lambda manifest, workers: NoPool())
    assert run("in", "-o", "out", "-q") == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_step_waits_for_the_persons_other_takes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "run", fake_steps.run)
    assert run("in", "-o", "out", "--plan") == 0
    assert run("step", "out", "0") == 0
    assert run("step", "out", "0") == 2  # anna/two is not observed yet
    assert run("step", "out", "9") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("nothing", "-o", "out"), 2, "nothing: no such file or folder"),
        (("in", "-o", "in"), 5, "in is not empty and not a capture session"),
        (("in", "-o", "out", "--every", "0"), 2, "option every"),
        (("in", "-o", "out", "--identity", "gone.npz"), 2, "gone.npz: no such file"),
        (("status", "in"), 2, "not a capture session"),
        (("retry", "in", "--failed"), 2, "not a capture session"),
    ],
)
def test_one_clear_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, error: str
) -> None:
    assert run(*arguments) == code
    said = capsys.readouterr().err
    assert error in said and len(said.splitlines()) <= 1


def test_photographs_of_one_person_are_a_session(run: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.jpg", "b.png", "b_mask.png"):
        write_take(tmp_path / "photos" / name)
    assert nphm_track("photos", "--photos", "-o", "anna", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "2 of 2 takes done; see anna/index.html\n"
    codes = [np.load(tmp_path / "anna" / "photos" / name / "track.npz")["z_id"] for name in ("a", "b")]
    np.testing.assert_array_equal(*codes)
    assert nphm_track("photos", "--photos", "-o", "anna", "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 2
    assert nphm_track("photos/a.jpg", "--photos", monkeypatch=monkeypatch) == 2
    assert "--photos is for a folder" in capsys.readouterr().err


def nphm_track(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["nphm-track", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)
