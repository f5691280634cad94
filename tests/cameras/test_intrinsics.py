from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from nphm_track.cameras.intrinsics import Intrinsics, focal_from_exif, focal_from_fov
from nphm_track.errors import InputError

SIZE = (640, 360)
LENS = np.array([-0.28, 0.09, 0.001, -0.002, -0.01])

OPENCV_YAML = """%YAML:1.0
---
calibration_time: "Tue 03 Mar 2020"
image_width: 1280
image_height: 720
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1.0e+03, 0., 6.395e+02, 0.,
       1000., 359.5, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ -2.8e-01, 0.09, 0., 0., 0.01 ]
"""


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_field_of_view_and_focal_agree() -> None:
    camera = Intrinsics.from_fov(60, SIZE)
    assert camera.fov == pytest.approx(60)
    assert camera.K[0, 0] == camera.K[1, 1] == pytest.approx(focal_from_fov(60, 640))
    assert camera.K[:2, 2].tolist() == [320, 180]
    assert Intrinsics.from_focal(320, SIZE).fov == pytest.approx(90)


def test_projection_and_rays_are_inverse() -> None:
    camera = Intrinsics(Intrinsics.from_fov(70, SIZE).K, SIZE, LENS)
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.3, -0.2, 0.5], [0.3, 0.2, 2.0], (4, 50, 3))
    rays = camera.rays(camera.project(points))
    assert np.allclose(rays, points / np.linalg.norm(points, axis=-1, keepdims=True), atol=1e-9)
    assert camera.project([0, 0, 1.0]).tolist() == [320, 180]


@pytest.mark.parametrize("lens", [LENS, LENS * 0.1, np.array([0.3, 0, 0, 0, 0]), np.array([-0.15, 0, 0, 0, 0])])
def test_undistortion_covers_the_frame(lens: np.ndarray) -> None:
    camera = Intrinsics(Intrinsics.from_fov(75, SIZE).K, SIZE, lens)
    u, v = np.meshgrid(np.linspace(0, 640, 21), np.linspace(0, 360, 13))
    seen = np.stack([u, v], axis=-1)
    ideal = camera.undistort(seen)
    xy = (ideal - [320, 180]) / camera.K[0, 0]
    again = camera.project(np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1))
    assert np.abs(again - seen).max() < 1e-6
    assert np.abs(ideal - seen).max() > 1  # the lens does something


def test_beyond_the_model_stays_finite() -> None:
    camera = Intrinsics(Intrinsics.from_fov(100, SIZE).K, SIZE, np.array([-0.6, 0, 0, 0, 0]))
    assert np.isfinite(camera.undistort([[0, 0], [640, 360], [-5000, 9000]])).all()


def test_undistort_without_lens_is_the_identity() -> None:
    pixels = np.random.default_rng(1).uniform(0, 300, (3, 7, 2))
    assert np.allclose(Intrinsics.from_fov(50, SIZE).undistort(pixels), pixels, atol=1e-12)


@pytest.mark.parametrize(
    "data",
    [
        {"K": [[1000, 0, 640], [0, 1000, 360], [0, 0, 1]], "size": [1280, 720]},
        {"fx": 1000, "fy": 1000, "cx": 640, "cy": 360, "width": 1280, "height": 720},
        {"fx": 500, "fy": 500, "cx": 320, "cy": 180},
        {"fl_x": 1000, "fl_y": 1000, "cx": 640, "cy": 360, "w": 1280, "h": 720, "frames": [], "camera_model": "OPENCV"},
        {"fx": 1000, "w": 1280, "h": 720},
    ],
)
def test_json_files(tmp_path: Path, data: dict[str, Any]) -> None:
    camera = Intrinsics.from_file(write(tmp_path / "camera.json", data), SIZE)
    assert np.allclose(camera.K, [[500, 0, 320], [0, 500, 180], [0, 0, 1]])
    assert camera.size == SIZE and camera.distortion is None


def test_distortion_in_files(tmp_path: Path) -> None:
    base = {"fx": 500, "fy": 500, "cx": 320, "cy": 180}
    spellings: list[dict[str, Any]] = [
        {"dist": [-0.1, 0.02, 0.001, 0]},
        {"k1": -0.1, "k2": 0.02, "p1": 0.001},
        {"distortion": [[-0.1, 0.02, 0.001]]},
    ]
    for extra in spellings:
        camera = Intrinsics.from_file(write(tmp_path / "camera.json", base | extra), SIZE)
        assert camera.distortion is not None
        assert camera.distortion.tolist() == [-0.1, 0.02, 0.001, 0, 0]


