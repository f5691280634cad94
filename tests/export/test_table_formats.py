"""Blendshapes and landmarks, read back by the csv and json modules."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.conventions import ARKIT_BLENDSHAPES, BLENDSHAPE_NAMES
from nphm_track.export.blendshapes import (
    APPLE_ORDER,
    app_angles,
    arkit_weights,
    head_angles,
    hold,
    row_times,
    timecode,
    turns_of_weights,
)
from nphm_track.export.formats import export


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


class TestBlendshapes:
    def test_names_are_the_52_of_arkit(self) -> None:
        assert len(set(APPLE_ORDER)) == len(APPLE_ORDER) == 52
        assert set(APPLE_ORDER) == {*ARKIT_BLENDSHAPES, "tongueOut"}
        assert APPLE_ORDER[0] == "eyeBlinkLeft" and APPLE_ORDER[14:17] == ("jawForward", "jawRight", "jawLeft")

    def test_weights_keep_their_names(self, made, tmp_path: Path) -> None:
        rows = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))
        track = made.run.track
        assert len(rows) == len(track) and len(rows[0]) == 63 and {row["BlendShapeCount"] for row in rows} == {"61"}
        for i in (0, 1, 4, 5):
            assert float(rows[i]["TongueOut"]) == 0
            for name in ARKIT_BLENDSHAPES:
                expected = track.blendshapes[i, BLENDSHAPE_NAMES.index(name)]
                assert float(rows[i][name[0].upper() + name[1:]]) == pytest.approx(expected, abs=1e-6)

    def test_weights_are_the_heads_where_a_run_has_them(self, made) -> None:
        track = made.run.track
        head = np.random.default_rng(0).uniform(0, 1, (len(track), 51)).astype(np.float32)
        np.testing.assert_array_equal(arkit_weights(replace(track, arkit=head)), head)
        np.testing.assert_array_equal(arkit_weights(track), track.blendshapes[:, 1:])

    def test_a_frame_without_a_face_holds_the_last_value_and_is_marked(self, made, tmp_path: Path) -> None:
        rows = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))
        assert (
            rows[2]["JawOpen"] == rows[1]["JawOpen"] and rows[2]["HeadYaw"] != rows[1]["HeadYaw"]
        )  # filled in: a pose
        for lost, before in ((3, 2), (6, 5)):
            assert [*rows[lost].values()][1:] == [*rows[before].values()][1:]
        marks = rows_of(tmp_path / "out_frames.csv")
        assert [row["Status"] for row in marks] == [
            "tracked",
            "tracked",
            "filled",
            "lost",
            "tracked",
            "tracked",
            "lost",
        ]
        assert [row["Timecode"] for row in marks] == [row["Timecode"] for row in rows]
        assert [int(row["Frame"]) for row in marks] == made.run.track.frame.tolist()

    def test_a_gap_at_the_start_holds_the_first_value(self) -> None:
        nan = np.nan
        values = np.array([[nan, nan], [2, nan], [nan, nan], [4, nan]])
        np.testing.assert_array_equal(hold(values), [[2, 0], [2, 0], [2, 0], [4, 0]])

    def test_rotation_can_be_rebuilt(self, made, tmp_path: Path) -> None:
        rows = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))
        for i in made.pixels:
            yaw, pitch, roll = (float(rows[i][f"Head{name}"]) for name in ("Yaw", "Pitch", "Roll"))
            facing = Rotation.from_euler("x", pitch) * Rotation.from_euler("y", -yaw) * Rotation.from_euler("z", roll)
            np.testing.assert_allclose(np.diag([1, -1, -1]) @ facing.as_matrix(), made.run.track.R[i], atol=1e-7)

    def test_signs(self) -> None:
        """Columns of R are where the head's axes go: x its left, y its top, z its nose; camera y is down, z forward."""
        frontal = np.diag([1.0, -1, -1])
        turned = [Rotation.from_euler(axis, 0.3).as_matrix() for axis in "yxz"]
        own_left, down, top_to_own_right = (frontal @ R for R in turned)
        assert own_left[0, 2] > 0 and down[1, 2] > 0 and top_to_own_right[0, 1] < 0
        np.testing.assert_allclose(
            head_angles(np.stack([frontal, own_left, down, top_to_own_right])),
            [[0, 0, 0], [-0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3]],
            atol=1e-12,
        )

    def test_eyes_turn_as_in_a_take_of_the_app(self) -> None:
        """A row of a real take: the wearer looks up to the own left (weights in, yaw, pitch and roll out)."""
        looks = {
            "eyeLookOutLeft": 0.50307,
            "eyeLookUpLeft": 0.38075,
            "eyeLookInRight": 0.59707,
            "eyeLookUpRight": 0.37335,
        }
        weights = np.zeros((1, 52))
        for name, value in looks.items():
            weights[0, APPLE_ORDER.index(name)] = value
        ((left, right),) = turns_of_weights(weights)
        np.testing.assert_allclose([*left, *right], [0.3597, -0.1742, 0.3029, -0.1741], atol=0.07)

    def test_eyes_follow_the_gaze_of_a_run(self, made, tmp_path: Path) -> None:
        """Both eyes to the face's own left (x) and up (y): negative yaw and pitch in the app's signs."""
        toward = np.array([0.3, 0.2, 0.9]) / np.linalg.norm([0.3, 0.2, 0.9])
        made.run.track.gaze = np.broadcast_to(toward, (len(made.run.track), 2, 3)).astype(np.float32)
        row = rows_of(export(made.run, "blendshapes", tmp_path / "out.csv"))[0]
        yaw, pitch, roll = (float(row[f"LeftEye{name}"]) for name in ("Yaw", "Pitch", "Roll"))
        eye = Rotation.from_euler("XYZ", [pitch, -yaw, roll])
        assert yaw < 0 and pitch < 0
        np.testing.assert_allclose(eye.apply([0, 0, 1]), toward, atol=1e-6)

    def test_an_eye_does_not_roll_about_its_own_axis(self) -> None:
        """Left eye of a row of a real take; as in all 7,839 rows its rotation is Ry Rx without a third factor."""
        yaw, pitch, roll = -0.3596782684, -0.1741501987, 0.0618444942
        eye = Rotation.from_euler("XYZ", [pitch, -yaw, roll])
        assert abs(eye.as_euler("YXZ")[2]) < 1e-6
        np.testing.assert_allclose(app_angles(eye.as_matrix()[None])[0], [yaw, pitch, roll], atol=1e-9)

    @pytest.mark.parametrize("time, code", [
        (0, "00:00:00:00.000"), (1.5, "00:00:01:30.000"), (3725.02, "01:02:05:01.200"),
        (0.999999999, "00:00:01:00.000"), (1001 / 30000, "00:00:00:02.002"), (1 / 24, "00:00:00:02.500"),
        (-0.1, "00:00:00:00.000"),
    ])  # fmt: skip
    def test_timecode(self, time: float, code: str) -> None:
        assert timecode(time) == code


