"""A run finds its clip again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nphm_track import Run
from nphm_track.errors import InputError
from nphm_track.tracking.clip import find_clip, open_clip, open_input, relink
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo, RunInfo
from nphm_track.video.reader import open_video


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run ``job/run`` of the image ``job/clips/a.png``."""
    clip, folder = tmp_path / "job" / "clips" / "a.png", tmp_path / "job" / "run"
    for path in (clip.parent, folder):
        path.mkdir(parents=True)
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(clip)
    info = InputInfo.of(clip, open_video(clip).info, folder)
    made = RunInfo(input=info, options=TrackOptions().fingerprint())
    made.save(folder / "run.json")
    return Run(folder, made)


def clip_of(run: Run) -> Path:
    return Path(run.info.input.path)


def test_a_clip_that_stayed_is_where_it_was(run):
    assert find_clip(run) == clip_of(run)
    assert next(iter(open_clip(run))).image.mean() == 90


def test_job_folders_can_be_moved_as_a_whole(run, tmp_path):
    (tmp_path / "job").rename(tmp_path / "archive")
    moved = Run(tmp_path / "archive" / "run", run.info)
    assert find_clip(moved).resolve() == (tmp_path / "archive" / "clips" / "a.png").resolve()


def test_a_clip_under_another_name_beside_the_run_is_known_by_its_contents(run):
    shutil.copy(clip_of(run), run.path.parent / "b.png")
    clip_of(run).write_bytes(b"another file")
    assert find_clip(run) == run.path.parent / "b.png"


def test_a_folder_of_images_is_known_by_its_contents(run, tmp_path):
    folder = clip_of(run).parent
    info = InputInfo.of(folder, open_video(folder).info, run.path)
    of_folder = Run(run.path, run.info.model_copy(update={"input": info}))
    folder.rename(run.path.parent / "renamed")
    assert find_clip(of_folder) == run.path.parent / "renamed"


def test_a_clip_that_is_gone_or_changed_says_how_to_go_on(run):
    clip_of(run).write_bytes(b"another file")
    with pytest.raises(InputError, match=f"has changed; nphm-track relink {run.path} CLIP"):
        find_clip(run)
    clip_of(run).unlink()
    with pytest.raises(InputError, match=f"not there any more; nphm-track relink {run.path} CLIP"):
        open_clip(run)


def test_relinking_keeps_the_new_place_and_refuses_another_clip(run, tmp_path):
    elsewhere = tmp_path / "elsewhere.png"
    clip_of(run).rename(elsewhere)
    assert find_clip(run, elsewhere) == elsewhere
    relink(run, elsewhere)
    assert find_clip(Run(run.path, RunInfo.load(run.path / "run.json"))) == elsewhere
    with pytest.raises(InputError, match="its contents differ"):
        relink(run, run.path / "run.json")


def test_reading_options_reach_the_reader(run):
    source = open_input(clip_of(run), TrackOptions(start=0.0, every=3))
    assert (source.start, source.every) == (0.0, 3)
