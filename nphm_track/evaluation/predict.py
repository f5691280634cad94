"""Heads predicted from single images, kept on disk so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.conventions import MODEL_UNIT, POINTS7_478
from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import pose_points
from nphm_track.heads.landmarks import TOLERANCE, LandmarkCarrier
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.heads.rig import open_rig
from nphm_track.models import resolve, sha256
from nphm_track.rendering.ply import read_ply, write_ply
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.pipeline import models_of, track
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, replacing
from nphm_track.tracking.run_folder import Run
from nphm_track.version import __version__

Kind = Literal["neutral", "posed"]
FloatArray = NDArray[np.float32]
POINTS7 = list(POINTS7_478.values())


@dataclass(frozen=True)
class Mesh7:
    """A head with its own seven points; metres, head space."""

    vertices: FloatArray
    """[V, 3]"""
    faces: NDArray[np.int32]
    """[F, 3]"""
    points7: FloatArray
    """[7, 3] in the order of ``points7.NAMES7``."""


Heads = dict[Kind, Mesh7]


class HeadReader:
    """The heads of runs, with seven points that the head model itself places.

    Where a model does not know all seven (MonoNPHM's anchors are five of them), they are those of the template wrapped
    on the person's head.

    Args:
        head_model: name or path of the runs' head model.
        device: torch device.
    """

    def __init__(self, head_model: str = DEFAULT, device: str = "cpu") -> None:
        self.model: NphmDecoder = load_head_model(head_model, device=device)
        self.digest = sha256(resolve(head_model))
        self.places_all = set(POINTS7) <= set(known_landmarks(self.model))

    def of(self, run: Run, row: int, kinds: Sequence[Kind] = ("neutral", "posed")) -> Heads:
        """Heads of a row of a run's track. Raises InputError when it has none, or the run is of another head model."""
        track = run.track
        name = str(run.info.options.get("head_model", DEFAULT))
        if run.info.models.get(name, self.digest) != self.digest:
            raise InputError(f"{run.path} was made with another head model than the one installed")
        if track.status[row] == Status.LOST:
            raise InputError(f"frame {track.frame[row]} of {run.path} has no head")
        z_id = torch.from_numpy(track.z_id).to(self.model.mean_anchors.device)
        heads: Heads = {}
        if "neutral" in kinds:
            heads["neutral"] = Mesh7(*run.canonical(), self._neutral7(z_id))
        if "posed" in kinds:
            z_ex = torch.from_numpy(track.z_ex[row : row + 1]).to(z_id)
            heads["posed"] = Mesh7(*run.mesh(row), self._posed7(z_id, z_ex))
        return heads

    def mean(self) -> Heads:
        """The mean head, which stands in where nothing could be predicted."""
        z_id = self.model.mean_identity
        mesh = extract_canonical(self.model, z_id)
        head = Mesh7(mesh.vertices, mesh.faces, self._neutral7(z_id))
        return {"neutral": head, "posed": head}

    @torch.no_grad()  # not inference mode: the template is wrapped along gradients
    def _neutral7(self, z_id: torch.Tensor) -> FloatArray:
        if self.places_all:
            return (self.model.landmarks(z_id)[POINTS7] * MODEL_UNIT).cpu().numpy()
        rig = open_rig(self.model, z_id.cpu().numpy())
        return np.asarray(rig.template.landmarks(rig.neutral)[POINTS7], np.float32)

    @torch.no_grad()
    def _posed7(self, z_id: torch.Tensor, z_ex: torch.Tensor) -> FloatArray:
        """Of an expression z_ex [1, D_ex]."""
        if self.places_all:
            return LandmarkCarrier(self.model, z_id, POINTS7)(z_ex)[0].cpu().numpy()
        canonical = torch.from_numpy(self._neutral7(z_id) / MODEL_UNIT).to(z_id)
        posed = pose_points(self.model, canonical[None], z_id[None], z_ex, tolerance=TOLERANCE)
        return (posed.points[0] * MODEL_UNIT).cpu().numpy()


class ImagePredictor:
    """One image in, heads out: the tracker on a clip of one frame. ``models`` maps names to SHA-256."""

    def __init__(self, options: TrackOptions) -> None:
        self.options = TrackOptions.build(options, overlay=False)
        self.reader = HeadReader(self.options.head, options.device)
        self.models = {name: sha256(resolve(name)) for name in models_of(self.options)}
        self.mean = self.reader.mean

    def __call__(self, image: Path) -> Heads:
        """Raises NoFaceError or InputError when the image shows no face or cannot be read."""
        with TemporaryDirectory(prefix="nphm-track-") as folder:
            run = track(image, Path(folder) / "run", options=self.options)
            return self.reader.of(run, 0)


class CodePredictor:
    """One image in, its expression code [D_ex] out. ``models`` maps names to SHA-256."""

    def __init__(self, options: TrackOptions) -> None:
        self.options = TrackOptions.build(options, overlay=False, meshes=False)
        self.models = {name: sha256(resolve(name)) for name in models_of(self.options)}

    def __call__(self, image: Path) -> FloatArray:
        """Raises NoFaceError or InputError when the image shows no face or cannot be read."""
        with TemporaryDirectory(prefix="nphm-track-") as folder:
            run = track(image, Path(folder) / "run", options=self.options)
            return run.track.z_ex[0]


@dataclass(frozen=True)
class Item:
    """An image of a data set and where its predictions go."""

    key: str
    image: Path
    files: Mapping[Kind, tuple[Path, Path]]
    """Kind to the files of the mesh (.ply) and of its points [7, 3] (.npy)."""


class PredictionFolder:
    """Predictions of a data set.

    An image without a face gets the model's mean head, so that protocols that demand a prediction for every image get
    one; ``failures`` says which and why. ``predictions.json`` keeps that, and what the predictions were made with.
    """

    def __init__(self, path: Path, predictor: ImagePredictor, **made_of: Any) -> None:
        self.path, self.predictor = path, predictor
        self._file = path / "predictions.json"
        self.made = {"version": __version__, "models": predictor.models, **_settings(predictor.options), **made_of}
        self.failures: dict[str, str] = {}
        if self._file.exists():
            self._go_on()
        elif path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} is not empty and no earlier evaluation; choose another with --out")

    def fill(self, items: Sequence[Item], progress: Progress) -> None:
        """Predict what is missing. Raises InputError when no image at all could be predicted."""
        missing = [item for item in items if not all(p.exists() for _, p in item.files.values())]
        progress.stage("images", len(items))
        progress.advance(len(items) - len(missing))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._save()
            for item in missing:
                self._predict(item)
                progress.advance()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from None
        if self.failures and len(self.failures) == len(items):
            raise InputError(f"no image could be predicted; the first: {next(iter(self.failures.values()))}")

    def _predict(self, item: Item) -> None:
        self.failures.pop(item.key, None)
        try:
            heads = self.predictor(item.image)
        except (NoFaceError, InputError) as error:
            self.failures[item.key] = str(error)
            self._save()  # before the mean head is there, or it would pass for a prediction
            heads = self.predictor.mean()
        for kind, files in item.files.items():
            write_head(files, heads[kind])

    def _go_on(self) -> None:
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            made, self.failures = stored["made"], dict(stored["failures"])
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputError(f"{self._file} is damaged; choose another folder with --out") from None
        changed = sorted(key for key in made.keys() | self.made.keys() if made.get(key) != self.made.get(key))
        if changed:
            raise OutputError(
                f"{self.path} holds predictions with other {', '.join(changed)}; choose another with --out"
            )

    def _save(self) -> None:
        with replacing(self._file) as partial:
            partial.write_text(json.dumps({"made": self.made, "failures": self.failures}, indent=1), encoding="utf-8")


def _settings(options: TrackOptions) -> dict[str, Any]:
    """The options that were chosen, as JSON values; where the work is done does not matter."""
    return {"options": options.model_dump(mode="json", exclude_unset=True, exclude={"device", "overlay"})}


def write_head(files: tuple[Path, Path], head: Mesh7) -> None:
    """Write mesh (.ply) and points (.npy, float64 [7, 3]), the points last: where they are, both are."""
    mesh, points = files
    mesh.parent.mkdir(parents=True, exist_ok=True)
    write_ply(mesh, head.vertices, head.faces)
    with replacing(points) as partial, open(partial, "wb") as file:
        np.save(file, head.points7.astype(np.float64))


def read_head(files: tuple[Path, Path]) -> Mesh7:
    """Raises InputError when one of the files is missing or damaged."""
    mesh, points = files
    try:
        points7 = np.load(points, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{points} is no prediction of this program ({error})") from None
    return Mesh7(*read_ply(mesh), points7)
