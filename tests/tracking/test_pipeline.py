"""The tracker from clip to run folder: what it refuses and says, and that a killed run ends as an undisturbed one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image

from nphm_track import Run, TrackOptions, track, tracker
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.errors import InputError, ModelError, OutputError
from nphm_track.models import resolve
from nphm_track.tracking import pipeline, render
from nphm_track.tracking.assemble import to_track
from nphm_track.tracking.fit import ClipFit
from nphm_track.tracking.observe import observation_dtype
from nphm_track.tracking.planning import plan_line
from nphm_track.tracking.progress import NullProgress, Progress
from nphm_track.tracking.records import InputInfo, Status
from nphm_track.tracking.surface import rig_of
from nphm_track.tracking.validate import validate_run
from nphm_track.video.reader import open_video
from nphm_track.video.source import VideoInfo
from nphm_track.video.writer import VideoWriter


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_astronaut(path, 6)
    return path


def write_astronaut(path: Path, frames: int) -> None:
    """The astronaut's face, which moves across the frames; 160x120 at 25 frames/s."""
    from skimage import data
    from skimage.transform import resize

    photograph = data.astronaut()
    with VideoWriter(path, (160, 120), frame_rate_hint=25) as writer:
        for i in range(frames):
            part = photograph[10 + 2 * i : 220 + 2 * i, 85 + 4 * i : 365 + 4 * i]
            writer.write((resize(part, (120, 160), anti_aliasing=True) * 255).round().astype(np.uint8), i / 25)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, in which a run that goes by default names would leave its folder."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


