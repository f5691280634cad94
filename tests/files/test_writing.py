from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nphm_track.errors import OutputError
from nphm_track.files.writing import check_free, placing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(target: Path, files: dict[str, str]) -> None:
    with placing(target) as place:
        place.mkdir()
        for name, content in files.items():
            (place / name).write_text(content)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "film.mp4"
    with placing(target) as place:
        place.write_text("half")
        assert not target.exists()
        place.write_text("whole")
    assert target.read_text() == "whole" and names(target.parent) == ["film.mp4"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    target.write_text("old")
    with pytest.raises(RuntimeError), placing(target) as place:
        place.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["film.mp4"]


def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", {"a": "1", "b": "1"})
    write_folder(tmp_path / "out", {"a": "2"})
    assert names(tmp_path / "out") == ["a"] and names(tmp_path) == ["out"]


def test_neighbours_with_the_names_of_intermediate_files_stay(tmp_path: Path) -> None:
    mine = ["out.old", "out.partial", "out.partial.mp4", ".out.partial", ".partial"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    write_folder(tmp_path / "out", {"a": "1"})
    write_folder(tmp_path / "out", {"a": "2"})
    assert [(tmp_path / name).read_text() for name in mine] == ["mine"] * len(mine)
    assert names(tmp_path) == sorted([*mine, "out"])


def test_two_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    def write(value: str) -> None:
        for _ in range(20):
            write_folder(tmp_path / "out", {str(i): value for i in range(5)})

    writers = [threading.Thread(target=write, args=(value,)) for value in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({path.read_text() for path in (tmp_path / "out").iterdir()}) == 1
    assert len(names(tmp_path / "out")) == 5 and names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), placing(tmp_path / "file" / "out"):
        pass


def test_what_is_there_stays_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").write_text("")
    os.symlink("nowhere", tmp_path / "link.mp4")
    for name in ("mine.mp4", "link.mp4"):
        with pytest.raises(OutputError, match="--overwrite"):
            check_free(tmp_path / name, overwrite=False)
        check_free(tmp_path / name, overwrite=True)
    check_free(tmp_path / "new.mp4", overwrite=False)
    with pytest.raises(OutputError, match="is a folder"):
        check_free(tmp_path, overwrite=True)
