"""NoW's crop and alignment against surfaces whose error is known, and the reading of seven points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.evaluation import region
from nphm_track.evaluation.points7 import NAMES7, read_points7, unit_of
from nphm_track.evaluation.region import FaceRegion
from nphm_track.rendering.surface import Surface
from nphm_track.rigid import Similarity

from .conftest import face_like

MOTION = Similarity(1.0, Rotation.random(random_state=1).as_matrix(), np.array([0.3, -0.2, 0.5]))


def test_a_moved_and_scaled_face_has_no_error() -> None:
    head = face_like()
    truth = FaceRegion(MOTION(head.vertices), MOTION(head.points7))
    noise = np.random.default_rng(0).normal(size=(7, 3)) * 0.002
    mesh = Surface(1.04 * head.vertices, head.faces)
    similar = truth.compare(mesh, 1.04 * (head.points7 + noise), scaled=True)
    assert 1e3 * similar.distance.mean() < 0.01 and similar.scale == pytest.approx(1 / 1.04, abs=1e-3)
    metrical = truth.compare(mesh, 1.04 * (head.points7 + noise), scaled=False)
    assert 1e3 * metrical.distance.mean() > 0.1 and metrical.scale == 1


def test_the_crop_is_a_ball_around_the_face() -> None:
    head = face_like()
    truth = FaceRegion(head.vertices, head.points7)
    bridge, base = head.points7[1:3].mean(0), head.points7[4]
    eyes = np.linalg.norm(head.points7[0] - head.points7[3])
    assert truth.radius == pytest.approx(0.7 * (eyes + np.linalg.norm(bridge - base)), rel=1e-5)
    np.testing.assert_allclose(truth.centre, base + 0.3 * (bridge - base), atol=1e-6)
    assert (np.linalg.norm(truth.points - truth.centre, axis=1) <= truth.radius).all()
    with pytest.raises(InputError, match="no surface around"):
        FaceRegion(head.vertices + 1, head.points7)


def test_relief_is_measured() -> None:
    head = face_like()
    truth = FaceRegion(head.vertices, head.points7)
    rough = face_like(bump=0.001)
    found = truth.compare(Surface(rough.vertices, rough.faces), rough.points7, scaled=True)
    assert 0.5 < 1e3 * found.distance.mean() < 1.1
    np.testing.assert_allclose(np.linalg.norm(found.offset, axis=1), found.distance, atol=1e-6)


def test_a_sample_aligns_as_all_points_do(monkeypatch: pytest.MonkeyPatch) -> None:
    head, rough = face_like(), face_like(bump=0.001)
    fine = np.concatenate([head.vertices, *(head.vertices[head.faces].mean(1),)])
    truth, mesh = FaceRegion(fine, head.points7), Surface(rough.vertices, rough.faces)
    every = truth.compare(mesh, rough.points7, scaled=True)
    monkeypatch.setattr(region, "SAMPLES", len(truth.points) // 3)
    some = truth.compare(mesh, rough.points7, scaled=True)
    assert some.distance.mean() == pytest.approx(float(every.distance.mean()), rel=0.005)


def pp(points: np.ndarray) -> str:
    rows = "".join(f'<point x="{x}" y="{y}" z="{z}" active="1" name="{i}"/>\n' for i, (x, y, z) in enumerate(points))
    return (
        f"<!DOCTYPE PickedPoints>\n<PickedPoints>\n <DocumentData><User name=''/></DocumentData>\n{rows}</PickedPoints>"
    )


def test_points_are_read_from_every_format(tmp_path: Path) -> None:
    points = face_like().points7.astype(float)
    named: dict[str, Any] = dict(zip(NAMES7, points.tolist(), strict=True))
    (tmp_path / "named.json").write_text(json.dumps({**named, "nose_tip": [1, 2, 3]}))
    (tmp_path / "nested.json").write_text(json.dumps({"points7": named}))
    (tmp_path / "list.json").write_text(json.dumps(points.tolist()))
    np.save(tmp_path / "rows.npy", points)
    np.savetxt(tmp_path / "rows.txt", points)
    (tmp_path / "picked.pp").write_text(pp(points))
    for file in tmp_path.iterdir():
        np.testing.assert_allclose(read_points7(file).points, points, atol=1e-9, err_msg=file.name)
    np.testing.assert_array_equal(read_points7(tmp_path / "named.json").nose_tip, [1, 2, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "r_eye_outer is missing"),
        ("a.json", "[[1, 2, 3]]", "seven finite points"),
        ("a.json", "{", "not a file of seven points"),
        ("a.pp", "<no", "not a file of seven points"),
        ("a.txt", "1 2 x", "not a file of seven points"),
    ],
)
def test_other_files_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_points7(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_points7(tmp_path / "absent.npy")


def test_units_are_told_by_the_eyes() -> None:
    points = face_like().points7.astype(float)
    assert [unit_of(points * factor) for factor in (1, 100, 1000)] == ["m", "cm", "mm"]
    with pytest.raises(InputError, match="arbitrary unit"):
        unit_of(points * 18)
