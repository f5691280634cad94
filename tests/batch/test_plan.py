"""From folders and lists to jobs; and what names, lists and manifests cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from nphm_track.batch import driver
from nphm_track.batch.manifest import Job, Manifest, State, name_problem, output_path
from nphm_track.batch.plan import absolute_options, tidy_name
from nphm_track.errors import InputError, OutputError
from nphm_track.tracking.options import TrackOptions

ESCAPES = [
    "..",
    ".",
    "",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    "C:x",
    "x\0y",
    "x\ny",
    ".hidden",
    "con",
    "work",
    "votes",
    "n" * 200,
]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def planned(source: Path, out: Path, person: str | None = None, **options: object) -> Manifest:
    return driver.planned(source, out, TrackOptions(**options), person=person)


def outputs(manifest: Manifest) -> dict[str, str]:
    return {job.output: job.input for job in manifest.jobs}


class TestFolders:
    def test_people_are_first_level_folders(self, tmp_path: Path) -> None:
        names = ("anna/a.mp4", "anna/day2/b.MOV", "ben/a.mp4", "lone.webm", "ben/notes.txt", "ben/.hidden.mp4")
        touch(tmp_path / "in", *names)
        assert outputs(planned(tmp_path / "in", tmp_path / "out")) == {
            "lone/lone": "lone.webm",
            "anna/a": "anna/a.mp4",
            "anna/b": "anna/day2/b.MOV",
            "ben/a": "ben/a.mp4",
        }

    def test_people_by_regular_expression(self, tmp_path: Path) -> None:
        touch(tmp_path / "in", "2024/anna_1.mp4", "2024/anna_2.mp4", "2025/ben_1.mp4", "2025/x.mp4")
        manifest = planned(tmp_path / "in", tmp_path / "out", r"([a-z]+)_\d")
        states = {job.output: job.state for job in manifest.jobs}
        assert states.pop("x/x") is State.SKIPPED
        assert set(states) == {"anna/anna_1", "anna/anna_2", "ben/ben_1"}
        assert driver.plan_line(manifest) == "3 takes of 2 people, 3 to do, 1 skipped"
        with pytest.raises(InputError, match="not a regular expression"):
            planned(tmp_path / "in", tmp_path / "out", "(")

    def test_folders_of_images_are_takes(self, tmp_path: Path) -> None:
        touch(tmp_path / "in", "anna/walk/1.png", "anna/walk/2.png", "ben/1.jpg", "ben/2.jpg", "eve/a.mp4", "eve/a.png")
        manifest = planned(tmp_path / "in", tmp_path / "out")
        assert outputs(manifest) == {"anna/walk": "anna/walk", "ben/ben": "ben", "eve/a": "eve/a.mp4"}

    def test_results_and_links_to_above_are_not_takes(self, tmp_path: Path) -> None:
        folder = touch(tmp_path / "in", "anna/a.mp4", "old_run/run.json", "old_run/overlay.mp4", "out/x/overlay.mp4")
        (folder / "anna" / "up").symlink_to(folder)
        touch(folder, "out/session.json")
        (folder / "out" / "session.json").write_text(
            planned(touch(tmp_path / "b", "c.mp4"), tmp_path / "d").model_dump_json()
        )
        assert "anna/a" in outputs(planned(folder, folder / "out2"))
        assert len(planned(folder, folder / "out2").jobs) == 1

    def test_names_that_collide_or_cannot_be_names(self, tmp_path: Path) -> None:
        names = ("anna/take.mp4", "anna/take.mov", "anna/x/take.mp4", "anna/TAKE.avi", "Anna/b.mp4", "Größe 顔/ä.mp4")
        touch(tmp_path / "in", *names, "votes/con.mp4", "a:b/" + "n" * 240 + ".mp4")
        manifest = planned(tmp_path / "in", tmp_path / "out")
        assert len({job.output.casefold() for job in manifest.jobs}) == len(manifest.jobs) == 8
        assert {job.person for job in manifest.jobs} == {"Anna", "Größe 顔", "votes_", "a_b"}
        assert all(not name_problem(job.name) for job in manifest.jobs)

    def test_added_takes_keep_the_places_of_the_others(self, tmp_path: Path) -> None:
        folder, out = touch(tmp_path / "in", "anna/take.mp4"), tmp_path / "out"
        out.mkdir()
        planned(folder, out).save(out)
        touch(folder, "anna/take.avi")
        assert outputs(planned(folder, out)) == {"anna/take": "anna/take.mp4", "anna/take-avi": "anna/take.avi"}

    def test_takes_that_went_are_skipped(self, tmp_path: Path) -> None:
        folder, out = touch(tmp_path / "in", "anna/a.mp4", "anna/b.mp4"), tmp_path / "out"
        out.mkdir()
        planned(folder, out).save(out)
        (folder / "anna" / "b.mp4").unlink()
        assert [job.state for job in planned(folder, out).jobs] == [State.QUEUED, State.SKIPPED]
        planned(folder, out).save(out)
        touch(folder, "anna/b.mp4")
        assert [job.state for job in planned(folder, out).jobs] == [State.QUEUED, State.QUEUED]

    def test_what_cannot_be_a_session(self, tmp_path: Path) -> None:
        folder = touch(tmp_path / "in", "a.mp4")
        for source, error in ((tmp_path / "no", "no such file"), (folder / "a.mp4", "made of a folder")):
            with pytest.raises(InputError, match=error):
                planned(source, tmp_path / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no takes"):
            planned(tmp_path / "empty", tmp_path / "out")
        with pytest.raises(OutputError, match="not empty and not a capture session"):
            planned(folder, touch(tmp_path / "used", "photo.png"))
        with pytest.raises(OutputError, match="is a file"):
            planned(folder, folder / "a.mp4")

    def test_files_among_the_options_move_with_the_session(self, tmp_path: Path) -> None:
        touch(tmp_path / "a" / "in", "x.mp4")
        (tmp_path / "a" / "camera.json").write_text("{}")
        (tmp_path / "a" / "out").mkdir()
        planned(tmp_path / "a" / "in", tmp_path / "a" / "out", intrinsics=tmp_path / "a" / "camera.json").save(
            tmp_path / "a" / "out"
        )
        moved = (tmp_path / "a").rename(tmp_path / "b")
        manifest = planned(moved / "in", moved / "out", intrinsics=moved / "camera.json")
        assert manifest.options == {"intrinsics": "../camera.json"}
        assert absolute_options(manifest.options, moved / "out") == {"intrinsics": str(moved / "camera.json")}

    def test_other_options_are_another_session(self, tmp_path: Path) -> None:
        folder, out = touch(tmp_path / "in", "a.mp4"), tmp_path / "out"
        out.mkdir()
        planned(folder, out, smooth=0.5).save(out)
        with pytest.raises(OutputError, match=r"other options \(smooth\)"):
            planned(folder, out)
        assert not driver.planned(folder, out, TrackOptions(smooth=0.5)).count(State.DONE)


class TestLists:
    def write(self, tmp_path: Path, rows: list[dict[str, str]], kind: str = "json") -> Path:
        path = tmp_path / f"list.{kind}"
        if kind == "json":
            path.write_text(json.dumps(rows))
        else:
            lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
            path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
        return path

    @pytest.mark.parametrize("kind", ["csv", "json"])
    def test_takes_with_options(self, tmp_path: Path, kind: str) -> None:
        rows = [
            {"input": "clips/a.mp4", "person": "anna", "name": "smile", "start": "1.5", "face_at": "320,180"},
            {"input": "clips/b.mp4", "person": "", "name": "", "start": "", "face_at": ""},
        ]
        rows = [{k: v for k, v in row.items() if v} for row in rows] if kind == "json" else rows
        first, second = planned(self.write(tmp_path, rows, kind), tmp_path / "out").jobs
        assert (first.output, first.options) == ("anna/smile", {"start": 1.5, "face_at": [320.0, 180.0]})
        assert (second.output, second.options) == ("b/b", {})
        assert Path("clips/a.mp4").as_posix() == first.input

    @pytest.mark.parametrize("name", ESCAPES[3:])
    @pytest.mark.parametrize("column", ["person", "name"])
    def test_names_cannot_escape(self, tmp_path: Path, name: str, column: str) -> None:
        with pytest.raises(InputError, match=f"cannot be its {column}") as error:
            planned(self.write(tmp_path, [{"input": "a.mp4", column: name}]), tmp_path / "out")
        assert "\n" not in str(error.value) and "\0" not in str(error.value)

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            ([{"person": "anna"}], "take 1: no input"),
            ([{"input": "a.mp4", "colour": "red"}], "unknown column 'colour'"),
            ([{"input": "a.mp4", "every": "0"}], "every: Input should be greater"),
            ([{"input": "a.mp4", "person": 5}], "it is no text"),
            ([{"input": "a.mp4"}, {"input": "./a.mp4"}], "listed twice"),
            (["a.mp4"], "not a list of takes"),
            ({"input": "a.mp4"}, "not a list of takes"),
        ],
    )
    def test_bad_lists(self, tmp_path: Path, rows: list[dict[str, str]], error: str) -> None:
        with pytest.raises(InputError, match=error):
            planned(self.write(tmp_path, rows), tmp_path / "out")

    @pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"{", b"[" * 100_000])
    def test_files_that_are_no_lists(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "list.json").write_bytes(content)
        with pytest.raises(InputError, match="not a readable list"):
            planned(tmp_path / "list.json", tmp_path / "out")


class TestManifest:
    @pytest.mark.parametrize("name", ESCAPES)
    def test_jobs_cannot_escape(self, name: str) -> None:
        assert name_problem(name)
        for names in ({"person": name, "name": "x"}, {"person": "x", "name": name}):
            with pytest.raises(ValidationError):
                Job(input="a.mp4", **names)

    @pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "con", "votes", "ä" * 200, "\0", "x.", " x "])
    def test_tidied_names_are_names(self, name: str) -> None:
        assert not name_problem(tidy_name(name))

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "anna").symlink_to("/tmp")
        with pytest.raises(OutputError, match="leads out of"):
            output_path(tmp_path / "out", Job(input="a", person="anna", name="a"))

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"schema_version": 2}, "schema_version"),
            ({"colour": 1}, "colour"),
            ({"jobs": [{"input": "a", "person": "../x", "name": "a"}]}, "cannot name a folder"),
            (
                {"jobs": [{"input": i, "person": "x", "name": n} for i, n in (("a", "a"), ("b", "A"))]},
                "share the folder",
            ),
        ],
    )
    def test_files_that_were_tampered_with(self, tmp_path: Path, change: dict[str, object], error: str) -> None:
        (tmp_path / "session.json").write_text(json.dumps({"root": "."} | change))
        with pytest.raises(InputError, match=error):
            Manifest.load(tmp_path)

    def test_a_torn_or_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a capture session"):
            Manifest.load(tmp_path)
        (tmp_path / "session.json").write_text("{")
        with pytest.raises(InputError, match="Invalid JSON"):
            Manifest.load(tmp_path)

    def test_a_write_that_fails_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = Manifest(root=".")
        manifest.save(tmp_path)
        before = (tmp_path / "session.json").read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            manifest.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["session.json"]
        assert (tmp_path / "session.json").read_bytes() == before
