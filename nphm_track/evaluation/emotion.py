"""What expression codes know of emotion: a small network reads AffectNet's labels from them (EMOCA's protocol, which
the Pix2NPHM paper follows in its table 4).

Layout of the data set, as it is distributed:

    train_set/images/<n>.jpg      val_set/images/<n>.jpg
    train_set/annotations/<n>_exp.npy, <n>_val.npy, <n>_aro.npy      val_set/annotations/...

``exp`` is 0 to 7 (neutral, happy, sad, surprise, fear, disgust, anger, contempt), ``val`` and ``aro`` are -1 to 1, and
-2 or less where there is none. Codes of each image alone are kept in ``codes.npz``, so that an evaluation that was
stopped goes on. Images without a face are left out of the training and counted as wrong in the test.

The network: four hidden layers with batch norm, leaky ReLU and dropout, on codes that are scaled by the training's mean
and spread; cross-entropy with weights for rare classes, and the squared error of valence and arousal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.evaluation.results import provenance, provenance_text, table, write_results
from nphm_track.files.reading import Arrays, read_npy, reading
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import replacing

EMOTIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
SPLITS = {"train": "train_set", "test": "val_set"}
CODES = "codes.npz"
SAVE_EVERY = 50
"""Images between two writings of the codes."""
WIDTH, LAYERS, DROPOUT, EPOCHS, BATCH, RATE = 512, 4, 0.2, 30, 256, 1e-3
Array = NDArray[np.float32]
Encoder = Callable[[Path], Array]
"""Image to expression code [D]; raises NoFaceError or InputError."""


@dataclass(frozen=True)
class Labels:
    """Of N images: file names without ending, emotion [N], valence and arousal [N, 2]."""

    names: list[str]
    emotion: NDArray[np.int64]
    affect: Array


def read_labels(folder: Path, split: str, limit: int | None = None) -> Labels:
    """Labels of a split of the data set; those that are no emotion are left out. ``limit`` takes the first so many.

    Raises InputError when the folder is no AffectNet.
    """
    place = folder / SPLITS[split] / "annotations"
    files = sorted(place.glob("*_exp.npy"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise InputError(f"{folder} is no AffectNet: no *_exp.npy in {place}")
    names: list[str] = []
    emotion, affect = [], []
    for file in files:
        if limit is not None and len(names) == limit:
            break
        name = file.name.removesuffix("_exp.npy")
        label = int(_number(file))
        values = [_number(place / f"{name}_{kind}.npy") for kind in ("val", "aro")]
        if 0 <= label < len(EMOTIONS) and min(values) >= -1:
            names.append(name)
            emotion.append(label)
            affect.append(values)
    return Labels(names, np.array(emotion, np.int64), np.array(affect, np.float32).reshape(-1, 2))


def _number(file: Path) -> float:
    with reading(file, "a label"):
        return float(read_npy(file).item())  # numbers, also as text


def evaluate_emotion(
    dataset: Path, out: Path, encoder: Encoder, progress: Progress, *, command: str, models: dict[str, str],
    train_images: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Codes of both splits, the network, and its figures on the test split; written to ``out``.

    Raises InputError when the folder is no AffectNet, or hardly an image shows a face.
    """
    labels = {"train": read_labels(dataset, "train", train_images), "test": read_labels(dataset, "test")}
    store = _Store(out / CODES, models)
    codes = {}
    for split, own in labels.items():
        progress.stage(f"codes of {split}", len(own.names))
        images = dataset / SPLITS[split] / "images"
        codes[split] = store.codes(split, [(name, _image(images, name)) for name in own.names], encoder, progress)
    facts = {
        "protocol": "emotion probing on AffectNet",
        **provenance(command, models),
        "images": {split: len(own.names) for split, own in labels.items()},
        **probe(codes["train"], labels["train"], codes["test"], labels["test"]),
    }
    write_results(out, facts, markdown(facts))
    return facts


def _image(folder: Path, name: str) -> Path:
    found = [file for ending in ("jpg", "png", "jpeg", "JPG") if (file := folder / f"{name}.{ending}").is_file()]
    return found[0] if found else folder / f"{name}.jpg"