class TestBadInput:
    def refused(self, empty: Path, error: type[Exception], match: str, *arguments: object, **options: object) -> None:
        with pytest.raises(error, match=match) as raised:
            track(*arguments, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
        assert not list(empty.iterdir())

    def test_missing_file(self, empty: Path) -> None:
        self.refused(empty, InputError, "nothing.mp4: no such file", "nothing.mp4")

    @pytest.mark.parametrize("content", [b"", b"not a video\n" * 50])
    def test_file_that_is_no_video(self, empty: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "text.mp4").write_bytes(content)
        self.refused(empty, InputError, "text.mp4", tmp_path / "text.mp4")

    @pytest.mark.parametrize("device", ["toaster", "meta"])
    def test_device_that_cannot_compute(self, empty: Path, clip: Path, device: str) -> None:
        self.refused(empty, InputError, f"device '{device}' cannot be used here", clip, device=device)

    def test_bad_option(self, empty: Path, clip: Path) -> None:
        self.refused(empty, InputError, "every", clip, every=0)

    def test_models_that_are_missing(self, empty: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NPHM_TRACK_MODELS", str(empty))
        self.refused(empty, ModelError, "face_landmarker", clip)

    def test_what_is_found_out_after_the_folder_was_made(
        self, empty: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipeline, "models_of", lambda options: ())
        self.refused(empty, InputError, "none.json cannot be read", clip, intrinsics="none.json")
        self.refused(empty, InputError, "no frame between", clip, start=100)
        self.refused(empty, InputError, "no wireframe", clip, renderer="pyrender", style="wireframe", fov=50)

    def test_folder_of_another_input(self, run_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipeline, "models_of", lambda options: ())
        before = {path: path.stat().st_mtime_ns for path in run_path.rglob("*")}
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another input"):
                track(clip, run_path, overwrite=overwrite)
        assert {path: path.stat().st_mtime_ns for path in run_path.rglob("*")} == before

    def test_folder_that_is_no_run(self, empty: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipeline, "models_of", lambda options: ())
        (empty / "notes.txt").touch()
        with pytest.raises(OutputError, match="not a run folder"):
            track(clip, empty)
        assert [path.name for path in empty.iterdir()] == ["notes.txt"]


class TestPlanLine:
    def line(self, frame_count: int | None, **options: object) -> str:
        class Source:
            info = VideoInfo(Path("a.mp4"), "video", 64, 48, frame_rate=25.0, frame_count=frame_count, duration=120.0)

        info = InputInfo(path="a.mp4", sha256="ab", size=1, width=64, height=48, fps=25, duration=120)
        return plan_line(info, Source(), TrackOptions.build(**options))  # type: ignore[arg-type]

    def test_names_clip_and_minutes(self) -> None:
        assert self.line(3000) == "a.mp4: 64x48 at 25 frames/s, 120.0 s; about 3000 frames, 11 min on 2 CPU cores"

    def test_refinement_takes_more(self) -> None:
        assert "71 min" in self.line(3000, refine=True)

    def test_parameters_alone_take_less(self) -> None:
        assert "3 min" in self.line(3000, meshes=False, overlay=False)

    @pytest.mark.parametrize(
        ("options", "count"),
        [({"every": 3}, 1000), ({"end": 2}, 50), ({"start": 119}, 25), ({"start": 1, "end": 5, "every": 10}, 10)],
    )
    def test_counts_the_frames_asked_for(self, options: dict[str, float], count: int) -> None:
        assert f"about {count} frames" in self.line(3000, **options)

    def test_short_work_needs_no_estimate(self) -> None:
        assert self.line(50).endswith("about 50 frames")

    def test_length_that_is_not_known(self) -> None:
        assert "about" not in self.line(None)

    def test_never_promises_less_than_a_frame(self) -> None:
        assert "about 1 frames" in self.line(3, every=100)


class TestToTrack:
    """Four frames: seen, filled in, lost, seen."""

    def make(self, distortion: np.ndarray | None = None) -> tuple[ClipFit, np.ndarray]:
        rng = np.random.default_rng(0)
        log = np.zeros(4, observation_dtype(2))
        log["frame"], log["time"], log["seen"] = [0, 2, 4, 6], [0, 0.1, 0.2, 0.3], [True, False, False, True]
        log["confidence"] = 0.8
        log["landmarks"] = rng.uniform(0, 60, (4, 478, 3))
        log["landmarks"][1:3] = np.nan
        fit = ClipFit(
            z_id=rng.standard_normal(8).astype(np.float32),
            z_ex=rng.standard_normal((4, 5)).astype(np.float32),
            camera=Intrinsics(np.array([[80.0, 0, 32], [0, 80, 24], [0, 0, 1]]), (64, 48), distortion),
            R=np.tile(np.eye(3), (4, 1, 1)),
            t=rng.standard_normal((4, 3)),
            landmarks_fit=np.zeros((4, 68, 2), np.float32),
            landmark_error_px=np.array([1, np.nan, np.nan, 3], np.float32),
            filled=np.array([False, True, False, False]),
            unsmoothed_error_px=np.array([1, np.nan, np.nan, 1], np.float32),
        )
        return fit, log

    def test_status_and_confidence(self) -> None:
        fit, log = self.make()
        made = to_track(log, fit, (64, 48))
        assert made.status.tolist() == [Status.TRACKED, Status.FILLED, Status.LOST, Status.TRACKED]
        np.testing.assert_allclose(made.confidence, [0.8, 0, 0, 0.8])
        assert made.frame.tolist() == [0, 2, 4, 6]

    def test_head_is_nan_where_it_is_lost_and_nowhere_else(self) -> None:
        fit, log = self.make()
        made = to_track(log, fit, (64, 48))
        for name in ("z_ex", "R", "t"):
            values, fitted = getattr(made, name), getattr(fit, name)
            assert np.isnan(values[2]).all()
            np.testing.assert_array_equal(values[[0, 1, 3]], fitted[[0, 1, 3]])
            assert np.isfinite(fitted).all(), "the fit itself was changed"

    def test_observations_are_nan_where_nothing_was_seen(self) -> None:
        fit, log = self.make()
        made = to_track(log, fit, (64, 48))
        assert made.landmarks.shape == (4, 478, 2)
        assert np.isnan(made.landmarks).all((1, 2)).tolist() == [False, True, True, False]
        assert np.isnan(made.normal_error_deg).all()
        assert made.quality()["landmark_error_px"] == 2

    @pytest.mark.parametrize("distortion", [None, np.array([0.1, 0, 0, 0, 0.01])])
    def test_camera(self, distortion: np.ndarray | None) -> None:
        fit, log = self.make(distortion)
        made = to_track(log, fit, (64, 48))
        np.testing.assert_array_equal(made.K, fit.camera.K)
        np.testing.assert_array_equal(made.distortion, np.zeros(5) if distortion is None else distortion)
        assert made.image_size.tolist() == [64, 48]


class Killer(NullProgress):
    """Interrupts the run at the ``n``-th step."""

    def __init__(self, n: int) -> None:
        self.left = n

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def prepare() -> Iterator[None]:
    for name in pipeline.models_of(TrackOptions()):
        try:
            resolve(name)
        except ModelError as error:
            pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "BLOCK", 2)  # so that six frames make finished, broken and untouched blocks
        yield


@pytest.fixture(scope="module")
def undisturbed(prepare: None, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the clip; tests that change it take a copy."""
    return track(clip, tmp_path_factory.mktemp("undisturbed") / "run", mesh_resolution=64)


@pytest.mark.usefixtures("prepare")
class TestRun:
    """Six frames: steps 1-6 observe, 7-12 fit, 13 extracts the head, 14-19 draw."""

    def track(self, clip: Path, path: Path, progress: Progress | None = None) -> Run:
        return track(clip, path, mesh_resolution=64, progress=progress)

    def test_killed_run_ends_as_an_undisturbed_one(self, clip: Path, undisturbed: Run, tmp_path: Path) -> None:
        whole = undisturbed
        assert validate_run(whole.path) == []
        assert whole.track.status.tolist() == [Status.TRACKED] * 6
        for step in (4, 16):  # while it observes, and with one and a half of three blocks drawn
            with pytest.raises(KeyboardInterrupt):
                self.track(clip, tmp_path / "killed", Killer(step))
            assert not (tmp_path / "killed" / "overlay.mp4").exists()
        killed = self.track(clip, tmp_path / "killed")
        assert validate_run(killed.path) == []
        for field in fields(whole.track):
            a, b = getattr(whole.track, field.name), getattr(killed.track, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        meshes = sorted(path.relative_to(whole.path) for path in whole.path.rglob("*.ply"))
        assert len(meshes) == 7
        for mesh in meshes:
            assert (whole.path / mesh).read_bytes() == (killed.path / mesh).read_bytes(), mesh
        with open_video(killed.path / "overlay.mp4") as overlay:
            assert len(list(overlay)) == 6

    def test_observation_stopped_in_mid_batch_goes_on_as_if_it_had_not(self, tmp_path: Path) -> None:
        """In the default mode, with the real networks, on a clip of several batches."""
        clip, log = tmp_path / "long.mp4", "work/observations.bin"
        write_astronaut(clip, 20)
        pipeline.observe(clip, tmp_path / "whole", options=TrackOptions())
        with pytest.raises(KeyboardInterrupt):
            pipeline.observe(clip, tmp_path / "killed", options=TrackOptions(), progress=Killer(13))
        assert 0 < (tmp_path / "killed" / log).stat().st_size < (tmp_path / "whole" / log).stat().st_size
        pipeline.observe(clip, tmp_path / "killed", options=TrackOptions())
        assert (tmp_path / "killed" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()

    def test_a_finished_run_that_lacks_files_is_completed(self, clip: Path, undisturbed: Run, tmp_path: Path) -> None:
        whole = copytree(undisturbed.path, tmp_path / "run")
        before = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        (whole / "transforms.json").unlink()
        (whole / "report.html").write_bytes(b"")
        self.track(clip, whole, Killer(1))  # nothing is observed, fitted or drawn again
        (whole / "overlay.mp4").write_bytes(bytes(1000))
        (whole / "meshes" / "000003.ply").unlink()
        self.track(clip, whole, Killer(8))  # one step for the neutral head, six for the frames
        assert validate_run(whole) == []
        same = {path: content for path, content in before.items() if path.suffix in (".ply", ".mp4", ".npz")}
        assert same == {path: (whole / path).read_bytes() for path in same}

    def test_a_report_that_cannot_be_written_leaves_the_run_undone(
        self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "report.html")

        monkeypatch.setattr(tracker, "write_report", write)
        options = {"codes": "landmarks", "meshes": False, "overlay": False}
        with pytest.raises(OutputError, match=r"cannot write report.html \(No space left"):
            track(clip, tmp_path / "run", **options)
        monkeypatch.undo()
        run = track(clip, tmp_path / "run", progress=Killer(1), **options)
        assert run.info.state == "done" and (run.path / "report.html").exists()

    def test_a_clip_that_is_swapped_while_it_is_tracked_is_noticed(self, clip: Path, tmp_path: Path) -> None:
        own = tmp_path / "clip.mp4"
        write_astronaut(own, 6)

        class Swap(NullProgress):
            def stage(self, name: str, total: int | None = None) -> None:
                if name == "fit":
                    write_astronaut(own, 4)

        with pytest.raises(InputError, match="has changed while it was tracked"):
            track(own, tmp_path / "run", progress=Swap(), codes="landmarks", meshes=False, overlay=False)
        assert not (tmp_path / "run").exists()

    def test_a_finished_run_refined_later_and_stopped_between_windows_ends_as_one_refined_from_the_start(
        self, clip: Path, tmp_path: Path, quick_refinement: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        try:
            resolve(pipeline.GEOMETRY)
        except ModelError as error:
            pytest.skip(str(error))
        monkeypatch.setattr("nphm_track.refine.clip.DETAIL", 0.25)
        quick = TrackOptions(codes="landmarks", meshes=False, overlay=False)
        options = TrackOptions.build(quick, refine=True, refine_config=quick_refinement)
        whole = track(clip, tmp_path / "whole", options=options)
        assert validate_run(whole.path) == []
        unrefined = track(clip, tmp_path / "killed", options=quick)
        assert not len(unrefined.track.rolled_back) and validate_run(unrefined.path) == []

        def observed_again(*arguments: object) -> None:
            raise AssertionError("what was seen of the clip is known")

        monkeypatch.setattr(pipeline, "observe_clip", observed_again)
        with pytest.raises(KeyboardInterrupt):  # 6 steps fit, then the first window
            track(clip, tmp_path / "killed", options=options, progress=Killer(7))
        kept = tmp_path / "killed" / "work" / "refinement" / "frames.bin"
        assert kept.stat().st_size > 0
        killed = track(clip, tmp_path / "killed", options=options)
        assert (killed.info.options, killed.info.models) == (whole.info.options, whole.info.models)
        assert {path.name for path in killed.path.iterdir()} == {path.name for path in whole.path.iterdir()}
        with pytest.raises(OutputError, match=r"other options \(refine, refine-config\)"):
            track(clip, killed.path, options=quick)
        for field in fields(whole.track):
            a, b = getattr(whole.track, field.name), getattr(killed.track, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        made = whole.track
        assert not (killed.path / "work").exists()
        assert np.isfinite(made.normal_error_deg).all() and len(made.rolled_back) == 6
        assert {"rolled_back", "refine_normal_deg_before", "refine_normal_deg_after"} <= whole.info.quality.keys()

    def test_image_has_an_image_for_overlay(self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frame = next(iter(open_video(clip)))
        Image.fromarray(frame.image).save(tmp_path / "face.png")
        monkeypatch.chdir(tmp_path)
        run = self.track(Path("face.png"), tmp_path / "run")
        assert validate_run(run.path) == []
        names = {"run.json", "track.npz", "observations.npz", "rig.npz", "transforms.json", "canonical.ply", "meshes"}
        assert {path.name for path in run.path.iterdir()} == names | {"overlay.png", "report.html"}
        monkeypatch.chdir("/")  # a run knows its clip wherever it is opened from
        assert render.render_overlay(run.path, tmp_path / "again.jpg").exists()

    def test_a_take_of_known_identity_uses_the_rig_that_is_there(
        self, clip: Path, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrapped_again(*arguments: object) -> None:
            raise AssertionError("the rig is known")

        frame = next(iter(open_video(clip)))
        Image.fromarray(frame.image).save(tmp_path / "face.png")
        monkeypatch.setattr("nphm_track.heads.rig._rig_of", wrapped_again)
        take = track(tmp_path / "face.png", tmp_path / "take", identity=undisturbed.path)
        assert validate_run(take.path) == []
        known, own = rig_of(undisturbed), rig_of(take)
        assert known is not None and own is not None
        np.testing.assert_array_equal(own.rig.neutral, known.rig.neutral)
        count = len(known.correctives.basis)
        np.testing.assert_array_equal(own.correctives.basis[:count], known.correctives.basis)

    def test_finished_run_is_returned_as_it_is(self, clip: Path, undisturbed: Run) -> None:
        before = (undisturbed.path / "track.npz").stat().st_mtime_ns
        again = self.track(clip, undisturbed.path, Killer(1))
        assert again.info.created == undisturbed.info.created
        assert (undisturbed.path / "track.npz").stat().st_mtime_ns == before
        with pytest.raises(OutputError, match="other options"):
            track(clip, undisturbed.path, mesh_resolution=65)
