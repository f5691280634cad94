"""A made-up run whose head moves, with the clip it was made of: every second frame of an off-centre camera."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from nphm_track import Run, TrackOptions, read_run
from nphm_track.models import sha256
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import InputInfo, Status, Track
from nphm_track.tracking.run_folder import RunFolder
from nphm_track.tracking.transforms import write_transforms

SIZE = (96, 64)
N, EVERY, RATE = 7, 2, 25
LOST, FILLED = (3, 6), 2


@dataclass
class MadeUp:
    """A run and where its vertices are on screen."""

    run: Run
    pixels: dict[int, np.ndarray]
    """Row to [V, 2] pixels, by OpenCV's projection of the run's own meshes, for rows with a head."""


def make_track(distortion: tuple[float, ...]) -> Track:
    rng = np.random.default_rng(3)
    status = np.zeros(N, np.uint8)
    status[FILLED], status[list(LOST)] = Status.FILLED, Status.LOST
    angles = np.linspace([180, -30, 0], [200, 40, 15], N)
    observed = rng.uniform(0, 64, (N, 478, 2)).astype(np.float32)
    track = Track(
        frame=EVERY * np.arange(N),
        time=EVERY * np.arange(N) / RATE,
        status=status,
        confidence=np.linspace(1, 0, N, dtype=np.float32),
        z_id=rng.standard_normal(8).astype(np.float32),
        z_ex=rng.standard_normal((N, 4)).astype(np.float32),
        R=Rotation.from_euler("xyz", angles, degrees=True).as_matrix(),
        t=np.linspace([-0.02, 0.03, 0.5], [0.05, -0.01, 0.7], N),
        K=np.array([[150.0, 0, 49.5], [0, 140, 30.25], [0, 0, 1]]),
        image_size=np.array(SIZE),
        landmarks=observed,
        landmarks_fit=observed[:, :68] + 0.5,
        blendshapes=rng.uniform(0, 1, (N, 52)).astype(np.float32),
        landmark_error_px=np.full(N, 1.5, np.float32),
        normal_error_deg=np.full(N, np.nan, np.float32),
        distortion=np.array(distortion),
    )
    for values in (track.landmarks, track.blendshapes, track.landmark_error_px):
        values[status != Status.TRACKED] = np.nan
    for values in (track.z_ex, track.R, track.t, track.landmarks_fit):
        values[status == Status.LOST] = np.nan
    return track


def write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(EVERY * N):
            image = np.full((SIZE[1], SIZE[0], 3), 15 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))


def project(track: Track, row: int, points: np.ndarray) -> np.ndarray:
    """Pixels [V, 2] of head-space points [V, 3]; OpenCV's model as its documentation states it."""
    x, y, z = (points @ track.R[row].T + track.t[row]).T
    x, y = x / z, y / z
    k1, k2, p1, p2, k3 = track.distortion
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.c_[u * track.K[0, 0] + track.K[0, 2], v * track.K[1, 1] + track.K[1, 2]]


def build(folder_path: Path, distortion: tuple[float, ...] = (0, 0, 0, 0, 0)) -> MadeUp:
    clip = folder_path / "clip.mp4"
    write_clip(clip)
    described = InputInfo(
        path=str(clip), sha256=sha256(clip), size=clip.stat().st_size, width=SIZE[0], height=SIZE[1], fps=RATE
    )
    track = make_track(distortion)
    folder = RunFolder.open(folder_path / "run", described, TrackOptions(every=EVERY, overlay=False))
    track.save(folder.track)
    write_transforms(folder.transforms, track)
    head = trimesh.creation.icosphere(subdivisions=2, radius=0.08)
    head.vertices *= (0.8, 1.2, 1.0)
    write_ply(folder.canonical, head.vertices, head.faces)
    folder.mesh_path(0).parent.mkdir()
    waves = np.random.default_rng(5).normal(size=(3, 3))
    for row in range(N):
        if row not in LOST:
            moves = sum(
                0.006 * np.sin((k + 1) * row + k) * np.cos(40 * head.vertices @ waves[k])[:, None] for k in range(3)
            )
            write_ply(folder.mesh_path(track.frame[row]), head.vertices + moves, head.faces)
    run = folder.finish(quality=track.quality())
    return MadeUp(run, {row: project(track, row, run.mesh(row)[0]) for row in range(N) if row not in LOST})


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return build(tmp_path_factory.mktemp("made"))


@pytest.fixture
def made(_made: MadeUp, tmp_path: Path) -> MadeUp:
    """A run of seven frames, the third filled in, the fourth and the last lost; the lens is a pinhole."""
    shutil.copytree(_made.run.path, tmp_path / "run")
    return MadeUp(read_run(tmp_path / "run"), _made.pixels)


@pytest.fixture(scope="session")
def bent(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    """The same through a lens that distorts."""
    return build(tmp_path_factory.mktemp("bent"), (-0.2, 0.05, 0.003, -0.002, 0.01))