def test_opencv_yaml(tmp_path: Path) -> None:
    camera = Intrinsics.from_file(write(tmp_path / "camera.yml", OPENCV_YAML), SIZE)
    assert np.allclose(camera.K, [[500, 0, 320], [0, 500, 180], [0, 0, 1]])  # its pixel centres are whole numbers
    assert camera.distortion is not None
    assert camera.distortion.tolist() == [-0.28, 0.09, 0, 0, 0.01]


@pytest.mark.parametrize(
    "data",
    [
        "not json",
        "[1, 2]",
        {},
        {"fx": 500},
        {"fx": "wide", "fy": 1, "cx": 1, "cy": 1},
        {"fx": -500, "fy": 500, "cx": 320, "cy": 180},
        {"fx": 500, "fy": 500, "cx": 2000, "cy": 180},
        {"K": [[500, 0, 320], [0, 500, 180]]},
        {"K": [[500, 9, 320], [0, 500, 180], [0, 0, 1]]},
        {"fx": 500, "fy": 500, "cx": 320, "cy": 240, "w": 640, "h": 480},
        {"fx": 500, "fy": 500, "cx": 320, "cy": 180, "dist": [0.1, 0, 0, 0, 0, 0.2, 0, 0]},
        {"fx": 500, "fy": 500, "cx": 320, "cy": 180, "camera_model": "OPENCV_FISHEYE"},
        {"fx": 500, "fy": 500, "cx": 320, "cy": 180, "size": 640},
    ],
)
def test_nonsense_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(InputError, match=r"camera\.json"):
        Intrinsics.from_file(write(tmp_path / "camera.json", data), SIZE)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Intrinsics.from_file(tmp_path / "none.json", SIZE)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError):
        Intrinsics.from_file(tmp_path / "binary.json", SIZE)
    with pytest.raises(InputError):
        Intrinsics.from_file(write(tmp_path / "empty.yml", "%YAML:1.0\n---\n"), SIZE)


@pytest.mark.parametrize("bad", [0, -10, 180, float("nan")])
def test_impossible_field_of_view(bad: float) -> None:
    with pytest.raises(InputError):
        Intrinsics.from_fov(bad, SIZE)


def photograph(path: Path, size: tuple[int, int], **tags: float) -> Path:
    image = Image.new("RGB", size)
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {int(ExifTags.Base[name]): value for name, value in tags.items()}
    image.save(path, exif=exif)
    return path


def test_focal_from_exif(tmp_path: Path) -> None:
    path = photograph(tmp_path / "phone.jpg", (400, 300), FocalLengthIn35mmFilm=26)
    assert focal_from_exif(path, (400, 300)) == pytest.approx(26 / 43.267 * 500, rel=1e-4)
    assert focal_from_exif(path, (300, 400)) == pytest.approx(26 / 43.267 * 500, rel=1e-4)


@pytest.mark.parametrize(
    ("focal_mm", "size"), [(77, (300, 400)), (105, (400, 300)), (600, (400, 300)), (13, (300, 400))]
)
def test_a_stated_focal_length_is_believed_whatever_the_lens_and_the_orientation(tmp_path, focal_mm, size) -> None:
    path = photograph(tmp_path / "phone.jpg", size, FocalLengthIn35mmFilm=focal_mm)
    assert focal_from_exif(path, size) == pytest.approx(focal_mm / 43.267 * 500, rel=1e-4)


def test_exif_that_says_nothing_useful(tmp_path: Path) -> None:
    assert focal_from_exif(photograph(tmp_path / "a.jpg", (400, 300)), (400, 300)) is None
    assert focal_from_exif(photograph(tmp_path / "b.jpg", (400, 300), FocalLengthIn35mmFilm=1), (400, 300)) is None
    assert focal_from_exif(photograph(tmp_path / "c.jpg", (400, 300), FocalLengthIn35mmFilm=0), (400, 300)) is None
    cropped = {"FocalLengthIn35mmFilm": 26, "ExifImageWidth": 4000, "ExifImageHeight": 3000}
    assert focal_from_exif(photograph(tmp_path / "d.jpg", (300, 300), **cropped), (300, 300)) is None
    (tmp_path / "clip.mp4").write_bytes(b"no picture")
    assert focal_from_exif(tmp_path / "clip.mp4", SIZE) is None
    assert focal_from_exif(tmp_path / "none.jpg", SIZE) is None
