"""Calibration files as other tools write them: read rightly, or refused with the true reason."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.errors import InputError
from nphm_track.video.presentation import Presentation

SIZE = (1280, 720)
LENS = [0.05, -0.01, 0.003, -0.001]
K_ROWS = "600., 0., 640., 0., 600., 360., 0., 0., 1."
YAML_MATRIX = """%YAML:1.0
---
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ {K} ]
{name}: !!opencv-matrix
   rows: {rows}
   cols: {cols}
   dt: d
   data: [ {lens} ]
"""
ROS = """image_width: 1280
image_height: 720
camera_name: narrow
camera_matrix:
  rows: 3
  cols: 3
  data: [600.0, 0, 640.0, 0, 600.0, 360.0, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [0.05, -0.01, 0.003, -0.001, 0]
"""
KALIBR = """cam0:
  camera_model: {camera}
  intrinsics: [600.0, 600.0, 640.0, 360.0]
  distortion_model: {lens}
  distortion_coeffs: [0.05, -0.01, 0.003, -0.001]
  resolution: [1280, 720]
"""
XML = """<?xml version="1.0"?>
<opencv_storage>
<image_width>1280</image_width><image_height>720</image_height>
<camera_matrix type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
  <data>600. 0. 640. 0. 600. 360.
    0. 0. 1.</data></camera_matrix>
</opencv_storage>
"""
WH = {"width": 1280, "height": 720}
NS = {"fl_x": 600.0, "fl_y": 600.0, "cx": 640.0, "cy": 360.0, "w": 1280, "h": 720}
CV_JSON = {
    "image_width": 1280, "image_height": 720,
    "camera_matrix": {
        "type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d", "data": [600, 0, 640, 0, 600, 360, 0, 0, 1],
    },
}  # fmt: skip


def read(tmp_path: Path, data: Any, name: str = "camera.json", size: tuple[int, int] = SIZE) -> Intrinsics:
    import json

    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return Intrinsics.from_file(path, size)


@pytest.mark.parametrize(
    ("data", "name", "shift", "lens"),
    [
        (CV_JSON, "cv.json", 0.5, None),
        (XML, "cv.xml", 0.5, None),
        (YAML_MATRIX.format(K=K_ROWS, name="dist_coeffs", rows=1, cols=4, lens=str(LENS)[1:-1]), "cv.yaml", 0.5, LENS),
        (ROS, "ros.yaml", 0.5, LENS),
        (KALIBR.format(camera="pinhole", lens="radtan"), "kalibr.yaml", 0.5, LENS),
        ({"intrinsics": [600, 600, 640, 360], "resolution": [1280, 720]}, "kalibr.json", 0, None),
        (NS | {"k1": 0.05, "k2": -0.01, "p1": 0.003, "p2": -0.001, "camera_model": "OPENCV"}, "ns.json", 0, LENS),
        ({"frames": [NS | {"file_path": "a.png"}, NS | {"file_path": "b.png"}]}, "frames.json", 0, None),
        ({"camera_angle_x": 2 * np.arctan(640 / 600), "w": 1280, "h": 720, "frames": []}, "angle.json", 0, None),
        (
            WH | {"ppx": 640, "ppy": 360, "fx": 600, "fy": 600, "coeffs": [0] * 5, "model": "inverse_brown_conrady"},
            "realsense.json", 0.5, None,
        ),
        (WH | {"intrinsic_matrix": [600, 0, 0, 0, 600, 0, 640, 360, 1]}, "open3d.json", 0.5, None),
        (WH | {"intrinsics": [[600, 0, 0], [0, 600, 0], [640, 360, 1]]}, "arkit.json", 0, None),
        ({"intrinsics": [600, 600, 640, 360], "imageResolution": [1280, 720]}, "arkit.json", 0, None),
        ({"fx": 600, "fy": 600, "cx": 640, "cy": 360, "width": 1280, "height": 720}, "polycam.json", 0, None),
        ("# Camera list\n1 OPENCV 1280 720 600 600 640 360 0.05 -0.01 0.003 -0.001\n", "cameras.txt", 0, LENS),
        ("1 SIMPLE_PINHOLE 1280 720 600 640 360\n", "cameras.txt", 0, None),
        ("6.0e+02 0 6.4e+02\n0 6.0e+02 3.6e+02\n0 0 1\n", "savetxt.txt", 0, None),
    ],
)  # fmt: skip
def test_what_tools_write_is_read_rightly(tmp_path, data, name, shift, lens) -> None:
    camera = read(tmp_path, data, name)
    np.testing.assert_allclose(camera.K, [[600, 0, 640 + shift], [0, 600, 360 + shift], [0, 0, 1]])
    assert (camera.distortion is None) == (lens is None)
    if lens:
        np.testing.assert_allclose(camera.distortion, [*lens, 0])


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (YAML_MATRIX.format(K=K_ROWS, name="D", rows=4, cols=1, lens=str(LENS)[1:-1]), "cv.yaml", "fisheye"),
        (YAML_MATRIX.format(K=K_ROWS, name="D", rows=1, cols=8, lens="0,0,0,0,0,1,2,3"), "cv.yaml", "8 coeff"),
        (KALIBR.format(camera="pinhole", lens="equidistant"), "kalibr.yaml", "fisheye"),
        (KALIBR.format(camera="omni", lens="radtan"), "kalibr.yaml", "fisheye"),
        (KALIBR.format(camera="pinhole", lens="radtan") * 2, "two.yaml", None),  # the same key twice: the last counts
        (NS | {"camera_model": "OPENCV_FISHEYE", "k1": 0.03}, "ns.json", "fisheye"),
        (NS | {"is_fisheye": True, "k1": 0.03}, "ingp.json", "fisheye"),
        (NS | {"k1": 0.03, "k4": 1e-4}, "k4.json", "coefficients"),
        ({"frames": [NS, NS | {"fl_x": 900.0}]}, "zoom.json", "different cameras"),
        ({"name": "GoPro", "fisheye_params": {"camera_matrix": []}}, "gyroflow.json", "Gyroflow.* fisheye"),
        ({"K": [600, 0, 640, 0, 600, 360, 0, 0, 1], "model": "inverse_brown", "coeffs": [0.1]}, "rs.json", "inverse"),
        ("1 THIN_PRISM_FISHEYE 1280 720 600 600 640 360 0 0 0 0 0 0 0 0\n", "cameras.txt", "fisheye.*THIN_PRISM"),
        ("1 OPENCV_FISHEYE 1280 720 600 600 640 360 0.1 0 0 0\n", "cameras.txt", "fisheye .OPENCV_FISHEYE.*undistort"),
        ("1 RADIAL_FISHEYE 1280 720 600 640 360 0.1 0\n", "cameras.txt", "fisheye"),
        ("1 FOV 1280 720 600 600 640 360 0.9\n", "cameras.txt", "fisheye .FOV"),
        (ROS.replace("plumb_bob", "equidistant"), "ros.yaml", "fisheye .equidistant"),
        (ROS.replace("plumb_bob", "fisheye"), "ros.yaml", "fisheye"),
        (CV_JSON | {"fisheye_model": 1, "dist_coeffs": [0.1, 0, 0, 0]}, "cv.json", "fisheye .fisheye_model"),
        (NS | {"camera_type": "kb4", "k1": 0.03}, "basalt.json", "fisheye .kb4"),
        ({"Camera.type": "KannalaBrandt8", "K": [600, 0, 640, 0, 600, 360, 0, 0, 1]}, "orb.yaml", "fisheye .kannala"),
        ({"frames": [NS | {"camera_model": "OPENCV_FISHEYE"}]}, "frames.json", "fisheye"),
        (NS | {"camera_model": "EQUIRECTANGULAR"}, "sphere.json", "fisheye"),
        ("1 PINHOLE 1280 720 600 600 640 360\n2 PINHOLE 1280 720 700 700 640 360\n", "cameras.txt", "2 cameras"),
        ({"K": [[0.47, 0, 0.5], [0, 0.83, 0.5], [0, 0, 1]]}, "norm.json", "normalised"),
        ({"fx": 35, "fy": 35, "cx": 640, "cy": 360, "w": 1280, "h": 720}, "mm.json", "millimetres"),
        ({"fx": 85, "fy": 85, "cx": 640, "cy": 360, "w": 1280, "h": 720}, "mm.json", "millimetres"),
        ({"fx": 600, "fy": 6000, "cx": 640, "cy": 360, "w": 1280, "h": 720}, "oblong.json", "impossible"),
        ({"K": [[1500, 0, 960], [0, 1500, 540], [0, 0, 1]]}, "hd.json", "image of about 1920 x 1080"),
        ({"K": [[500, 0, 320], [0, 500, 180], [0, 0, 1]]}, "sd.json", "image of about 640 x 360"),
        ({"fx": 1500, "fy": 1500, "cx": 960, "cy": 720, "w": 1920, "h": 1440}, "wide.json", "for 1920 x 1440"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><opencv_storage/>', "bomb.xml", "entities"),
        ("a: &x [1]\nb: [*x, *x]\n", "bomb.yaml", "aliases"),
        ("[" * 100_000, "deep.json", "nested too deep"),
        ("{" * 3000, "deep.yaml", "no camera calibration"),
    ],
)  # fmt: skip
def test_cameras_that_cannot_be_held_are_refused_with_the_reason(tmp_path, data, name, reason) -> None:
    if reason is None:
        read(tmp_path, data, name)
        return
    with pytest.raises(InputError, match=reason) as refused:
        read(tmp_path, data, name)
    assert "\n" not in str(refused.value) and name in str(refused.value)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_camera_sees_turned_points(rotation, mirrored) -> None:
    """What the camera sees at a pixel, the turned one sees at the turned pixel."""
    camera = Intrinsics(
        np.array([[600.0, 0, 610], [0, 620, 350], [0, 0, 1]]), SIZE, np.array([0.1, -0.05, 0.01, -0.02, 0])
    )
    points = np.random.default_rng(0).uniform([-0.3, -0.2, 1], [0.3, 0.2, 2], (20, 3))
    x, y = camera.project(points).T
    px, py, pz = points.T
    width, height = SIZE
    for _ in range(rotation // 90):  # counter-clockwise: what is right comes to the top
        x, y, px, py = y, width - x, py, -px
        width, height = height, width
    if mirrored:
        x, px = width - x, -px
    turned = camera.turned(rotation, mirrored)
    assert turned.size == (width, height)
    np.testing.assert_allclose(turned.project(np.stack([px, py, pz], -1)), np.stack([x, y], -1), atol=1e-9)


def test_a_camera_of_the_stored_picture_is_brought_to_the_shown_one(tmp_path) -> None:
    import json

    path = tmp_path / "dv.json"
    path.write_text(json.dumps({"fx": 800, "fy": 850, "cx": 350, "cy": 290, "w": 720, "h": 576}))
    wide = Presentation(stored=(720, 576), pixel_aspect=Fraction(64, 45))
    camera = Intrinsics.from_file(path, wide.size, wide)
    np.testing.assert_allclose(camera.K, [[800 * 64 / 45, 0, 350 * 64 / 45], [0, 850, 290], [0, 0, 1]])
    path.write_text(json.dumps({"fx": 1500, "fy": 1500, "cx": 950, "cy": 530, "w": 1920, "h": 1080}))
    phone = Presentation(stored=(1920, 1080), rotation=270)  # clockwise
    camera = Intrinsics.from_file(path, phone.size, phone)
    assert camera.size == (1080, 1920) and camera.K[:2, 2].tolist() == [1080 - 530, 950]
    with pytest.raises(InputError, match="calibrated for 1920 x 1080"):
        Intrinsics.from_file(path, (1080, 1920))
