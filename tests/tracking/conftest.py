"""A small made-up run that is valid in every respect."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo, Status, Track
from nphm_track.tracking.run_folder import RunFolder
from nphm_track.tracking.transforms import write_transforms

SIZE = (96, 64)


def make_track(n: int = 6) -> Track:
    """The head turns and nods before a camera; the second frame from the end is filled in, the last is lost."""
    rng = np.random.default_rng(7)
    status = np.array([Status.TRACKED] * (n - 2) + [Status.FILLED, Status.LOST], np.uint8)
    points = rng.uniform(0, 64, (n, 478, 2)).astype(np.float32)
    track = Track(
        frame=np.arange(n),
        time=np.arange(n) / 25 + 0.2,
        status=status,
        confidence=np.linspace(1, 0, n, dtype=np.float32),
        z_id=rng.standard_normal(8).astype(np.float32),
        z_ex=rng.standard_normal((n, 4)).astype(np.float32),
        R=Rotation.from_euler("xyz", np.linspace([180, 0, 0], [190, 25, 5], n), degrees=True).as_matrix(),
        t=np.linspace([0, 0, 0.5], [0.02, 0.01, 0.6], n),
        K=np.array([[90.0, 0, 48], [0, 90, 32], [0, 0, 1]]),
        image_size=np.array(SIZE),
        landmarks=points,
        landmarks_fit=points[:, :68].copy(),
        blendshapes=np.zeros((n, 52), np.float32),
        landmark_error_px=np.full(n, 1.5, np.float32),
        normal_error_deg=np.full(n, np.nan, np.float32),
    )
    track.landmark_error_px[status != Status.TRACKED] = np.nan
    track.landmarks[status != Status.TRACKED] = np.nan
    for values in (track.z_ex, track.R, track.t, track.landmarks_fit):
        values[status == Status.LOST] = np.nan
    return track


def make_input(sha256: str = "ab") -> InputInfo:
    return InputInfo(path="clip.mp4", sha256=sha256, size=10, width=SIZE[0], height=SIZE[1], fps=25, duration=0.24)


def write_overlay(path: Path, n: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), 9 * i, np.uint8))))
        container.mux(stream.encode(None))


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    track = make_track()
    folder = RunFolder.open(path, make_input(), TrackOptions())
    track.save(folder.track)
    write_transforms(folder.transforms, track)
    write_overlay(folder.overlay, len(track))
    head = trimesh.creation.icosphere(subdivisions=1, radius=0.1)
    write_ply(folder.canonical, head.vertices, head.faces)
    folder.mesh_path(0).parent.mkdir()
    for frame in track.frame[track.status != Status.LOST]:
        write_ply(folder.mesh_path(frame), head.vertices, head.faces)
    (path / "report.html").write_text("<html></html>")
    folder.finish(quality=track.quality())
    return path


@pytest.fixture
def quick_refinement(tmp_path: Path) -> Path:
    """A file for ``refine_config``: few pixels, few steps."""
    path = tmp_path / "quick.toml"
    path.write_text(
        """
        window = 4
        overlap = 1
        key_frames = 1
        report_pixels = 16

        [[person]]
        free = ["expression", "identity"]
        pixels = 16
        steps = 1

        [[frames]]
        free = ["expression"]
        pixels = 16
        steps = 2
        follow = true
        """
    )
    return path