class _Store:
    """Codes by split and name on disk; NaN of images without a face."""

    def __init__(self, path: Path, models: dict[str, str]) -> None:
        self.path, self.made = path, "\n".join(f"{name} {digest}" for name, digest in sorted(models.items()))
        self.known: dict[str, Array] = {}
        if path.exists():
            with reading(path, "codes of an earlier evaluation", OutputError), Arrays(path) as file:
                if str(file["made"].item()) != self.made:
                    raise OutputError(f"{path} was made with other models; choose another folder with --out")
                self.known = dict(zip((str(key) for key in file["keys"]), file["codes"], strict=True))

    def codes(self, split: str, images: Sequence[tuple[str, Path]], encoder: Encoder, progress: Progress) -> Array:
        """[N, D] of images, by name."""
        fresh, without = 0, []
        for name, image in images:
            key = f"{split}/{name}"
            if key not in self.known:
                try:
                    self.known[key] = np.asarray(encoder(image), np.float32)
                except (NoFaceError, InputError):
                    without.append(key)
                fresh += 1
                if fresh % SAVE_EVERY == 0:
                    self._save()
            progress.advance()
        if not self.known:
            raise InputError(f"no image of {images[0][1].parent} shows a face")
        size = len(next(iter(self.known.values())))
        self.known |= {key: np.full(size, np.nan, np.float32) for key in without}
        if fresh:
            self._save()
        return np.stack([self.known[f"{split}/{name}"] for name, _ in images])

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial, open(partial, "wb") as file:
            keys = np.array(list(self.known))
            np.savez(file, made=np.array(self.made), keys=keys, codes=np.array(list(self.known.values())))


def probe(train: Array, train_labels: Labels, test: Array, test_labels: Labels, seed: int = 0) -> dict[str, Any]:
    """Train the network on codes [N, D] and measure it on others."""
    seen = np.isfinite(train).all(1)
    if seen.sum() < 2 or len(set(train_labels.emotion[seen].tolist())) < 2:
        raise InputError("too few training images show a face to learn emotions from")
    mean, spread = train[seen].mean(0), train[seen].std(0) + 1e-6

    def scaled(codes: Array) -> Tensor:
        return torch.from_numpy((codes - mean) / spread)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _train(scaled(train[seen]), train_labels.emotion[seen], train_labels.affect[seen])
    there = np.isfinite(test).all(1)
    with torch.inference_mode():
        out = network(scaled(test[there])).numpy()
    found = np.full(len(test), -1)
    found[there] = out[:, : len(EMOTIONS)].argmax(1)
    right = found == test_labels.emotion
    affect = {
        name: agreement(out[:, len(EMOTIONS) + k], test_labels.affect[there, k])
        for k, name in enumerate(("valence", "arousal"))
    }
    present = sorted(set(test_labels.emotion.tolist()))
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_emotion": {EMOTIONS[e]: float(right[test_labels.emotion == e].mean()) for e in present},
        **affect,
        "without_face": int((~there).sum()),
    }


def _train(codes: Tensor, emotion: NDArray[np.int64], affect: Array) -> nn.Module:
    widths = [codes.shape[1], *[WIDTH] * LAYERS]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2), nn.Dropout(DROPOUT)]
    network = nn.Sequential(*layers, nn.Linear(WIDTH, len(EMOTIONS) + 2))
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    target, values = torch.from_numpy(emotion), torch.from_numpy(affect)
    count = torch.bincount(target, minlength=len(EMOTIONS)).clamp_min(1)
    weight = len(target) / (len(EMOTIONS) * count)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(codes)).split(BATCH):
            if len(batch) < 2:  # batch norm needs two
                continue
            out = network(codes[batch])
            loss = F.cross_entropy(out[:, : len(EMOTIONS)], target[batch], weight)
            loss = loss + F.mse_loss(out[:, len(EMOTIONS) :], values[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return network.eval()


def agreement(found: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
    """Of values [N]: Pearson's and Lin's concordance correlation, root mean square error, share of the same sign."""
    if len(found) < 2:
        return {"pcc": float("nan"), "ccc": float("nan"), "rmse": float("nan"), "sagr": float("nan")}
    a, b = np.asarray(found, np.float64), np.asarray(true, np.float64)
    shared = ((a - a.mean()) * (b - b.mean())).mean()
    return {
        "pcc": float(shared / max(a.std() * b.std(), 1e-12)),
        "ccc": float(2 * shared / max(a.var() + b.var() + (a.mean() - b.mean()) ** 2, 1e-12)),
        "rmse": float(np.sqrt(((a - b) ** 2).mean())),
        "sagr": float((np.sign(a) == np.sign(b)).mean()),
    }


def markdown(facts: dict[str, Any]) -> str:
    """``results.md``."""
    each = table(["emotion", "accuracy"], [["all", facts["accuracy"]], *facts["accuracy_by_emotion"].items()])
    rows = [[name, *(facts[name][key] for key in ("pcc", "ccc", "rmse", "sagr"))] for name in ("valence", "arousal")]
    counted = f"{facts['images']['train']} images to learn from, {facts['images']['test']} to measure; "
    counted += f"{facts['without_face']} of these without a face count as wrong."
    affect = table(["", "PCC", "CCC", "RMSE", "SAGR"], rows)
    return "\n\n".join(["# Emotion from expression codes (AffectNet)", provenance_text(facts), counted, each, affect])
