"""Clips, scanned people, and what benchmarks ask of tracked heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track.conventions import MODEL_UNIT, POINTS7_478
from nphm_track.errors import InputError
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.mesh import extract_canonical
from nphm_track.tracking.records import Status, Track

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
Array = NDArray[np.float64]


def find_clips(folder: Path, only: list[str] | None = None) -> list[Path]:
    """The folder's clips by name. Raises InputError when there is none."""
    found = [p for p in folder.glob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.name.startswith(_any(only))]
    if not found:
        raise InputError(f"no clip in {folder}")
    return sorted(found)


def _any(only: list[str] | None) -> tuple[str, ...]:
    return tuple(only or [""])


@dataclass(frozen=True)
class ScanView:
    """A picture of a scan: K (px, pixel centres at 0.5), R and t (scan to camera, OpenCV axes, metres)."""

    name: str
    image: Path
    K: Array
    R: Array
    t: Array

    @property
    def size(self) -> tuple[int, int]:
        with Image.open(self.image) as picture:
            return picture.size

    def write_intrinsics(self, path: Path) -> Path:
        """The camera as ``--intrinsics`` reads it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"K": self.K.tolist(), "size": self.size}), encoding="utf-8")
        return path


@dataclass(frozen=True)
class ScanCase:
    """A scanned face and its pictures. ``person`` is shared by several scans of one; ``kind``: clay, painted, ..."""

    name: str
    person: str
    kind: str
    file: Path
    scan: Scan
    views: list[ScanView]


def scan_cases(folder: Path, only: list[str] | None = None, views: list[str] | None = None) -> list[ScanCase]:
    """The cases of ``folder/cases.json``, of those names and views."""
    stored = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return [_case(folder, name, case, views) for name, case in stored.items() if name.startswith(_any(only))]


def _case(folder: Path, name: str, case: dict[str, Any], only: list[str] | None) -> ScanCase:
    mesh = trimesh.load_mesh(folder / case["gt"], process=False)
    scan = Scan(mesh.vertices, mesh.faces, [case["points7"][n] for n in NAMES7], case["nose_tip"])
    views = []
    for view in case["views"]:
        K = np.array(view["K"], float)
        K[:2, 2] += 0.5  # the cases count pixel centres from 0
        R, t = np.array(view["R"], float), np.array(view["t"], float).ravel()
        if not only or view["id"] in only:
            views.append(ScanView(view["id"], folder / view["img"], K, R, t))
    person = "st" if name.startswith("st_") else name.removesuffix("_painted")
    return ScanCase(name, person, case["views"][0]["kind"], folder / case["gt"], scan, views)


def head_points7(model: NphmDecoder, z_id: NDArray[np.floating], z_ex: NDArray[np.floating]) -> NDArray[np.float32]:
    """A head's own seven points [7, 3], metres, head space."""
    carry = LandmarkCarrier(model, torch.from_numpy(z_id), [POINTS7_478[name] for name in NAMES7])
    return carry(torch.from_numpy(z_ex)[None])[0].numpy()


def mean_head_mm(model: NphmDecoder, scan: Scan) -> float:
    """Median distance of the scan from the head of zero codes: what is known without a look at the person."""
    z_id, z_ex = np.zeros(model.config.identity_dim, np.float32), np.zeros(model.config.expression_dim, np.float32)
    mesh = extract_canonical(model, torch.from_numpy(z_id))
    return scan.error(mesh.vertices, mesh.faces, head_points7(model, z_id, z_ex)).similarity.median


def neutral_landmarks(model: NphmDecoder, track: Track) -> Array:
    """A tracked person's neutral landmarks [478, 3], mm, head space."""
    return np.asarray(model.landmarks(torch.from_numpy(track.z_id)).numpy() * MODEL_UNIT * 1000, np.float64)


def jitter(model: NphmDecoder, track: Track) -> dict[str, float]:
    """RMS second differences over three tracked frames in a row: place (mm), rotation (degrees), landmarks (mm, head
    space). Real motion is in them: compare runs of one clip."""
    ok = track.status == Status.TRACKED
    middle = np.flatnonzero(ok[:-2] & ok[1:-1] & ok[2:]) + 1
    if not len(middle):
        return dict.fromkeys(("jitter_t_mm", "jitter_r_deg", "jitter_landmarks_mm"), np.nan)
    points = np.zeros((len(track), 68, 3))
    carry = LandmarkCarrier(model, torch.from_numpy(track.z_id), tuple(range(0, 476, 7)))
    points[ok] = carry(torch.from_numpy(track.z_ex[ok])).numpy()
    R = np.where(ok[:, None, None], track.R, np.eye(3))
    step = Rotation.from_matrix(R[1:] @ R[:-1].swapaxes(-1, -2)).as_rotvec(degrees=True)
    return {
        "jitter_t_mm": 1e3 * rms(track.t[middle + 1] - 2 * track.t[middle] + track.t[middle - 1]),
        "jitter_r_deg": rms(step[middle] - step[middle - 1]),
        "jitter_landmarks_mm": 1e3 * rms(points[middle + 1] - 2 * points[middle] + points[middle - 1]),
    }


def rms(vectors: NDArray[np.floating]) -> float:
    """Root mean squared length of vectors [..., 3]."""
    return float(np.sqrt((vectors**2).sum(-1).mean()))


def speech(rng: np.random.Generator, names: Sequence[str], times: Array) -> NDArray[np.float32]:
    """Expression weights [T, E] of a talking face: jaw and lips at syllable rate, blinks, slow brows."""
    e = np.zeros((len(times), len(names)), np.float32)

    def wave(rate: float) -> Array:
        phases = rng.uniform(0, 2 * np.pi, 3)
        parts = [np.sin(2 * np.pi * rate * f * times + p) for f, p in zip((1, 1.43, 0.61), phases, strict=True)]
        return np.mean(parts, 0)

    def put(name: str, values: Array) -> None:
        e[:, [i for i, n in enumerate(names) if n.startswith(name)]] = np.clip(values, 0, 1)[:, None]

    put("jawOpen", 0.22 + 0.35 * wave(3.5))
    put("mouthFunnel", 0.1 + 0.35 * wave(2.3))
    put("mouthSmile", 0.2 + 0.3 * wave(0.4))
    put("mouthUpperUp", 0.1 + 0.2 * wave(2.9))
    put("browInnerUp", 0.2 + 0.4 * wave(0.5))
    put("browDown", 0.2 * wave(0.3))
    blinks = np.arange(0.5, max(times[-1], 0.51), 1.3)
    put("eyeBlink", 0.9 * np.exp(-(((times[:, None] - blinks) / 0.06) ** 2)).max(1))
    return e
