"""Mattes beside a run: which frames have which, and where they lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions
from nphm_track.faces.mattes import MatteNetworks


class Known:
    """Networks that see a person whose grey is the frame's, and hair in its upper half."""

    def person(self, image: np.ndarray, head: np.ndarray | None = None) -> np.ndarray:
        return (image.mean(2) / 255).astype(np.float32)

    def hair(self, image: np.ndarray, head: np.ndarray, person: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(image))[:, None] < 32, person, 0).astype(np.float32)


def pictures(folder: Path) -> dict[int, np.ndarray]:
    return {int(file.stem): np.asarray(Image.open(file)) for file in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MatteNetworks, "from_pretrained", Known)


def test_mattes_of_each_frame(made, tmp_path: Path) -> None:
    out = export(made.run, "mattes", tmp_path / "out")
    person, hair, head = (pictures(out / name) for name in ("person", "hair", "head"))
    assert list(person) == [0, 2, 4, 6, 8, 10, 12]  # lost frames too
    assert list(hair) == list(head) == [0, 2, 4, 8, 10]
    for frame, matte in person.items():
        assert matte.dtype == np.uint8 and matte.shape == (64, 96)
        assert matte.mean() == pytest.approx(15 * frame, abs=4)
    assert not hair[8][40:].any() and hair[8][:30].mean() > 100
    for row, pixels in made.pixels.items():
        v, u = np.nonzero(head[2 * row])
        np.testing.assert_allclose([u.min(), v.min()], np.clip(pixels.min(0), 0, (96, 64)), atol=1)
        assert set(np.unique(head[2 * row])) == {0, 255}


def test_data_sets_carry_the_person_as_vhap_names_it(made, tmp_path: Path) -> None:
    out = export(made.run, "transforms", tmp_path / "out", ExportOptions(images=True))
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert [frame["fg_mask_path"] for frame in frames] == [f"fg_masks/{2 * row:06d}.png" for row in made.pixels]
    for frame in frames:
        matte, head = (np.asarray(Image.open(out / frame[key])) for key in ("fg_mask_path", "mask_path"))
        assert matte.mean() == pytest.approx(15 * frame["frame"], abs=4) and head.max() == 255
    assert not (out / "hair").exists()
