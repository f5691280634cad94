"""Settings compared on people: paired, and chosen without the person they are judged on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.choice import compare, left_out, people, run
from nphm_track.errors import InputError


def test_a_choice_is_made_without_the_person_it_is_judged_on() -> None:
    ours = np.array([[1.0, 1.0, 1.0], [0.2, 1.3, 1.3]])  # the second setting is good for the first person only
    assert left_out(ours).tolist() == [1.0, 1.3, 1.3]


def test_differences_are_paired_and_the_mean_head_is_counted() -> None:
    values = np.array([[[1.0, 1.2], [3.0, 2.0]], [[0.9, 1.2], [2.9, 2.0]]])
    base, other, _ = compare(["a", "b"], values)
    assert base["difference"] == 0 and base["mean_head_better"] == 1
    assert other["difference"] == pytest.approx(-0.1) and other["error"] == pytest.approx(0, abs=1e-9)
    assert other["better"] == 2 and other["ratio"] == pytest.approx(3.8 / 3.2)


def test_people_count_once_and_failures_not_at_all(tmp_path: Path) -> None:
    common = {"kind": "clay", "camera": "known", "mean_head": 2.0}
    rows = [
        {**common, "person": "st", "views": "r_front", "median": 1.0},
        {**common, "person": "st", "views": "r_yawL25", "median": 3.0},
        {**common, "person": "st", "views": "r_yawL45", "median": 9.0},
        {**common, "person": "lps", "views": "r_front", "failure": "no face"},
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scans.json").write_text(json.dumps({"results": rows}))
    assert people(tmp_path / "a" / "scans.json") == {("clay", "known"): {"st": (2.0, 2.0)}}
    report = run(out=tmp_path, results=[tmp_path / n / "scans.json" for n in ("a", "b")])
    assert report.facts["groups"]["clay/known"]["people"] == ["st"]
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(InputError, match="not a result"):
        people(tmp_path / "c.json")
