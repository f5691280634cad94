"""Formats with cameras: read back by a parser of the test's own, the vertices land where track.npz puts them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track.cameras.calibration_file import read_calibration
from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions
from nphm_track.rendering.ply import read_ply

PX = 0.05
OPTIONS = [ExportOptions(), ExportOptions("mm", "z"), ExportOptions("cm", "y")]
UP = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}


@pytest.fixture(params=["made", "bent"])
def lens(request: pytest.FixtureRequest):
    """A run seen through a pinhole, and one through a lens that distorts."""
    return request.getfixturevalue(request.param)


def world(run, row: int, options: ExportOptions) -> np.ndarray:
    """Vertices of a row in the head-fixed world, put there by hand."""
    return {"mm": 1000, "cm": 100, "m": 1}[options.unit] * run.mesh(row)[0] @ UP[options.up].T


def opencv_project(in_camera: np.ndarray, fx, fy, cx, cy, k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0) -> np.ndarray:
    x, y = in_camera[:, 0] / in_camera[:, 2], in_camera[:, 1] / in_camera[:, 2]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.c_[fx * u + cx, fy * v + cy]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transforms(lens, tmp_path: Path, options: ExportOptions) -> None:
    out = export(lens.run, "transforms", tmp_path / "out", options)
    content = json.loads((out / "transforms.json").read_text())
    parameters = [content[name] for name in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "k3")]
    assert [frame["frame"] for frame in content["frames"]] == [2 * row for row in lens.pixels]
    for (row, expected), frame in zip(lens.pixels.items(), content["frames"], strict=True):
        matrix = np.linalg.inv(frame["transform_matrix"])
        points = np.c_[world(lens.run, row, options), np.ones(162)] @ matrix.T
        in_camera = points[:, :3] * (1, -1, -1)  # OpenGL camera axes to OpenCV's
        np.testing.assert_allclose(opencv_project(in_camera, *parameters), expected, atol=PX)
        assert "mesh" not in frame and "mask_path" not in frame


def test_transforms_as_a_whole_data_set(lens, tmp_path: Path) -> None:
    options = ExportOptions("cm", "z", images=True)
    out = export(lens.run, "transforms", tmp_path / "out", options)
    content = json.loads((out / "transforms.json").read_text())
    for (row, pixels), frame in zip(lens.pixels.items(), content["frames"], strict=True):
        image = np.asarray(Image.open(out / frame["file_path"]))
        assert image.shape == (64, 96, 3)
        assert image.mean() == pytest.approx(15 * 2 * row, abs=4)  # the clip's own frame
        np.testing.assert_allclose(read_ply(out / frame["mesh"])[0], world(lens.run, row, options), atol=1e-4)
        mask = np.asarray(Image.open(out / frame["mask_path"]))
        assert mask.shape == (64, 96) and set(np.unique(mask)) == {0, 255}
        v, u = np.nonzero(mask)
        low, high = np.clip(pixels.min(0), 0, (96, 64)), np.clip(pixels.max(0), 0, (96, 64))
        np.testing.assert_allclose([u.min(), v.min()], low, atol=1)
        np.testing.assert_allclose([u.max() + 1, v.max() + 1], high, atol=1)
    assert len(list((out / "images").iterdir())) == len(lens.pixels)


def test_data_set_is_what_its_readers_ask_for(made, tmp_path: Path) -> None:
    out = export(made.run, "transforms", tmp_path / "out", ExportOptions("m", "z", images=True))
    whole = json.loads((out / "transforms.json").read_text())
    steps = [frame["timestep_index"] for frame in whole["frames"]]
    # VHAP's NeRFDataset: indices without gaps in each part, intrinsics and size of each frame, picture and parameters
    for name in ("", "_train", "_val", "_test"):
        indices = json.loads((out / f"transforms{name}.json").read_text())["timestep_indices"]
        assert len(indices) == max(indices) + 1 == len(made.pixels)
    assert whole["camera_indices"] == [0] and steps == whole["timestep_indices"]
    for frame, row in zip(whole["frames"], made.pixels, strict=True):
        assert (frame["timestep_index_original"], frame["timestep_id"]) == (2 * row, f"{2 * row:06d}")
        assert np.array(Image.open(out / frame["file_path"])).shape == (frame["h"], frame["w"], 3)
        with np.load(out / frame["flame_param_path"]) as parameters:
            np.testing.assert_array_equal(parameters["z_ex"], made.run.track.z_ex[row])
    # GaussianAvatars' readDynamicNerfInfo: three files; fov, "w", "h", time step and camera of each frame
    parts = [json.loads((out / f"transforms_{name}.json").read_text()) for name in ("train", "val", "test")]
    assert [f["file_path"] for part in parts for f in part["frames"]] == [f["file_path"] for f in whole["frames"]]
    assert not parts[1]["frames"]
    for frame in parts[0]["frames"]:
        assert ".png" in frame["file_path"] and frame["camera_id"] == "0" and frame["camera_index"] == 0
        focal = frame["w"] / (2 * np.tan(frame["camera_angle_x"] / 2))
        assert focal == pytest.approx(made.run.track.K[0, 0])
    # nerfstudio: points in the same world, and no turning of a world that is z-up
    assert whole["orientation_override"] == "none"
    points = read_ply(out / whole["ply_file_path"])[0]
    np.testing.assert_allclose(points, made.run.canonical()[0] @ UP["z"].T, atol=1e-6)


def read_colmap(model: Path) -> tuple[list[str], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Fields of the camera, and name to rotation and translation, world to camera."""
    lines = [line for line in (model / "images.txt").read_text().split("\n")[:-1] if not line.startswith("#")]
    poses = {}
    assert not any(lines[1::2])  # no observations
    for number, line in enumerate(lines[::2], start=1):
        identity, qw, qx, qy, qz, *t, camera, name = line.split()
        assert (int(identity), camera) == (number, "1")
        poses[name] = Rotation.from_quat([float(q) for q in (qx, qy, qz, qw)]).as_matrix(), np.array(t, float)
    (camera,) = [line for line in (model / "cameras.txt").read_text().splitlines() if not line.startswith("#")]
    return camera.split(), poses


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_colmap(lens, tmp_path: Path, options: ExportOptions) -> None:
    out = export(lens.run, "colmap", tmp_path / "out", options)
    camera, poses = read_colmap(out / "sparse" / "0")
    model, width, height, *parameters = camera[1:]
    assert (width, height) == ("96", "64")
    assert (model, len(parameters)) == (("FULL_OPENCV", 12) if lens.run.track.distortion.any() else ("PINHOLE", 4))
    assert list(poses) == [f"{2 * row:06d}.png" for row in lens.pixels]
    values = [float(value) for value in parameters[:9]]
    for (row, expected), (R, t) in zip(lens.pixels.items(), poses.values(), strict=True):
        in_camera = world(lens.run, row, options) @ R.T + t
        np.testing.assert_allclose(opencv_project(in_camera, *values), expected, atol=PX)
    points = np.loadtxt(out / "sparse" / "0" / "points3D.txt")
    expected = {"mm": 1000, "cm": 100, "m": 1}[options.unit] * lens.run.canonical()[0] @ UP[options.up].T
    np.testing.assert_allclose(points[:, 1:4], expected, rtol=1e-6, atol=1e-6)


