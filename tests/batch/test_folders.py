"""Camera cards: every file is a take or named with the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nphm_track.batch.plan import find_takes, passed_over

CARDS = """
anna/M4ROOT/CLIP/C0001.MP4
anna/M4ROOT/CLIP/C0001M01.XML
anna/M4ROOT/CLIP/C0002.MP4
anna/M4ROOT/THMBNL/C0001T01.JPG
anna/M4ROOT/THMBNL/C0002T01.JPG
ben/AVCHD/BDMV/STREAM/00000.MTS
carl/DCIM/IMG_0001.HEIC
carl/DCIM/IMG_0001.MOV
carl/DCIM/IMG_0002.HEIC
dora/gopro/GX010001.LRV
dora/gopro/GX010001.MP4
eve/dv/tape.dv
eve/dv/tape.m2t
eve/dv/tape.vob
fay/raw/f_0001.exr
fay/raw/f_0001_mask.exr
fay/raw/f_0002.exr
fay/.DS_Store
gus/portrait.jpg
poster.png
"""


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    for name in CARDS.split():
        path = tmp_path / "cards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    run = tmp_path / "cards" / "ben" / "old_nphm"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "overlay.mp4").write_bytes(b"")
    return tmp_path / "cards"


def test_takes_of_six_people(cards, tmp_path):
    root, takes = find_takes(cards, tmp_path / "out")
    assert [(t.person, t.path.relative_to(root).as_posix()) for t in takes] == [
        ("anna", "anna/M4ROOT/CLIP/C0001.MP4"),
        ("anna", "anna/M4ROOT/CLIP/C0002.MP4"),
        ("ben", "ben/AVCHD/BDMV/STREAM/00000.MTS"),
        ("carl", "carl/DCIM/IMG_0001.MOV"),
        ("dora", "dora/gopro/GX010001.MP4"),
        ("eve", "eve/dv/tape.dv"),
        ("eve", "eve/dv/tape.m2t"),
        ("eve", "eve/dv/tape.vob"),
        ("fay", "fay/raw"),
    ]


def test_every_other_file_is_named_with_the_reason(cards, tmp_path):
    assert passed_over(cards, tmp_path / "out") == [
        ("anna/M4ROOT/CLIP/C0001M01.XML", "neither a video nor an image"),
        ("anna/M4ROOT/THMBNL/C0001T01.JPG", "a camera's thumbnail"),
        ("anna/M4ROOT/THMBNL/C0002T01.JPG", "a camera's thumbnail"),
        ("ben/old_nphm", "written by this program"),
        ("carl/DCIM/IMG_0001.HEIC", "the still of IMG_0001.MOV"),
        ("carl/DCIM/IMG_0002.HEIC", "an image beside videos"),
        ("dora/gopro/GX010001.LRV", "a camera's small copy of a clip"),
        ("fay/.DS_Store", "hidden"),
        ("fay/raw/f_0001_mask.exr", "a mask of the image beside it"),
        ("gus/portrait.jpg", "a single image"),
        ("poster.png", "an image, in no folder of its own"),
    ]


def test_photographs_are_takes_of_their_own(cards, tmp_path):
    """Of one person where they lie in no folder; masks and thumbnails are none."""
    root, takes = find_takes(cards, tmp_path / "out", photos=True)
    found = {take.path.relative_to(root).as_posix(): take.person for take in takes}
    assert {found[f"fay/raw/f_000{k}.exr"] for k in (1, 2)} == {"fay"} and "fay/raw" not in found
    assert found["carl/DCIM/IMG_0001.HEIC"] == "carl" and found["poster.png"] == "cards"
    assert [path for path, _ in passed_over(cards, tmp_path / "out", photos=True)] == [
        "anna/M4ROOT/CLIP/C0001M01.XML",
        "anna/M4ROOT/THMBNL/C0001T01.JPG",
        "anna/M4ROOT/THMBNL/C0002T01.JPG",
        "ben/old_nphm",
        "dora/gopro/GX010001.LRV",
        "fay/.DS_Store",
        "fay/raw/f_0001_mask.exr",
    ]


def test_folders_of_masks_are_no_takes(tmp_path):
    """As data sets of avatars lie; somebody who is called so is a person."""
    for name in (
        "anna/image/1.png",
        "anna/image/2.png",
        "anna/mask/1.png",
        "anna/mask/2.png",
        "alpha/1.png",
        "alpha/2.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, takes = find_takes(tmp_path, tmp_path / "out")
    assert {str(take.path.relative_to(root)) for take in takes} == {"anna/image", "alpha"}
    reasons = passed_over(tmp_path, tmp_path / "out")
    assert reasons == [(f"anna/mask/{k}.png", "a mask, by its folder, of an image of another one") for k in (1, 2)]


def test_a_list_passes_nothing_over(tmp_path):
    (tmp_path / "takes.csv").write_text("input\na.mp4\n")
    assert passed_over(tmp_path / "takes.csv", tmp_path / "out") == []
