"""A small made-up run to look at."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track import Run, TrackOptions
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import InputInfo, Status, Track, input_digest
from nphm_track.tracking.run_folder import RunFolder

N, SIZE = 4, (64, 48)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four frames, the last lost, of a folder of images whose grey tells the row."""
    root = tmp_path_factory.mktemp("viewer")
    (root / "clip").mkdir()
    for i in range(N):
        Image.new("RGB", SIZE, (40 * i,) * 3).save(root / "clip" / f"{i}.png")
    status = np.array([0, 0, 0, Status.LOST], np.uint8)
    points = np.random.default_rng(0).uniform(20, 40, (N, 478, 2)).astype(np.float32)
    track = Track(
        frame=np.arange(N),
        time=np.arange(N) / 25,
        status=status,
        confidence=np.ones(N, np.float32),
        z_id=np.zeros(4, np.float32),
        z_ex=np.zeros((N, 4), np.float32),
        R=np.tile(Rotation.from_euler("x", 180, degrees=True).as_matrix(), (N, 1, 1)),
        t=np.tile([0, 0, 0.5], (N, 1)),
        K=np.array([[90.0, 0, 32], [0, 90, 24], [0, 0, 1]]),
        image_size=np.array(SIZE),
        landmarks=points,
        landmarks_fit=points[:, :68] + 0.5,
        blendshapes=np.zeros((N, 52), np.float32),
        landmark_error_px=np.ones(N, np.float32),
        normal_error_deg=np.full(N, np.nan, np.float32),
    )
    for values in (track.R, track.t, track.landmarks_fit):
        values[status == Status.LOST] = np.nan
    sha256, bytes_ = input_digest(root / "clip")
    info = InputInfo(
        path=str(root / "clip"), sha256=sha256, size=bytes_, width=SIZE[0], height=SIZE[1], fps=25, kind="folder"
    )
    folder = RunFolder.open(root / "run", info, TrackOptions(overlay=False))
    track.save(folder.track)
    head = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    write_ply(folder.canonical, head.vertices, head.faces)
    folder.mesh_path(0).parent.mkdir()
    for frame in range(N - 1):
        write_ply(folder.mesh_path(frame), head.vertices, head.faces)
    return folder.finish(quality=track.quality())
