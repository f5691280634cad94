"""Going through a clip a second time: which meshes stand, what is asked for and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from nphm_track import read_run
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, OutputError
from nphm_track.heads.carry import Carried
from nphm_track.heads.config import NPHM_SMALL
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints
from nphm_track.heads.mesh import CanonicalMesh
from nphm_track.models import sha256
from nphm_track.tracking import render, surface
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import NullProgress
from nphm_track.tracking.records import InputInfo, Status, Track
from nphm_track.tracking.render import WrittenBlocks, draw_clip, render_overlay
from nphm_track.tracking.run_folder import RunFolder, writing_into
from nphm_track.tracking.surface import CarriedFrames
from nphm_track.video.reader import open_video

OK, LOST = Status.TRACKED, Status.LOST


def track_of(*status: Status, every: int = 1) -> Track:
    """A track of which only frame numbers, times, states and one expression code a frame (its row) say anything."""
    n = len(status)
    nothing = np.zeros((n, 0), np.float32)
    return Track(
        frame=every * np.arange(n),
        time=np.arange(n) / 25,
        status=np.array(status, np.uint8),
        confidence=np.ones(n, np.float32),
        z_id=np.zeros(1, np.float32),
        z_ex=np.arange(n, dtype=np.float32)[:, None],
        R=np.tile(np.eye(3), (n, 1, 1)),
        t=np.zeros((n, 3)),
        K=np.eye(3),
        image_size=np.array([4, 4]),
        landmarks=nothing,
        landmarks_fit=nothing,
        blendshapes=nothing,
        landmark_error_px=np.zeros(n, np.float32),
        normal_error_deg=np.zeros(n, np.float32),
    )


class TestWrittenBlocks:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
        monkeypatch.setattr(render, "BLOCK", 2)
        info = InputInfo(path="clip.mp4", sha256="ab", size=1, width=4, height=4)
        folder = RunFolder.open(tmp_path / "run", info, TrackOptions())
        folder.mesh_path(0).parent.mkdir()
        return folder

    def rows(self, folder: RunFolder, track: Track, *frames: int) -> list[bool]:
        with folder.written() as written:
            for frame in frames:
                folder.mesh_path(frame).write_text(f"mesh {frame}")
                written.add(folder.mesh_path(frame))
        with folder.written() as written:
            blocks = WrittenBlocks(folder, track, written)
            return [row in blocks for row in range(len(track))]

    def test_only_whole_blocks_stand(self, folder: RunFolder) -> None:
        assert self.rows(folder, track_of(*[OK] * 5), 0, 1, 2, 4) == [True, True, False, False, True]

    @pytest.mark.parametrize("content", [b"", bytes(6), b"mesh 9"])
    def test_a_mesh_that_is_not_what_was_written_spoils_its_block(self, folder: RunFolder, content: bytes) -> None:
        self.rows(folder, track_of(OK, OK, OK, OK), 0, 1, 2, 3)
        folder.mesh_path(2).write_bytes(content)
        assert self.rows(folder, track_of(OK, OK, OK, OK)) == [True, True, False, False]

    def test_a_mesh_that_no_list_names_does_not_count(self, folder: RunFolder) -> None:
        self.rows(folder, track_of(OK, OK), 0, 1)
        (folder.path / "work" / "written.bin").write_bytes(bytes(500))
        assert self.rows(folder, track_of(OK, OK)) == [False, False]

    def test_new_run_has_none(self, folder: RunFolder) -> None:
        assert self.rows(folder, track_of(OK, OK, OK)) == [False] * 3

    def test_lost_frames_have_no_mesh_to_miss(self, folder: RunFolder) -> None:
        assert self.rows(folder, track_of(OK, LOST, OK, LOST), 0) == [True, True, False, False]

    def test_meshes_are_named_by_frame_and_not_by_row(self, folder: RunFolder) -> None:
        assert self.rows(folder, track_of(OK, OK, OK, OK, every=5), 0, 5, 2, 3) == [True, True, False, False]

    def test_mesh_written_meanwhile_does_not_count(self, folder: RunFolder) -> None:
        with folder.written() as written:
            blocks = WrittenBlocks(folder, track_of(OK, OK), written)
            assert 0 not in blocks
            for frame in (0, 1):
                folder.mesh_path(frame).touch()
                written.add(folder.mesh_path(frame))
            assert 1 not in blocks


class FakeCarrier:
    """Stands in for MeshCarrier: every vertex is moved by the code; remembers what it was started from."""

    asked: ClassVar[list[tuple[float, float | None]]] = []

    def __init__(self, model: NphmDecoder, mesh: CanonicalMesh, z_id: Tensor) -> None:
        self.vertices = torch.from_numpy(mesh.vertices / MODEL_UNIT)

    def __call__(self, z_ex: Tensor, previous: Carried | None) -> Carried:
        self.asked.append((float(z_ex), None if previous is None else float(previous.z_ex)))
        return Carried(PosedPoints(self.vertices + z_ex, torch.eye(3), z_ex), z_ex, z_ex, z_ex)


def test_carrier_starts_cold_at_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCarrier.asked.clear()
    monkeypatch.setattr(surface, "MeshCarrier", FakeCarrier)
    monkeypatch.setattr(surface, "BLOCK", 3)
    mesh = CanonicalMesh(np.full((2, 3), 0.5 * MODEL_UNIT, np.float32), np.zeros((0, 3), np.int32))
    carry = CarriedFrames(NphmDecoder(NPHM_SMALL), mesh, track_of(*[OK] * 9))
    carried = [carry(row) for row in (0, 1, 2, 4, 5, 6, 8)]
    assert FakeCarrier.asked == [(0, None), (1, 0), (2, 1), (4, None), (5, 4), (6, None), (8, 6)]
    np.testing.assert_allclose(carried[4], 5.5 * MODEL_UNIT)


class Source:
    """A clip of ``n`` frames; image i has the value i."""

    def __init__(self, n: int) -> None:
        self.n, self.decoded = n, 0

    def __iter__(self) -> Any:
        from nphm_track.video.source import Frame

        for i in range(self.n):
            self.decoded += 1
            yield Frame(i, i / 25, np.full((4, 4, 3), i, np.uint8))


class Recorder(NullProgress):
    """Stands in for renderer, writer and progress; keeps what it is told."""

    threads = None

    def __init__(self) -> None:
        self.written: list[tuple[str, float]] = []
        self.steps = 0

    def draw(self, image: np.ndarray, vertices: np.ndarray, R: np.ndarray, t: np.ndarray) -> str:
        return f"head {int(vertices)} on {image[0, 0, 0]}"

    def draw_lost(self, image: np.ndarray) -> str:
        return f"lost on {image[0, 0, 0]}"

    def write(self, image: str, time: float) -> None:
        self.written.append((image, time))

    def advance(self, n: int = 1) -> None:
        self.steps += n


class TestDrawClip:
    def test_every_frame_is_written_and_lost_ones_are_not_asked_for(self) -> None:
        seen: list[int] = []
        recorder, track = Recorder(), track_of(OK, LOST, OK)
        draw_clip(Source(9), track, recorder, recorder, lambda r: seen.append(r) or np.array(r), recorder)  # type: ignore
        assert seen == [0, 2]
        images = ["head 0 on 0", "lost on 1", "head 2 on 2"]
        assert recorder.written == list(zip(images, track.time, strict=True))
        assert recorder.steps == 3

    def test_meshes_alone_need_no_decoding(self) -> None:
        seen: list[int] = []
        recorder, source = Recorder(), Source(3)
        draw_clip(source, track_of(OK, LOST, OK), None, None, lambda r: seen.append(r), recorder)  # type: ignore
        assert (seen, source.decoded, recorder.steps) == ([0, 2], 0, 3)


class TestRenderOverlay:
    @pytest.fixture
    def run(self, run_path: Path, tmp_path: Path) -> Path:
        """The made-up run, its own overlay taken for the clip it was made of."""
        run, clip = read_run(run_path), tmp_path / "clip.mp4"
        clip.write_bytes((run_path / "overlay.mp4").read_bytes() + bytes(8))  # or the run's own would be found
        described = run.info.input.model_copy(
            update={"path": str(clip), "sha256": sha256(clip), "size": clip.stat().st_size}
        )
        run.info.model_copy(update={"input": described}).save(run_path / "run.json")
        return run_path

    def test_draws_the_meshes_of_the_run(self, run: Path, tmp_path: Path) -> None:
        before = sha256(run / "overlay.mp4")
        written = render_overlay(run, tmp_path / "again.mp4", style="mesh", scale=0.5, side_by_side=True)
        with open_video(written) as again:
            frames = list(again)
        assert len(frames) == 6 and frames[0].image.shape == (32, 96, 3)
        first, lost = (frames[i].image[:, 48:].astype(int) for i in (0, 5))
        assert np.abs(first[12:20, 20:28] - lost[12:20, 20:28]).mean() > 20  # a head in the middle, or the backdrop
        assert sha256(run / "overlay.mp4") == before

    def test_replaces_the_overlay_of_the_run_by_default(self, run: Path) -> None:
        before = sha256(run / "overlay.mp4")
        assert render_overlay(run) == run / "overlay.mp4"
        assert sha256(run / "overlay.mp4") != before

    def test_what_is_not_ours_stays(self, run: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine.mp4"
        mine.write_bytes(b"mine")
        neighbour = tmp_path / "mine.partial.mp4"
        neighbour.write_bytes(b"mine, too")
        with pytest.raises(OutputError, match="--overwrite"):
            render_overlay(run, mine)
        assert mine.read_bytes() == b"mine"
        assert render_overlay(run, mine, overwrite=True) == mine
        assert mine.stat().st_size > 500 and neighbour.read_bytes() == b"mine, too"

    def test_the_clip_is_never_replaced(self, run: Path, tmp_path: Path) -> None:
        before = sha256(tmp_path / "clip.mp4")
        for name in ("clip.mp4", "link.mp4"):
            if name == "link.mp4":
                (tmp_path / name).symlink_to("clip.mp4")
            with pytest.raises(OutputError, match="is the clip of this run"):
                render_overlay(run, tmp_path / name, overwrite=True)
        assert sha256(tmp_path / "clip.mp4") == before

    def test_a_second_one_waits_for_the_first(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nphm_track.tracking.run_folder.PATIENCE", 0.3)
        before = sha256(run / "overlay.mp4")
        with writing_into(read_run(run)), pytest.raises(OutputError, match="is being written by process"):
            render_overlay(run)
        assert sha256(run / "overlay.mp4") == before
        render_overlay(run)
        assert not (run / "run.lock").exists()

    def test_clip_that_is_gone(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").unlink()
        with pytest.raises(InputError, match="not there any more"):
            render_overlay(run)

    def test_clip_that_has_changed(self, run: Path, tmp_path: Path) -> None:
        with open(tmp_path / "clip.mp4", "ab") as file:
            file.write(b"x")
        with pytest.raises(InputError, match="has changed"):
            render_overlay(run, tmp_path / "again.mp4")
        assert not (tmp_path / "again.mp4").exists()
