"""The benchmarks' entry and what they share; each benchmark answers, the quick ones run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the package is not installed
from benchmarks.__main__ import application, main, names
from benchmarks.harness import Report, table
from benchmarks.reading import Reader, write_video

ROOT = Path(__file__).resolve().parents[2]


def test_the_list_names_every_benchmark_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(names()) and len(lines) > 12
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", names())
def test_a_benchmark_tells_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        application(name)(["--help"])
    assert end.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"no benchmark 'spede'; choose from .*decoder"):
        main(["spede"])


def test_importing_the_harness_does_not_load_torch() -> None:
    code = "import sys, benchmarks.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_benchmark_imports_anything_private() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        private = [alias.name for node in nodes for alias in node.names if alias.name.startswith("_")]
        assert not private, path


def test_numbers_of_a_table_are_short_and_unknown_ones_dashes() -> None:
    text = table(["a", "b", "c", "d"], [[0.12345, 1234.5, float("nan"), None]])
    assert text.splitlines()[-1] == "| 0.123 | 1234 | - | - |"


def test_a_report_is_written_for_people_and_for_programs(tmp_path: Path) -> None:
    Report({"answer": 42}, ["All is well."], passed=False).save(tmp_path, "check")
    facts = json.loads((tmp_path / "check.json").read_text())
    assert facts["answer"] == 42 and facts["passed"] is False and facts["machine"]["cores"]
    assert (tmp_path / "check.md").read_text().endswith("All is well.\n")


def test_a_file_is_read_or_refused_with_one_line(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "out", limit=60)
    assert reader.read(write_video(tmp_path / "clip.mp4", frames=3)) == ("read", "64x48, 3 frames")
    (tmp_path / "text.mp4").write_text("no clip")
    assert reader.read(tmp_path / "text.mp4").kind == "refused"


def test_damaged_files_end_well(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        application("fuzz")(["--files", "6", "--out", str(tmp_path)])
    assert end.value.code == 0
    assert sum(json.loads((tmp_path / "fuzz.json").read_text())["counts"].values()) == 6


def test_a_file_that_ends_the_other_way_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import corpus

    clip = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(corpus, "make", lambda folder: iter([corpus.Case("well", clip, corpus.BAD)]))
    report = corpus.run(tmp_path)
    assert not report.passed
    assert report.facts["findings"] == ["well: it ended well: 64x48, 8 frames"]


def test_an_array_that_moved_is_told_apart_from_one_that_did_not() -> None:
    from benchmarks.golden import differences

    kept = {"a": np.array([1.0, np.nan]), "b": np.zeros(2), "c": np.zeros(1)}
    found = {"a": np.array([1.0 + 1e-5, np.nan]), "b": np.full(2, 1e-7), "d": np.zeros(1)}
    assert differences(found, kept) == ["c: only on one side", "d: only on one side", "a: off by 1e-05"]


def test_people_count_once_in_the_summary_of_scans() -> None:
    from benchmarks.scans import summary

    row = {"kind": "clay", "camera": "known", "views": "r_front"}
    faces = (("st", 2.0, 1.0), ("st", 4.0, 1.0), ("lps", 1.0, 2.0))
    rows = [{**row, "person": person, "median": median, "mean_head": mean} for person, median, mean in faces]
    assert summary(rows).splitlines()[-1] == "| **mean, better for 1 of 2** | clay | known | 2 | 1.5 | 1.33 |"


def test_made_speech_opens_the_jaw_and_closes_the_eyes() -> None:
    from benchmarks.data import speech

    e = speech(np.random.default_rng(0), ["jawOpen", "eyeBlink_L", "noseSneer"], np.arange(60) / 30)
    assert e.shape == (60, 3) and e.min() >= 0 and e.max() <= 1
    assert np.ptp(e[:, 0]) > 0.2 and e[:, 1].max() > 0.8 and not e[:, 2].any()


def test_jitter_is_that_of_second_differences() -> None:
    from benchmarks.data import rms

    assert rms(np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(np.sqrt(12.5))


def test_a_looped_clip_is_as_long_as_asked_for(tmp_path: Path) -> None:
    from benchmarks.memory import loop

    clip = write_video(tmp_path / "clip.mp4", frames=5)
    assert loop(clip, tmp_path / "long.mp4", seconds=0.5, height=32) == 13
    assert Reader(tmp_path / "out", limit=60).read(tmp_path / "long.mp4").text == "42x32, 13 frames"
