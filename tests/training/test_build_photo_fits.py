"""Heads of photos outlive the networks that saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

TRAINING = Path(__file__).parents[2] / "training"


def test_kept_heads_are_read_by_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    builder = pytest.importorskip("build_photo_fits")
    rng = np.random.default_rng(0)
    w, e = rng.normal(size=(3, 100)).astype(np.float32), rng.random((3, 51)).astype(np.float32)
    builder.write_heads(tmp_path / "heads.npz", np.array(["a/1.jpg", "a/2.jpg", "b.png"]), w, e)
    heads = builder.read_heads(tmp_path / "heads.npz")
    assert list(heads) == ["a/1.jpg", "a/2.jpg", "b.png"]
    assert np.allclose(heads["b.png"][0], w[2], atol=2e-3) and np.allclose(heads["b.png"][1], e[2], atol=1e-3)


def test_heads_of_the_training_photos_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    builder = pytest.importorskip("build_photo_fits")
    heads = builder.read_heads(TRAINING / "assets/photo_heads.npz")
    w = np.stack([w for w, _ in heads.values()])
    assert len(heads) > 1500 and np.isfinite(w).all() and np.abs(w).max() < 8
