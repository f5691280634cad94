from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nphm_track import read_run


def test_head_points_reproject_through_the_written_cameras(run_path: Path) -> None:
    """A point of the head, projected as nerfstudio would, lands where the head pose puts it."""
    track = read_run(run_path).track
    written = json.loads((run_path / "transforms.json").read_text())
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (50, 3))
    assert [frame["frame"] for frame in written["frames"]] == [0, 1, 2, 3, 4]
    for i, frame in enumerate(written["frames"]):
        in_camera = points @ track.R[i].T + track.t[i]
        expected = (in_camera / in_camera[:, 2:]) @ track.K.T
        world_to_camera = np.linalg.inv(frame["transform_matrix"])
        x, y, z = (np.c_[points, np.ones(50)] @ world_to_camera.T)[:, :3].T
        assert (z < 0).all()  # OpenGL cameras look along -z
        u = written["fl_x"] * x / -z + written["cx"]
        v = written["cy"] - written["fl_y"] * y / -z
        np.testing.assert_allclose(np.c_[u, v], expected[:, :2], atol=0.05)
        assert frame["time"] == track.time[i]
