"""The identity of a person's takes, merged and refined: it is made once and then held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_steps import Track, contents, write_take

from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest
from nphm_track.tracking.options import TrackOptions


class TestRefinedIdentities:
    """With ``refine`` the merged identity is refined once, and then held."""

    @pytest.fixture
    def refine(self, track: Track, takes: Path, out: Path) -> Track:
        options = TrackOptions(refine=True)
        return lambda *a, **k: track(*a, **({"plan": lambda: driver.planned(takes, out, options)} | k))

    def z_id(self, out: Path, *names: str) -> list[np.ndarray]:
        return [np.load(out / name)["z_id"] for name in names]

    def test_all_takes_have_it(self, track: Track, refine: Track, out: Path, tmp_path: Path) -> None:
        track(session=tmp_path / "merged")
        refine()
        (merged,) = self.z_id(tmp_path / "merged", "anna/identity.npz")
        for z_id in self.z_id(out, "anna/identity.npz", "anna/one/track.npz", "anna/two/track.npz"):
            np.testing.assert_array_equal(z_id, merged / 2)
        anna = Manifest.load(out).identities["anna"]
        assert anna.key_frames == ["one 0", "two 0"] and not anna.error and anna.seconds is not None
        assert anna.identity == next(job.identity for job in Manifest.load(out).jobs)
        assert "identity merged, then refined on 2 frames of 2 takes" in (out / "index.html").read_text()

    def test_added_takes_keep_it_unless_asked(self, refine: Track, takes: Path, out: Path) -> None:
        refine()
        before = contents(out)
        write_take(takes / "anna" / "three.mp4", frames=30)
        assert set(refine().values()) == {"done"}
        assert before.items() <= contents(out).items()
        assert set(refine(update_identity=True).values()) == {"done"}
        after = contents(out)
        assert after["anna/identity.npz"] != before["anna/identity.npz"]
        assert after["ben/identity.npz"] == before["ben/identity.npz"]
        assert len(Manifest.load(out).identities["anna"].key_frames) == 3
        names = ("one", "two", "three")
        assert len(np.unique(self.z_id(out, *(f"anna/{n}/track.npz" for n in names)), axis=0)) == 1

    @pytest.mark.parametrize(("mishap", "workers"), [("kill", (2,)), ("raise", ()), ("unreadable", ())])
    def test_one_that_cannot_be_is_the_merged_one_until_retried(
        self, track: Track, refine: Track, takes: Path, out: Path, tmp_path: Path, mishap: str, workers: tuple[int, ...]
    ) -> None:
        (takes / "anna" / "mishap").write_text(mishap)
        track(session=tmp_path / "merged")
        assert set(refine(*workers).values()) == {"done"}
        np.testing.assert_array_equal(*self.z_id(out, "anna/identity.npz", "../merged/anna/identity.npz"))
        assert Manifest.load(out).identities["anna"].error and not Manifest.load(out).identities["ben"].error
        assert "not refined" in (out / "index.html").read_text()
        (takes / "anna" / "mishap").unlink()
        assert set(refine(plan=lambda: driver.retried(out)).values()) == {"done"}
        assert Manifest.load(out).identities["anna"].key_frames == ["one 0", "two 0"]

    def test_interrupted_between(self, refine: Track, out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            refine(interrupted=lambda: int((out / "ben" / "votes" / "one.npz").exists()))
        assert not (out / "ben" / "identity.npz").exists()
        assert set(refine().values()) == {"done"}