def test_colmap_images_have_the_names_of_the_model(made, tmp_path: Path) -> None:
    out = export(made.run, "colmap", tmp_path / "out", ExportOptions(images=True))
    assert sorted(p.name for p in (out / "images").iterdir()) == list(read_colmap(out / "sparse" / "0")[1])


def read_opencv(path: Path) -> dict[str, np.ndarray]:
    found = re.findall(
        r"(\w+): !!opencv-matrix\s+rows: (\d+)\s+cols: (\d+)\s+dt: \w\s+data: \[([^]]*)\]", path.read_text()
    )
    return {name: np.array(data.split(","), float).reshape(int(rows), int(cols)) for name, rows, cols, data in found}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opencv(lens, tmp_path: Path, options: ExportOptions) -> None:
    read = read_opencv(export(lens.run, "opencv", tmp_path / "camera.yaml", options))
    K, distortion = read["camera_matrix"], read["distortion_coefficients"][0]
    np.testing.assert_array_equal(read["frame"][:, 0], [2 * row for row in lens.pixels])
    np.testing.assert_array_equal(read["time"][:, 0], lens.run.track.time[list(lens.pixels)])
    for i, (row, expected) in enumerate(lens.pixels.items()):
        in_camera = (
            world(lens.run, row, options) @ Rotation.from_rotvec(read["rvec"][i]).as_matrix().T + read["tvec"][i]
        )
        seen = opencv_project(in_camera, K[0, 0], K[1, 1], K[0, 2], K[1, 2], *distortion)
        np.testing.assert_allclose(seen + 0.5, expected, atol=PX)  # OpenCV counts from the first pixel's centre


def test_opencv_camera_can_be_given_back_as_intrinsics(lens, tmp_path: Path) -> None:
    read = read_calibration(export(lens.run, "opencv", tmp_path / "camera.yaml"))
    np.testing.assert_allclose(read.K, lens.run.track.K)
    np.testing.assert_allclose(read.distortion, lens.run.track.distortion)
    assert read.size == (96, 64)
