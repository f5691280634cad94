from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nphm_track import read_run
from nphm_track.errors import InputChangedError, InputError, NoFaceError, OutputError
from nphm_track.locking import Owner, RunLock
from nphm_track.tracking import records, run_folder
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo, InputWatch, RunInfo, Track, durable, input_digest, replacing
from nphm_track.tracking.run_folder import RUN_JSON, RunFolder, default_output
from nphm_track.video.source import VideoInfo

RECORD = np.dtype([("time", "f8"), ("points", "f4", (3, 2))])
INPUT = InputInfo(path="clip.mp4", sha256="ab", size=10, width=96, height=64)
OTHER_INPUT = INPUT.model_copy(update={"sha256": "cd", "path": "other.mp4"})


def make(n: int, first: int = 0) -> np.ndarray:
    out = np.zeros(n, RECORD)
    out["time"] = np.arange(first, first + n)
    out["points"] = out["time"][:, None, None]
    return out


class TestObservationLog:
    def test_survives_a_torn_tail(self, tmp_path: Path) -> None:
        path = tmp_path / "work" / "log.bin"
        with ObservationLog(path, RECORD) as log:
            log.append(make(3))
            log.append(make(1, first=3)[0])
            np.testing.assert_array_equal(log.read(), make(4))
        with open(path, "ab") as file:
            file.write(b"torn")
        with ObservationLog(path, RECORD) as log:
            assert len(log) == 4
            log.append(make(1, first=4))
            np.testing.assert_array_equal(log.read(), make(5))

    @pytest.mark.parametrize("first", [0, 2, 4])
    def test_records_that_a_power_cut_took_are_cut_off(self, tmp_path: Path, first: int) -> None:
        path = tmp_path / "log.bin"
        with ObservationLog(path, RECORD) as log:
            log.append(make(5))
        size = path.stat().st_size // 5
        with open(path, "r+b") as file:
            file.seek(first * size)
            file.write(bytes(size * (5 - first)))  # blocks that were never written read as zeros
        with ObservationLog(path, RECORD) as log:
            np.testing.assert_array_equal(log.read(), make(first))
            log.append(make(1, first=first))
            np.testing.assert_array_equal(log.read(), make(first + 1))

    def test_one_flipped_bit_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "log.bin"
        with ObservationLog(path, RECORD) as log:
            log.append(make(2000))
        content = bytearray(path.read_bytes())
        content[1500 * len(content) // 2000 + 5] ^= 4
        path.write_bytes(content)
        with ObservationLog(path, RECORD) as log:
            assert len(log) == 1500

    def test_is_readable_while_open_and_mapped(self, tmp_path: Path) -> None:
        with ObservationLog(tmp_path / "log.bin", RECORD) as log:
            assert len(log.read()) == 0
            log.append(make(2))
            assert isinstance(log.read(), np.memmap)

    def test_refuses_records_without_a_fixed_size(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="fixed size"):
            ObservationLog(tmp_path / "log.bin", np.dtype(object))


class TestReplacing:
    @pytest.mark.parametrize("write", [replacing, durable])
    def test_a_file_has_its_name_when_it_is_whole(self, tmp_path: Path, write: Any) -> None:
        path = tmp_path / "a.txt"
        path.write_text("before")
        with write(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "before"
        assert path.read_text() == "half"
        with pytest.raises(KeyboardInterrupt), write(path) as partial:
            partial.write_text("other")
            raise KeyboardInterrupt
        assert path.read_text() == "half" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_a_durable_file_reaches_the_disk_before_its_name_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        monkeypatch.setattr(records.os, "fsync", lambda file: seen.append(os.readlink(f"/proc/self/fd/{file}")))
        with durable(tmp_path / "a.txt") as partial:
            partial.write_text("x")
        assert [Path(path).name for path in seen] == ["a.txt.partial", tmp_path.name]

    def test_a_run_is_done_when_its_files_have_reached_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[str, str]] = []
        folder = RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
        files = [folder.track, folder.transforms, folder.overlay, folder.mesh_path(3), folder.path / "report.html"]
        (folder.path / "meshes").mkdir()
        for file in files:
            file.write_text("x")

        def sync(path: Path) -> None:
            seen.append((path.name, RunInfo.load(folder.path / RUN_JSON).state))

        monkeypatch.setattr(run_folder, "sync", sync)
        folder.finish()
        assert {(file.name, "running") for file in files} == set(seen)


class TestOpening:
    def test_resumes_the_same_run(self, tmp_path: Path) -> None:
        with RunFolder.open(tmp_path / "run", INPUT, TrackOptions(), threads=3) as folder, folder.log(RECORD) as log:
            log.append(make(2))
        again = RunFolder.open(tmp_path / "run", INPUT, TrackOptions(device="cuda"), threads=8)
        with again as folder, folder.log(RECORD) as log:
            assert len(log) == 2
            assert folder.info.threads == 3  # or its last bits would be others than those of an undisturbed run

    def test_knows_a_finished_run(self, run_path: Path) -> None:
        assert RunFolder.open(run_path, INPUT, TrackOptions()).complete
        assert not (run_path / "work").exists()

    def test_sweeps_the_lock_of_a_writer_killed_at_the_very_end(self, run_path: Path) -> None:
        stale = run_path / "run.lock"
        with RunLock(stale, "the run"):
            assert RunFolder.open(run_path, INPUT, TrackOptions()).complete
            assert stale.exists()  # held: somebody is at it
        stale.write_text(json.dumps(asdict(replace(Owner.this_process(), started=1))))
        (run_path / "work").mkdir()
        assert RunFolder.open(run_path, INPUT, TrackOptions()).complete
        assert not stale.exists() and not (run_path / "work").exists()

    def test_refuses_another_input_even_with_overwrite(self, run_path: Path) -> None:
        before = {p: p.read_bytes() for p in run_path.rglob("*") if p.is_file()}
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=r"another input \(clip.mp4\)"):
                RunFolder.open(run_path, OTHER_INPUT, TrackOptions(), overwrite=overwrite)
        assert before == {p: p.read_bytes() for p in run_path.rglob("*") if p.is_file()}

    def test_refuses_other_options_and_names_them(self, run_path: Path) -> None:
        with pytest.raises(OutputError, match=r"options \(every, smooth\); pass --overwrite"):
            RunFolder.open(run_path, INPUT, TrackOptions(every=2, smooth=0.5))
        with pytest.raises(OutputError, match="model files"):
            RunFolder.open(run_path, INPUT, TrackOptions(), models={"head": "00"})

    def test_overwrite_deletes_what_the_run_owns_only(self, run_path: Path) -> None:
        keep = [run_path / "notes.txt", run_path / "meshes" / "sculpted.ply"]
        for path in keep:
            path.write_text("mine")
        with RunFolder.open(run_path, INPUT, TrackOptions(every=2), overwrite=True) as folder:
            pass
        left = {p for p in run_path.rglob("*") if p.is_file()}
        assert left == {*keep, run_path / RUN_JSON}
        assert folder.info.state == "running" and folder.info.options["every"] == 2

    def test_refuses_folders_and_files_that_are_no_runs(self, tmp_path: Path) -> None:
        (tmp_path / "photo.png").write_text("mine")
        with pytest.raises(OutputError, match="not a run folder"):
            RunFolder.open(tmp_path, INPUT, TrackOptions(), overwrite=True)
        with pytest.raises(OutputError, match="is a file"):
            RunFolder.open(tmp_path / "photo.png", INPUT, TrackOptions())

    def test_damaged_record_needs_overwrite(self, run_path: Path) -> None:
        (run_path / RUN_JSON).write_text("{")
        with pytest.raises(OutputError, match="--overwrite"):
            RunFolder.open(run_path, INPUT, TrackOptions())
        assert not RunFolder.open(run_path, INPUT, TrackOptions(), overwrite=True).complete

    def test_two_processes_do_not_write_one_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
        refused = pytest.raises(OutputError, match="is being written by process")
        with RunFolder.open(tmp_path / "run", INPUT, TrackOptions()), refused:
            RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
        assert not list(tmp_path.rglob("run.lock"))
        RunFolder.open(tmp_path / "run", INPUT, TrackOptions())

    def test_a_broken_lock_keeps_its_old_owner_from_writing(self, tmp_path: Path) -> None:
        old = RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
        with old.log(RECORD) as log:
            log.append(make(1))
            with RunFolder.open(tmp_path / "run", INPUT, TrackOptions(), break_lock=True) as new:
                for write in (lambda: log.append(make(1)), lambda: old.update(message="old"), old.finish):
                    with pytest.raises(OutputError, match="has taken it over"):
                        write()
                with pytest.raises(KeyboardInterrupt), old:
                    raise KeyboardInterrupt
                assert RunInfo.load(new.path / RUN_JSON).state == "running"
                with new.log(RECORD) as newer:
                    newer.append(make(1, first=1))
                    np.testing.assert_array_equal(newer.read(), make(2))
                assert (new.path / "run.lock").exists()

    def test_a_finished_run_that_is_not_whole_is_gone_on_with(self, run_path: Path) -> None:
        with RunFolder.open(run_path, INPUT, TrackOptions(), whole=lambda run: False) as folder:
            assert folder.was_done and not folder.complete and folder.track.exists()
        assert RunFolder.open(run_path, INPUT, TrackOptions(), whole=lambda run: False).was_done is False

    def test_a_folder_that_is_deleted_while_it_is_written(self, tmp_path: Path) -> None:
        for write in (lambda f: f.update(state="running"), lambda f: f.transforms.write_text("{}")):
            folder = RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
            with pytest.raises(OutputError, match=r"run cannot be written|cannot write .*transforms.json"), folder:
                shutil.rmtree(folder.path)
                write(folder)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO])
    def test_what_the_system_says_of_a_full_disk_is_one_line(self, tmp_path: Path, number: int) -> None:
        folder = RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
        with pytest.raises(OutputError, match=r"cannot write .*track.npz"), folder:
            raise OSError(number, os.strerror(number), str(folder.track))

    def test_a_run_of_a_clip_that_changed_keeps_nothing(self, tmp_path: Path) -> None:
        for _ in range(2):
            folder = RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
            with pytest.raises(InputChangedError), folder, folder.log(RECORD) as log:
                log.append(make(1))
                raise InputChangedError("clip.mp4 has changed while it was tracked")
            assert not (tmp_path / "run").exists()
        with RunFolder.open(tmp_path / "run", INPUT, TrackOptions()) as folder, folder.log(RECORD) as log:
            log.append(make(1))
        with pytest.raises(InputChangedError), RunFolder.open(tmp_path / "run", INPUT, TrackOptions()) as folder:
            folder.track.touch()
            raise InputChangedError("clip.mp4 has changed while it was tracked")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [RUN_JSON]

    def test_another_identity_keeps_the_observations_of_an_unfinished_run(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"z_id": [1, 2]}')
        with RunFolder.open(tmp_path / "run", INPUT, TrackOptions()) as folder, folder.log(RECORD) as log:
            log.append(make(2))
            folder.track.touch()
        with RunFolder.open(tmp_path / "run", INPUT, TrackOptions(identity=tmp_path / "a.json")) as folder:
            with folder.log(RECORD) as log:
                assert len(log) == 2
            assert not folder.track.exists()
            folder.finish()
        (tmp_path / "a.json").rename(tmp_path / "b.json")  # the numbers decide, not the file's name
        assert RunFolder.open(tmp_path / "run", INPUT, TrackOptions(identity=tmp_path / "b.json")).complete
        with pytest.raises(OutputError, match=r"options \(identity\)"):
            RunFolder.open(tmp_path / "run", INPUT, TrackOptions())

    @pytest.mark.parametrize(
        ("error", "state"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("disk on fire"), "failed")]
    )
    def test_records_how_it_ended(self, tmp_path: Path, error: BaseException, state: str) -> None:
        with pytest.raises(type(error)), RunFolder.open(tmp_path / "run", INPUT, TrackOptions()):
            raise error
        info = RunInfo.load(tmp_path / "run" / RUN_JSON)
        assert (info.state, info.message) == (state, str(error))

    def test_failed_run_makes_way_for_other_options(self, tmp_path: Path) -> None:
        with pytest.raises(NoFaceError), RunFolder.open(tmp_path / "run", INPUT, TrackOptions()) as folder:
            with folder.log(RECORD) as log:
                log.append(make(2))
            raise NoFaceError("no face")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [RUN_JSON]
        folder = RunFolder.open(tmp_path / "run", INPUT, TrackOptions(start=1))
        assert (folder.info.state, folder.info.options["start"]) == ("running", 1)
        with pytest.raises(OutputError, match="other options"):
            RunFolder.open(tmp_path / "run", INPUT, TrackOptions())


