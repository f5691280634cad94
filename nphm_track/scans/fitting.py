"""From a scan file to a registered head on disk, and from a folder of scans to a registration set."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track._runtime import usable_device
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, NphmTrackError, OutputError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.files.reading import read_json
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.heads.registration import FACE_MARGIN, Registration, in_head, mean_landmarks, register
from nphm_track.models import resolve, sha256
from nphm_track.rendering.ply import write_ply
from nphm_track.rendering.surface import Surface
from nphm_track.scans.landmarks import ScanLandmarks, detect_landmarks, read_landmarks
from nphm_track.scans.parametric import ParametricScan, fit_model
from nphm_track.scans.reading import SUFFIXES, ScanGeometry, read_scan
from nphm_track.tracking.progress import LineProgress, Progress

CODES, MESH, ERROR, SUMMARY, INDEX = "codes.npz", "mesh.ply", "error.ply", "summary.json", "registrations.json"
UNITS = {"m": 1.0, "dm": 10.0, "cm": 100.0, "mm": 1000.0}
UNIT_TOLERANCE = 1.25
"""A scan whose head is that much larger or smaller than the fitted one still counts as made in that unit."""
RED = 3.0
"""Millimetres shown in red in the error map; what is further than ``FAR`` is no part of the head and grey."""
FAR = 10.0
FEWEST_FOR_OUTLIERS = 8


@dataclass(frozen=True)
class FitOptions:
    """How scans are fitted.

    Attributes:
        head_model: name or path of a head model.
        landmarks: file of known landmarks (``scans.landmarks.read_landmarks``), None to detect them.
        steps: of the optimisation.
        device: torch device.
        to: "flame" or "gnm", to fit such a model too; None not to.
        flame_model, gnm_model: the user's file of that model.
    """

    head_model: str = DEFAULT
    landmarks: Path | None = None
    steps: int = 300
    device: str = "cpu"
    to: str | None = None
    flame_model: Path | None = None
    gnm_model: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"option steps: must be at least 1, not {self.steps}")
        if self.to not in (None, "flame", "gnm"):
            raise InputError(f"unknown model '{self.to}'; choose from flame, gnm")
        for name, file in (("flame", self.flame_model), ("gnm", self.gnm_model)):
            if (self.to == name) != (file is not None):
                raise InputError(f"--to {name} and --{name}-model FILE go together")

    @property
    def model_file(self) -> Path | None:
        """The file of the model that is fitted too."""
        return self.flame_model or self.gnm_model


@dataclass(frozen=True)
class FittedScan:
    """A scan and the head fitted to it.

    Attributes:
        registration: codes and pose.
        vertices: [V, 3] of the head, metres, head space, in its expression; faces: [F, 3].
        distance: [N] of the scan's vertices from that surface, mm; NaN away from the head.
        face_distance: [M] of samples of the scan's face, mm.
        unit: the scan's unit as far as the head's size tells it, or "unknown"; distances are then on the model's scale.
    """

    registration: Registration
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    distance: NDArray[np.float64]
    face_distance: NDArray[np.float64]
    unit: str


class ScanFitter:
    """Head model and landmark network, loaded once for any number of scans."""

    def __init__(self, options: FitOptions) -> None:
        self.options = options
        self.device = usable_device(options.device)
        self.model: NphmDecoder = load_head_model(options.head_model, device=self.device)
        self.model_sha256 = sha256(resolve(options.head_model))
        self._landmarker: FaceLandmarker | None = None

    def landmarks(self, scan: ScanGeometry, file: Path | None = None) -> ScanLandmarks:
        """Landmarks from ``file`` or, without one, found on renderings."""
        if file is not None:
            return read_landmarks(file)
        self._landmarker = self._landmarker or FaceLandmarker.from_pretrained(device=self.device)
        return detect_landmarks(scan, mean_landmarks(self.model), self._landmarker)

    def fit(self, scan: ScanGeometry, landmarks: ScanLandmarks, progress: Progress | None = None) -> FittedScan:
        """Register the model to a scan and measure how well it fits."""
        tell = progress or LineProgress()
        tell.stage("fit", self.options.steps)
        points, normals = scan.surface_points()
        result = register(
            self.model,
            points,
            normals,
            landmarks.index,
            landmarks.points,
            steps=self.options.steps,
            advance=tell.advance,
        )
        vertices, faces = self.mesh(result)
        surface = Surface(vertices, faces)
        unit = unit_of(result.pose.scale)
        to_mm = _to_mm(result.pose.scale, unit)
        head = result.pose.inverse(scan.vertices)
        inside = in_head(head)
        distance = np.full(len(head), np.nan)
        distance[inside] = surface.closest(head[inside]).distance * to_mm
        face = self._face_points(result, points)
        return FittedScan(result, vertices, faces, distance, surface.closest(face).distance * to_mm, unit)

    def mesh(self, result: Registration) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Vertices [V, 3] (metres, head space) and faces of the fitted head in its expression."""
        z_id, z_ex = self._codes(result)
        canonical = extract_canonical(self.model, z_id)
        posed = MeshCarrier(self.model, canonical, z_id)(z_ex).posed.points
        return (posed * MODEL_UNIT).cpu().numpy(), canonical.faces

    def head_landmarks(self, result: Registration, index: list[int]) -> NDArray[np.float32]:
        """Landmarks [L, 3] of the fitted head in its expression, metres, head space."""
        z_id, z_ex = self._codes(result)
        return LandmarkCarrier(self.model, z_id, index)(z_ex[None])[0].cpu().numpy()

    def _codes(self, result: Registration) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(result.z_id).to(self.device), torch.from_numpy(result.z_ex).to(self.device)

    def _face_points(self, result: Registration, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scan points (metres, head space) on the face: near its landmarks."""
        from nphm_track.kd_tree import kd_tree

        marks = self.head_landmarks(result, list(known_landmarks(self.model)))
        head = result.pose.inverse(points)
        near = kd_tree(marks).query(head)[0] * 1e3 < FACE_MARGIN
        return np.asarray(head[near])


def unit_of(scale: float) -> str:
    """The unit a head of ``scale`` times its size in metres was measured in, or "unknown"."""
    for name, factor in UNITS.items():
        if 1 / UNIT_TOLERANCE < scale / factor < UNIT_TOLERANCE:
            return name
    return "unknown"


def _to_mm(scale: float, unit: str) -> float:
    """Millimetres of the scan, of the model where its unit is not known, in a metre of the model."""
    return 1e3 * (scale / UNITS[unit] if unit in UNITS else 1.0)


def fit_scan(
    scan: str | Path,
    out: str | Path,
    *,
    options: FitOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit a head to one scan. What the same scan, model and options gave is not done again.

    Args:
        scan: a mesh or point cloud, in any unit and orientation.
        out: folder for codes.npz, mesh.ply (the head in the scan's coordinates and unit), error.ply (the scan coloured
            by its distance, blue 0 to red 3 mm, grey off the head) and, last, summary.json.
        options: head model, landmarks, steps. With ``to``, out gets that model's parameters and its head in the scan's
            coordinates too, flame.npz and flame.ply.
        overwrite: replace a fit with another model or other options.
        progress: told of steps.

    Returns:
        What summary.json holds.

    Raises:
        InputError: the file is no scan. NoFaceError: no face is found on it.
        OutputError: ``out`` cannot be written or holds the fit of another scan.
    """
    options, scan, out = options or FitOptions(), Path(scan), Path(out)
    fitter = ScanFitter(options)
    return _finished(fitter, scan, out, options.landmarks, overwrite) or _fit_to(
        fitter, scan, out, options.landmarks, progress or LineProgress()
    )


def fit_folder(
    folder: str | Path,
    out: str | Path,
    *,
    options: FitOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit every scan of a folder. One that fails is noted and does not stop the others; finished ones are kept.

    Args:
        folder: scans; landmarks may lie beside one as NAME.landmarks.json (or .npy, .txt).
        out: a subfolder for each, and the index registrations.json.
        options, overwrite, progress: as for ``fit_scan``.

    Returns:
        The index. Scans whose code norms stand apart from the rest are marked as outliers in it.

    Raises:
        OutputError: as ``fit_scan``, before any scan is fitted.
    """
    folder, out, tell = Path(folder), Path(out), progress or LineProgress()
    options = options or FitOptions()
    if options.landmarks is not None:
        raise InputError("option landmarks: is for one scan; in a folder, NAME.landmarks.json beside a scan is used")
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"no scans ({', '.join(SUFFIXES)}) in {folder}")
    fitter = ScanFitter(options)
    stems = [file.stem for file in files]
    names = [file.stem if stems.count(file.stem) == 1 else file.name.replace(".", "_") for file in files]
    before = [
        _finished(fitter, file, out / name, _sidecar(file), overwrite) for file, name in zip(files, names, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for number, (file, name, finished) in enumerate(zip(files, names, before, strict=True), 1):
        tell.note(f"{file.name} ({number} of {len(files)})")
        try:
            summary = finished or _fit_to(fitter, file, out / name, _sidecar(file), tell)
            rows.append({"name": name, "state": "done", **summary})
        except OutputError:
            raise
        except Exception as error:  # also what nobody thought of: the others are to be fitted
            message = str(error) if isinstance(error, NphmTrackError) else f"{type(error).__name__}: {error}"
            tell.note(f"{file.name}: {message}")
            rows.append({"name": name, "state": "failed", "scan": file.name, "message": message})
        done = [row for row in rows if row["state"] == "done"]
        apart = norm_outliers(np.array([[row["norm_id"], row["norm_ex"]] for row in done]).reshape(-1, 2))
        for row, outlier in zip(done, apart, strict=True):
            row["outlier"] = bool(outlier)
        index = {"head_model": options.head_model, "head_model_sha256": fitter.model_sha256, "scans": rows}
        _write(out / INDEX, json.dumps(index, indent=1).encode())
    return index


def norm_outliers(norms: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows of [N, C] code norms stand apart: beyond an empty bin of a column's histogram, seen from its mode.

    Bins are Freedman and Diaconis'. Fewer than ``FEWEST_FOR_OUTLIERS`` rows have no distribution to stand apart from.
    """
    apart = np.zeros(len(norms), bool)
    if len(norms) < FEWEST_FOR_OUTLIERS:
        return apart
    for column in norms.T:
        spread = float(np.subtract(*np.quantile(column, [0.75, 0.25])))
        width = max(2 * spread * len(column) ** (-1 / 3), 1e-3 * float(np.median(column)), 1e-9)
        bins = np.floor((column - column.min()) / width).astype(np.int64)
        names, counts = np.unique(bins, return_counts=True)
        mode = int(np.argmax(counts))
        gaps = np.flatnonzero(np.diff(names) > 1)
        low = names[gaps[gaps < mode].max() + 1] if (gaps < mode).any() else names[0]
        high = names[gaps[gaps >= mode].min()] if (gaps >= mode).any() else names[-1]
        apart |= (bins < low) | (bins > high)
    return apart


def _fit_to(fitter: ScanFitter, file: Path, out: Path, landmarks: Path | None, progress: Progress) -> dict[str, Any]:
    scan = read_scan(file)
    known = fitter.landmarks(scan, landmarks)
    fitted = fitter.fit(scan, known, progress)
    result, d = fitted.registration, fitted.face_distance
    options = {
        k: str(v) if isinstance(v, Path) else v for k, v in asdict(replace(fitter.options, landmarks=landmarks)).items()
    }
    summary = {
        "scan": file.name,
        "scan_sha256": sha256(file),
        "head_model_sha256": fitter.model_sha256,
        "options": options,
        "landmarks": "given" if landmarks else "detected",
        "landmarks_sha256": _landmarks_sha256(landmarks),
        "n_landmarks": len(known.index),
        "median_mm": round(float(np.median(d)), 4),
        "mean_mm": round(float(d.mean()), 4),
        "p90_mm": round(float(np.quantile(d, 0.9)), 4),
        "explained": round(result.trusted, 4),
        "scale": result.pose.scale,
        "unit": fitted.unit,
        "norm_id": round(float(np.linalg.norm(result.z_id)), 5),
        "norm_ex": round(float(np.linalg.norm(result.z_ex)), 5),
        "identity_rms": round(float(np.sqrt((result.identity**2).mean())), 4),
        "identity_rest": round(result.identity_rest, 4),
    }
    other = _fit_other(fitter, fitted, scan) if fitter.options.to else None
    if other is not None:
        summary[str(fitter.options.to)] = other[1]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out} ({error.strerror})") from None
    _write(out / CODES, _codes_npz(fitter.model, result, known))
    write_ply(out / MESH, result.pose(fitted.vertices), fitted.faces)
    _write(out / ERROR, error_ply(scan, fitted.distance))
    if other is not None:
        _write(out / f"{fitter.options.to}.npz", _npz(**other[0].values))
        write_ply(out / f"{fitter.options.to}.ply", other[0].vertices, other[0].faces)
    _write(out / SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


def _fit_other(fitter: ScanFitter, fitted: FittedScan, scan: ScanGeometry) -> tuple[ParametricScan, dict[str, Any]]:
    """The user's model on a fitted scan, and what the summary says of it."""
    file = fitter.options.model_file
    assert file is not None, "FitOptions asks for it"
    other = fit_model(file, fitter.options.to == "flame", fitter.model, fitted.registration)
    pose = fitted.registration.pose
    face = fitter._face_points(fitted.registration, scan.surface_points()[0])
    distance = Surface(pose.inverse(other.vertices), other.faces).closest(face).distance * _to_mm(
        pose.scale, fitted.unit
    )
    told = {"residual_mm": round(other.residual_mm, 4), "median_mm": round(float(np.median(distance)), 4)}
    return other, {"model_sha256": sha256(file), **told}


def _sidecar(file: Path) -> Path | None:
    """Landmarks that lie beside a scan."""
    beside = (file.with_suffix(f".landmarks.{suffix}") for suffix in ("json", "npy", "txt"))
    return next((path for path in beside if path.is_file()), None)


def _finished(
    fitter: ScanFitter, file: Path, out: Path, landmarks: Path | None, overwrite: bool
) -> dict[str, Any] | None:
    """The summary of a scan that was fitted before with the same model and options; None when there is none to keep.

    Raises OutputError when ``out`` holds the fit of another scan or, unless ``overwrite``, one made otherwise.
    """
    try:
        summary: dict[str, Any] = read_json(out / SUMMARY)
        fitted, same_scan = summary["scan"], summary["scan_sha256"] == sha256(file)
        same = {
            "head-model": summary["head_model_sha256"] == fitter.model_sha256,
            "landmarks": summary.get("landmarks_sha256") == _landmarks_sha256(landmarks),
            "steps": summary["options"]["steps"] == fitter.options.steps,
            "to": _model_sha256(summary) == _model_sha256_of(fitter.options),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same_scan:
        raise OutputError(f"{out} holds the fit of another scan ({fitted}); choose another with -o")
    if all(same.values()):
        return summary
    if overwrite:
        return None
    changed = ", ".join(name for name, kept in same.items() if not kept)
    raise OutputError(f"{out} holds a fit with other options ({changed}); pass --overwrite to replace it")


def _model_sha256(summary: dict[str, Any]) -> str | None:
    """Of the user's model that a summary tells of."""
    return next((summary[name]["model_sha256"] for name in ("flame", "gnm") if name in summary), None)


def _model_sha256_of(options: FitOptions) -> str | None:
    return sha256(options.model_file) if options.model_file else None


def _landmarks_sha256(file: Path | None) -> str | None:
    return None if file is None else sha256(file)


def _codes_npz(model: NphmDecoder, result: Registration, landmarks: ScanLandmarks) -> bytes:
    """z_id, z_ex; scale, R, t (x_scan = scale R x_head + t, x_head in metres); the weights behind the codes."""
    return _npz(
        z_id=result.z_id,
        z_ex=result.z_ex,
        scale=np.float64(result.pose.scale),
        R=result.pose.R,
        t=result.pose.t,
        identity=result.identity,
        expression=result.expression,
        expression_names=np.array(model.config.expression_names),
        identity_rest=np.float32(result.identity_rest),
        landmark_index=landmarks.index,
        landmarks=landmarks.points,
    )


def _npz(**values: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def error_ply(scan: ScanGeometry, distance: NDArray[np.float64]) -> bytes:
    """The scan as PLY, coloured by ``distance`` [V] (mm): blue 0 to red ``RED``, grey where there is none."""
    import trimesh

    s = np.clip(np.nan_to_num(distance) / RED, 0, 1)[:, None]
    rgb = np.clip(1.5 - np.abs(4 * s - [3, 2, 1]), 0, 1)
    rgb[~(distance <= FAR)] = 0.5
    colours = np.concatenate([rgb * 255, np.full((len(rgb), 1), 255)], 1).astype(np.uint8)
    geometry: Any = trimesh.PointCloud(scan.vertices, colours)
    if scan.faces is not None:
        geometry = trimesh.Trimesh(scan.vertices, scan.faces, vertex_colors=colours, process=False)
    data: bytes = geometry.export(file_type="ply")
    return data


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})") from None