class TestReadersOfBlendshapes:
    """The rules of public readers of the app's files, as far as a file can break them."""

    @pytest.fixture(params=[24, 25, 29.97, 30, 50, 60, "variable"])
    def clip(self, request, made, tmp_path: Path) -> tuple[Path, np.ndarray]:
        """The file and the times it stands for, of a clip at each usual rate."""
        track = made.run.track
        count = len(track)
        if request.param == "variable":
            track.time[:] = np.cumsum(np.random.default_rng(1).uniform(1 / 60, 1 / 12, count))
        else:
            track.time[:] = (np.arange(count) + 300) / request.param
        return export(made.run, "blendshapes", tmp_path / "out.csv"), track.time

    def test_unreal_keys_every_row_at_its_time(self, clip) -> None:
        """Unreal's Live Link Face importer drops empty cells, wants as many as in the header, and divides by 60."""
        path, times = clip
        header, *rows = [[cell for cell in line.split(",") if cell] for line in path.read_text().splitlines()]
        assert header[:2] == ["Timecode", "BlendShapeCount"] and all(len(row) == len(header) for row in rows)
        clock = np.array([[float(part) for part in row[0].split(":")] for row in rows]) @ [3600, 60, 1, 1 / 60]
        np.testing.assert_allclose(clock, times, atol=1e-5)
        assert len(np.unique(np.floor(clock * 24000))) == len(rows)  # ticks of a level sequence: no key on another

    def test_blender_reads_every_cell_as_a_number(self, clip) -> None:
        """nmfisher's add-on takes the columns by their place and each cell as a number."""
        with open(clip[0]) as file:
            header, *rows = csv.reader(file)
        assert header[2] == "EyeBlinkLeft" and header[54:] == [
            *("HeadYaw", "HeadPitch", "HeadRoll"),
            *("LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll"),
        ]
        assert np.isfinite(np.array([row[2:] for row in rows], float)).all()

    def test_motionbuilder_has_a_key_for_every_row(self, clip) -> None:
        """Scripts for MotionBuilder and Maya cut four characters off the timecode and count whole frames."""
        codes = [row["Timecode"][:-4] for row in rows_of(clip[0])]
        assert all(len(code.split(":")) == 4 and int(code.split(":")[3]) < 60 for code in codes)
        assert len(set(codes)) == len(codes)

    def test_maya_finds_rows_by_their_timecode_and_counts_frames_of_60(self, clip) -> None:
        """aronamao's importer: the row is looked up by its timecode; whole frames, and seconds since the first row."""
        path, times = clip
        codes = [row["Timecode"] for row in rows_of(path)]
        frames = [60 * int(second) + int(float(frame)) for _, _, second, frame in (code.split(":") for code in codes)]
        assert len(set(codes)) == len(codes) and (np.diff(frames) > 0).all()
        np.testing.assert_allclose(np.array(frames) - frames[0], 60 * (times - times[0]), atol=1.01)

    @pytest.mark.parametrize("clock", ["milliseconds", "telephone"])
    def test_every_row_of_an_uneven_60_has_a_sixtieth_to_itself(self, clock: str) -> None:
        """WebM and Matroska count whole milliseconds; cameras of telephones are some milliseconds early or late."""
        even = (np.arange(600) + 0.99) / 60
        late = np.random.default_rng(3).uniform(-0.1, 0.1, 600) / 60
        times = np.round(even, 3) if clock == "milliseconds" else even + late
        shown = [timecode(time) for time in row_times(times)]
        assert len({code[:-4] for code in shown}) == 600
        np.testing.assert_allclose(row_times(times), times, atol=0.25 / 60)
        assert len({timecode(time)[:-4] for time in times}) < 600

    def test_rows_at_rates_above_60_keep_their_times(self) -> None:
        times = np.arange(100) / 120
        np.testing.assert_allclose(row_times(times), times, atol=1e-12)


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
