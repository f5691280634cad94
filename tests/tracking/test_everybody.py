"""Everybody in a shot: a run each, as if it had been made alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nphm_track import TrackOptions, tracker
from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.tracking import everybody, pipeline
from nphm_track.tracking.everybody import PEOPLE_JSON, Person
from nphm_track.video.writer import VideoWriter

BARE = {"codes": "landmarks", "meshes": False, "overlay": False, "report": False}


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two faces, one of which moves."""
    from skimage import data

    face = Image.fromarray(data.astronaut()[0:260, 90:350]).resize((120, 120))
    other = np.asarray(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((100, 100))).astype(float)
    other = (other * [0.7, 0.9, 1.0]).astype(np.uint8)
    path = tmp_path_factory.mktemp("shot") / "two.mp4"
    with VideoWriter(path, (270, 120), frame_rate_hint=25) as writer:
        for index in range(3):
            picture = np.full((120, 270, 3), 128, np.uint8)
            picture[:, :120] = face
            picture[10:110, 160 + index : 260 + index] = other
            writer.write(picture, index / 25)
    return path


@pytest.fixture(autouse=True)
def only_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the observations is the run of one person, which others test."""
    monkeypatch.setattr(everybody, "track", lambda input, output, **_: SimpleNamespace(path=output))


def test_each_person_is_observed_as_if_chosen_alone(shot, tmp_path):
    done = tracker.track_people(shot, tmp_path / "out", **BARE)
    found = json.loads((tmp_path / "out" / PEOPLE_JSON).read_text())["people"]
    assert [run.path.name for run in done] == [person.pop("name") for person in found] == ["person-1", "person-2"]
    assert found[0]["face_at"][0] < 140 < found[1]["face_at"][0]
    pipeline.observe(shot, tmp_path / "alone", options=TrackOptions(**found[1], **BARE))
    alone, together = (path / "work" / "observations.bin" for path in (tmp_path / "alone", done[1].path))
    assert alone.read_bytes() == together.read_bytes()
    assert read_state(done[1].path) == "interrupted"  # the run goes on from there

    with pytest.raises(OutputError, match="is the run of one person"):
        tracker.track_people(shot, done[0].path)
    with pytest.raises(OutputError, match="people of another input"):
        tracker.track_people(picture(tmp_path / "grey.png"), tmp_path / "out")


def test_two_who_are_one_face_are_one_person(shot, tmp_path, monkeypatch):
    first = Person(name="person-1", face_at=(60, 60), face_time=0)
    twice = [first, first.model_copy(update={"name": "person-2"})]
    monkeypatch.setattr(everybody, "find_people", lambda clip, options: twice)
    done = tracker.track_people(shot, tmp_path / "out", **BARE)
    assert [run.path.name for run in done] == ["person-1"] and not (tmp_path / "out" / "person-2").exists()
    assert len(json.loads((tmp_path / "out" / PEOPLE_JSON).read_text())["people"]) == 1


def test_what_cannot_be_is_refused(shot, tmp_path):
    with pytest.raises(InputError, match="--face is for one person"):
        tracker.track_people(shot, tmp_path / "out", face=1)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds no people\.json"):
        tracker.track_people(shot, tmp_path)
    with pytest.raises(NoFaceError, match="no face found"):
        tracker.track_people(picture(tmp_path / "grey.png"), tmp_path / "nobody")


def picture(path: Path) -> Path:
    Image.new("RGB", (64, 64), "grey").save(path)
    return path


def read_state(path: Path) -> str:
    return str(json.loads((path / "run.json").read_text())["state"])
