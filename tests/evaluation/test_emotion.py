"""Emotion probing on made-up data in AffectNet's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.evaluation import emotion
from nphm_track.evaluation.emotion import agreement, evaluate_emotion, read_labels
from nphm_track.tracking.progress import LineProgress

MODELS = {"some-model": "ab" * 32}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emotion, "WIDTH", 64)
    monkeypatch.setattr(emotion, "BATCH", 16)


@pytest.fixture(scope="module")
def affectnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two emotions, one labelled 'none' (8) as in AffectNet's first release, labels as numbers in text."""
    folder, rng = tmp_path_factory.mktemp("affectnet"), np.random.default_rng(0)
    for split, count in (("train_set", 60), ("val_set", 20)):
        for name in ("images", "annotations"):
            (folder / split / name).mkdir(parents=True)
        for n in range(count):
            label = 8 if n == 7 else 1 + n % 2
            (folder / split / "images" / f"{n}.jpg").write_bytes(b"")
            affect = (-2.0, -2.0) if label == 8 else (0.5 if label == 1 else -0.5, rng.uniform(-1, 1))
            for kind, value in (("exp", str(label)), ("val", str(affect[0])), ("aro", str(affect[1]))):
                np.save(folder / split / "annotations" / f"{n}_{kind}.npy", np.array(value))
    return folder


class Known:
    """Codes that tell both emotions apart; no face in image 2."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, image: Path) -> np.ndarray:
        self.asked.append(image.stem)
        if image.stem == "2":
            raise NoFaceError("no face")
        rng = np.random.default_rng([int(image.stem), len(image.parts[-3])])
        return np.r_[int(image.stem) % 2, rng.normal(size=4)].astype(np.float32)


def run(folder: Path, out: Path, encoder: Known, models: dict[str, str] = MODELS) -> dict:
    return evaluate_emotion(folder, out, encoder, LineProgress(), command="nphm-track", models=models)


def test_labels_that_are_no_emotion_are_left_out(affectnet: Path) -> None:
    labels = read_labels(affectnet, "train")
    assert "7" not in labels.names and len(labels.names) == 59 and labels.names[:3] == ["0", "1", "2"]
    assert set(labels.emotion.tolist()) == {1, 2} and labels.affect.shape == (59, 2)
    assert len(read_labels(affectnet, "train", 10).names) == 10


def test_what_codes_know_is_found_and_images_without_a_face_are_wrong(affectnet: Path, tmp_path: Path) -> None:
    facts = run(affectnet, tmp_path, Known())
    assert facts["accuracy"] == pytest.approx(18 / 19)
    assert set(facts["accuracy_by_emotion"]) == {"happy", "sad"} and facts["without_face"] == 1
    assert facts["valence"]["ccc"] > 0.8 and abs(facts["arousal"]["ccc"]) < 0.6
    assert json.loads((tmp_path / "results.json").read_text())["images"] == {"train": 59, "test": 19}
    assert "| happy |" in (tmp_path / "results.md").read_text()


def test_codes_that_know_nothing_guess(affectnet: Path, tmp_path: Path) -> None:
    class Ignorant(Known):
        def __call__(self, image: Path) -> np.ndarray:
            return super().__call__(image)[1:]

    assert run(affectnet, tmp_path, Ignorant())["accuracy"] < 0.8


def test_an_evaluation_goes_on_where_it_stopped(
    affectnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emotion, "SAVE_EVERY", 10)
    encoder = Known()

    class Stops(Known):
        def __call__(self, image: Path) -> np.ndarray:
            if len(self.asked) == 40:
                raise KeyboardInterrupt
            return super().__call__(image)

    with pytest.raises(KeyboardInterrupt):
        run(affectnet, tmp_path, Stops())
    resumed = run(affectnet, tmp_path, encoder)
    assert len(encoder.asked) < 59 + 19 - 30
    assert resumed["accuracy"] == run(affectnet, tmp_path / "whole", Known())["accuracy"]
    with pytest.raises(OutputError, match="made with other models"):
        run(affectnet, tmp_path, encoder, {"some-model": "cd" * 32})


def test_a_folder_that_is_no_affectnet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no AffectNet"):
        read_labels(tmp_path, "train")


def test_agreement() -> None:
    true = np.array([-1.0, 0.5, 1.0, -0.5])
    assert agreement(true, true) == pytest.approx({"pcc": 1, "ccc": 1, "rmse": 0, "sagr": 1})
    shifted = agreement(true + 0.2, true)
    assert shifted["pcc"] == pytest.approx(1) and shifted["ccc"] < 1 and shifted["rmse"] == pytest.approx(0.2)
