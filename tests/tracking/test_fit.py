"""The parts of the fit that need no model."""

from __future__ import annotations

import numpy as np
import pytest

from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.landmark_model import REGIONS
from nphm_track.tracking.fit import FIT_POINTS, frontalness, merge_identity, point_weights
from nphm_track.tracking.observe import spread_rows


class TestMergeIdentity:
    def frames(self, count: int = 40) -> np.ndarray:
        """Codes [T, 16] around 1 with a spread of 0.1."""
        return (1 + 0.1 * np.random.default_rng(3).standard_normal((count, 16))).astype(np.float32)

    def test_single_frame_is_its_own_identity(self) -> None:
        z_id = self.frames(1)
        np.testing.assert_allclose(merge_identity(z_id, np.ones(1, np.float32)), z_id[0], rtol=1e-6)

    def test_equal_frames_stay_what_they_are(self) -> None:
        z_id = np.full((5, 16), 0.25, np.float32)
        np.testing.assert_array_equal(merge_identity(z_id, np.ones(5, np.float32)), z_id[0])

    def test_outliers_do_not_drag_it(self) -> None:
        z_id = self.frames()
        weight = np.ones(len(z_id), np.float32)
        clean = merge_identity(z_id, weight)
        z_id[::8] += 50
        assert np.abs(z_id.mean(0) - clean).min() > 5
        assert np.abs(merge_identity(z_id, weight) - clean).max() < 0.1

    def test_weight_decides_between_two_groups(self) -> None:
        z_id = np.concatenate([self.frames(10), self.frames(10) + 4])
        weight = np.repeat([1.0, 0.1], 10).astype(np.float32)
        np.testing.assert_allclose(merge_identity(z_id, weight), 1, atol=0.2)
        np.testing.assert_allclose(merge_identity(z_id, weight[::-1]), 5, atol=0.2)


class TestFrontalness:
    def landmarks(self, nose_x: float) -> np.ndarray:
        """One frame [1, 478, 3] with the outer eye corners at 0 and 100 px."""
        points = np.zeros((1, 478, 3), np.float32)
        points[0, 263, 0] = 100
        points[0, 1, :2] = nose_x, 0
        return points

    @pytest.mark.parametrize(("nose_x", "expected"), [(50, 1), (25, 1 / 3), (75, 1 / 3), (0, 0)])
    def test_is_the_ratio_of_the_two_halves(self, nose_x: float, expected: float) -> None:
        assert frontalness(self.landmarks(nose_x)) == pytest.approx(expected)

    def test_does_not_depend_on_the_face_size(self) -> None:
        small, large = self.landmarks(30), self.landmarks(30) * 7
        np.testing.assert_allclose(frontalness(small), frontalness(large), rtol=1e-6)

    def test_collapsed_face_counts_nothing(self) -> None:
        assert frontalness(np.zeros((1, 478, 3), np.float32)) == 0


class TestSpreadRows:
    def test_few_rows_are_all_taken(self) -> None:
        seen = np.array([False, True, True, False, True])
        assert spread_rows(seen, 3).tolist() == [1, 2, 4]

    def test_many_rows_are_thinned_evenly_and_keep_their_ends(self) -> None:
        seen = np.ones(1000, bool)
        seen[::2] = False
        rows = spread_rows(seen, 50)
        assert len(set(rows.tolist())) == 50
        assert (rows[0], rows[-1]) == (1, 999)
        assert seen[rows].all()
        assert np.ptp(np.diff(rows)) <= 2

    def test_nothing_seen(self) -> None:
        assert len(spread_rows(np.zeros(4, bool), 3)) == 0


class TestFitPoints:
    def test_begin_with_the_ibug_points_and_name_each_once(self) -> None:
        assert FIT_POINTS[:68] == tuple(IBUG68_FROM_478)
        assert len(set(FIT_POINTS)) == len(FIT_POINTS)

    def test_outline_weighs_least_and_the_mouth_less_than_the_rest(self) -> None:
        weight = dict(zip(FIT_POINTS, point_weights().tolist(), strict=True))
        outline, mouth = ({weight[p] for p in REGIONS[name] & set(FIT_POINTS)} for name in ("outline", "mouth"))
        nose = weight[FIT_POINTS[30]]
        assert max(outline) < min(mouth) <= max(mouth) < nose
        assert all(w > 0 for w in weight.values())