class TestReading:
    def test_round_trip(self, run_path: Path, tmp_path: Path) -> None:
        track = read_run(run_path).track
        track.save(tmp_path / "again.npz")
        again = Track.load(tmp_path / "again.npz")
        for f in fields(Track):
            np.testing.assert_array_equal(getattr(track, f.name), getattr(again, f.name), strict=True)
        assert not list(tmp_path.glob("*.partial"))

    def test_meshes(self, run_path: Path) -> None:
        run = read_run(run_path)
        vertices, faces = run.mesh(0)
        assert vertices.shape == (42, 3) and faces.shape == (80, 3)
        np.testing.assert_allclose(np.linalg.norm(run.canonical()[0], axis=1), 0.1, atol=1e-5)
        with pytest.raises(InputError, match="cannot be read"):
            run.mesh(5)

    def test_refuses_what_is_no_finished_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a run folder"):
            read_run(tmp_path)
        RunFolder.open(tmp_path / "run", INPUT, TrackOptions())
        with pytest.raises(InputError, match=r"not finished \(state: running\)"):
            read_run(tmp_path / "run")

    def test_refuses_a_truncated_track(self, run_path: Path) -> None:
        path = run_path / "track.npz"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(InputError, match="not a readable track"):
            _ = read_run(run_path).track

    def test_quality(self, run_path: Path) -> None:
        track = read_run(run_path).track
        track.landmarks[:, 33], track.landmarks[:, 263] = [10, 10], [40, 50]  # 50 px apart
        quality = track.quality()
        assert (quality["tracked"], quality["filled"], quality["lost"]) == (4, 1, 1)
        assert quality["landmark_error_px"] == 1.5
        assert quality["landmark_error_percent"] == 3.0


