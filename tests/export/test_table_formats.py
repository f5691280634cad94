"""Blendshapes and landmarks, read back by the csv and json modules."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.conventions import ARKIT_BLENDSHAPES, BLENDSHAPE_NAMES
from nphm_track.export.blendshapes import APPLE_ORDER, head_angles, timecode
from nphm_track.export.formats import export


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


class TestBlendshapes:
    def test_names_are_the_52_of_arkit(self) -> None:
        assert len(set(APPLE_ORDER)) == len(APPLE_ORDER) == 52
        assert set(APPLE_ORDER) == {*ARKIT_BLENDSHAPES, "tongueOut"}
        assert APPLE_ORDER[0] == "eyeBlinkLeft" and APPLE_ORDER[14:17] == ("jawForward", "jawRight", "jawLeft")

    def test_weights_keep_their_names_and_frames_their_rows(self, made, tmp_path: Path) -> None:
        rows = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))
        track = made.run.track
        assert len(rows) == len(track) and len(rows[0]) == 57
        for i in (0, 1, 4, 5):
            assert rows[i]["BlendShapeCount"] == "55"
            assert float(rows[i]["TongueOut"]) == 0
            for name in ARKIT_BLENDSHAPES:
                expected = track.blendshapes[i, BLENDSHAPE_NAMES.index(name)]
                assert float(rows[i][name[0].upper() + name[1:]]) == pytest.approx(expected, abs=1e-6)
        assert rows[2]["BlendShapeCount"] == "3"  # filled in: a pose, but no face was seen
        assert rows[2]["JawOpen"] == rows[2]["TongueOut"] == "" and rows[2]["HeadYaw"] != ""
        for i in (3, 6):
            assert rows[i]["BlendShapeCount"] == "0" and rows[i]["HeadYaw"] == ""

    def test_rotation_can_be_rebuilt(self, made, tmp_path: Path) -> None:
        rows = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))
        for i in made.pixels:
            yaw, pitch, roll = (float(rows[i][f"Head{name}"]) for name in ("Yaw", "Pitch", "Roll"))
            facing = Rotation.from_euler("y", yaw) * Rotation.from_euler("x", pitch) * Rotation.from_euler("z", roll)
            np.testing.assert_allclose(np.diag([1, -1, -1]) @ facing.as_matrix(), made.run.track.R[i], atol=1e-7)

    def test_signs(self) -> None:
        """Columns of R are where the head's axes go: x its left, y its top, z its nose; camera y is down, z forward."""
        frontal = np.diag([1.0, -1, -1])
        turned = [Rotation.from_euler(axis, 0.3).as_matrix() for axis in "yxz"]
        nose_right, nose_down, top_left = (frontal @ R for R in turned)
        assert nose_right[0, 2] > 0 and nose_down[1, 2] > 0 and top_left[0, 1] < 0
        np.testing.assert_allclose(
            head_angles(np.stack([frontal, nose_right, nose_down, top_left])),
            [[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3]],
            atol=1e-12,
        )

    @pytest.mark.parametrize("time, rate, code", [
        (0, 25, "00:00:00:00.000"), (1.5, 30, "00:00:01:15.000"), (3725.02, 25, "01:02:05:00.500"),
        (0.99999999, 25, "00:00:01:00.000"), (1001 / 30000, 30, "00:00:00:01.001"), (-0.1, 25, "00:00:00:00.000"),
    ])  # fmt: skip
    def test_timecode(self, time: float, rate: int, code: str) -> None:
        assert timecode(time, rate) == code

    def test_timecodes_are_the_timestamps(self, made, tmp_path: Path) -> None:
        codes = [row["Timecode"] for row in rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))]
        parts = np.array([code.split(":") for code in codes], float)
        np.testing.assert_allclose(parts @ [3600, 60, 1, 1 / 25], made.run.track.time, atol=1e-4)


class TestLandmarks:
    def test_csv(self, made, tmp_path: Path) -> None:
        rows, track = rows_of(export(made.run, "landmarks", tmp_path / "out.csv")), made.run.track
        assert [row["status"] for row in rows] == ["tracked", "tracked", "filled", "lost", "tracked", "tracked", "lost"]
        for i, row in enumerate(rows):
            assert int(row["frame"]) == track.frame[i]
            assert float(row["time"]) == pytest.approx(track.time[i], abs=1e-6)
            for prefix, points in (("", track.landmarks[i]), ("fit_", track.landmarks_fit[i])):
                cells = [[row[f"{prefix}{axis}{k}"] for axis in "xy"] for k in range(len(points))]
                if np.isnan(points).all():
                    assert {cell for pair in cells for cell in pair} == {""}
                else:
                    np.testing.assert_allclose(np.array(cells, float), points, atol=0.05)

    def test_json(self, made, tmp_path: Path) -> None:
        content = json.loads(export(made.run, "landmarks", tmp_path / "out.json").read_text())
        track = made.run.track
        np.testing.assert_allclose(content["camera"]["K"], track.K)
        assert [frame["frame"] for frame in content["frames"]] == track.frame.tolist()
        for i, frame in enumerate(content["frames"]):
            assert frame["time"] == track.time[i]
            for name in ("landmarks", "landmarks_fit"):
                points = getattr(track, name)[i]
                if np.isnan(points).all():
                    assert frame[name] is None
                else:
                    np.testing.assert_allclose(frame[name], points, atol=0.05)

    def test_a_single_missing_point(self, made, tmp_path: Path) -> None:
        made.run.track.landmarks[0, 5] = np.nan
        content = json.loads(export(made.run, "landmarks", tmp_path / "out.json").read_text())
        assert content["frames"][0]["landmarks"][5] is None and content["frames"][0]["landmarks"][4] is not None
        row = rows_of(export(made.run, "landmarks", tmp_path / "out.csv"))[0]
        assert row["x5"] == "" and row["x4"] != ""
