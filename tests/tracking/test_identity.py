from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nphm_track import TrackOptions
from nphm_track.batch.identity import SATURATION, keep_identity, merge_votes, save_identity
from nphm_track.errors import InputError
from nphm_track.tracking.identity import Identity, load_identity, merge_identity

CODE = np.linspace(-1, 1, 8, dtype=np.float32)
RNG = np.random.default_rng(0)


class TestFiles:
    def test_one_code_has_one_digest(self, run_path: Path, tmp_path: Path) -> None:
        code = np.load(run_path / "track.npz")["z_id"]
        save_identity(tmp_path / "a.npz", Identity(code, "abc"))
        (tmp_path / "b.json").write_text(json.dumps({"z_id": code.tolist()}))
        loaded = [load_identity(path) for path in (run_path, tmp_path / "a.npz", tmp_path / "b.json")]
        assert len({identity.digest for identity in loaded}) == 1
        assert [identity.model for identity in loaded] == [None, "abc", None]
        fingerprints = [
            TrackOptions(identity=tmp_path / n).fingerprint()["identity_sha256"] for n in ("a.npz", "b.json")
        ]
        assert fingerprints == [loaded[0].digest] * 2
        assert "identity_sha256" not in TrackOptions().fingerprint()

    @pytest.mark.parametrize(
        "content", ["{", "[]", "{}", '{"z_id": "x"}', '{"z_id": [[1]]}', '{"z_id": []}', '{"z_id": [NaN]}', "5"]
    )
    def test_json_without_a_code(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=r"identity .*a\.json is not an identity code"):
            load_identity(tmp_path / "a.json")

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "text.npz").write_text("no zip")
        np.savez(tmp_path / "object.npz", z_id=np.array([{}], object))
        with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
            pass
        for name in ("text.npz", "object.npz", "empty.npz", "missing.npz", "missing.json", "."):
            with pytest.raises(InputError, match="identity"):
                load_identity(tmp_path / name)


class TestMerging:
    def votes(self, path: Path, codes: np.ndarray, weight: float = 1.0, model: str = "m") -> Path:
        np.savez(path, z_id=codes, weight=np.full(len(codes), weight, np.float32), model=model)
        return path

    def test_one_take_says_what_it_says_alone(self, tmp_path: Path) -> None:
        codes = RNG.normal(0, 1, (40, 8)).astype(np.float32)
        merged = merge_votes([self.votes(tmp_path / "a.npz", codes)])
        np.testing.assert_allclose(merged.z_id, merge_identity(codes, np.ones(40, np.float32)), atol=1e-6)
        assert merged.model == "m"

    def test_a_long_take_does_not_outvote_the_others(self, tmp_path: Path) -> None:
        def take(name: str, center: float, count: int) -> Path:
            return self.votes(tmp_path / name, (center + RNG.normal(0, 0.1, (count, 8))).astype(np.float32))

        paths = [take("a.npz", 0.0, 60), take("b.npz", 0.1, 60), take("long.npz", 3.0, int(20 * SATURATION))]
        merged = merge_votes(paths).z_id
        assert np.abs(merged).max() < 0.6
        np.testing.assert_array_equal(merged, merge_votes(paths[::-1]).z_id)

    def test_damaged_and_foreign_votes(self, tmp_path: Path) -> None:
        good = self.votes(tmp_path / "a.npz", np.zeros((3, 8), np.float32))
        for other in (
            self.votes(tmp_path / "b.npz", np.zeros((3, 8), np.float32), model="other"),
            self.votes(tmp_path / "c.npz", np.zeros((3, 9), np.float32)),
        ):
            with pytest.raises(InputError, match="another head model"):
                merge_votes([good, other])
        for bad in (
            self.votes(tmp_path / "d.npz", np.zeros((0, 8), np.float32)),
            self.votes(tmp_path / "e.npz", np.full((3, 8), np.nan, np.float32)),
            self.votes(tmp_path / "f.npz", np.zeros((3, 8), np.float32), weight=-1),
            tmp_path / "missing.npz",
        ):
            with pytest.raises(InputError, match=r"not a file of votes|cannot be read"):
                merge_votes([bad])

    def test_keeping(self, run_path: Path, tmp_path: Path) -> None:
        path, digest = tmp_path / "identity.npz", load_identity(run_path).digest
        assert keep_identity(path, []) is None
        assert keep_identity(path, [(tmp_path / "gone", digest), (run_path, "another")]) is None
        assert keep_identity(path, [(run_path, digest)]) == digest == load_identity(path).digest