class TestOptions:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"every": 0}, "option every: .* greater than or equal to 1"),
            ({"end": 1.0, "start": 2.0}, "must come after start"),
            ({"focal": 900.0, "fov": 40.0}, "focal and fov exclude each other"),
            ({"fov": float("nan")}, "option fov"),
            ({"colour": "red"}, "option colour"),
            ({"mesh_every": 10**20}, "option mesh_every: must be at most"),
        ],
    )
    def test_refused_in_one_line(self, wrong: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            TrackOptions.build(**wrong)
        assert "\n" not in str(caught.value)

    def test_overrides_go_over_the_base(self) -> None:
        built = TrackOptions.build(TrackOptions(every=2, smooth=0.5), smooth=0)
        assert (built.every, built.smooth) == (2, 0)

    def test_fingerprint_reads_back(self) -> None:
        options = TrackOptions(face_at=(3, 4), intrinsics=Path("camera.json"))
        assert TrackOptions(**options.fingerprint()) == options


class TestInput:
    def test_a_change_is_noticed_and_a_touch_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"one")
        watch, digest = InputWatch(path), input_digest(path)[0]
        watch.check(digest, at_once=True)
        os.utime(path, (1, 1))
        watch.check(digest, at_once=True)
        path.write_bytes(b"two")
        watch.check(digest)  # not so soon after the last look
        with pytest.raises(InputChangedError, match="has changed while it was tracked"):
            watch.check(digest, at_once=True)
        path.unlink()
        with pytest.raises(InputChangedError):
            watch.check(digest, at_once=True)

    def test_what_cannot_be_read_is_said_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "clip.mp4").mkdir()
        with pytest.raises(InputError, match=r"clip.mp4/a.png: it cannot be read \(No such file"):
            (tmp_path / "clip.mp4" / "a.png").symlink_to("nothing")
            input_digest(tmp_path / "clip.mp4")

    def test_folder_digest_follows_names_and_contents(self, tmp_path: Path) -> None:
        video = VideoInfo(tmp_path, "folder", 4, 4)
        (tmp_path / "a.png").write_bytes(b"one")
        (tmp_path / "notes.txt").write_bytes(b"ignored")
        first = InputInfo.of(tmp_path, video)
        assert (first.size, first.kind) == (3, "folder")
        (tmp_path / "notes.txt").unlink()
        assert InputInfo.of(tmp_path, video) == first
        (tmp_path / "a.png").rename(tmp_path / "b.png")
        assert InputInfo.of(tmp_path, video).sha256 != first.sha256


def test_default_output_is_named_after_the_input(tmp_path: Path) -> None:
    assert default_output(tmp_path / "my.clip.mp4") == Path("my.clip_nphm")
    assert default_output(f"{tmp_path}/photos/") == Path("photos_nphm")
