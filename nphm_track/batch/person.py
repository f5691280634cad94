"""One person's identity, refined once on the best key frames of all takes, from the merged one on.

When a take is observed, some of its frames are kept beside its votes (``key_views``), so that this can be done, and
done again, without the takes' observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track._runtime import flushed_denormals, usable_device
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import CHIN, NOSE_TIP, OUTER_EYE_CORNERS
from nphm_track.faces.follower import Choice, FaceFollower
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.files.reading import Arrays, reading
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.refine.clip import Clip, PersonViews
from nphm_track.refine.codes import State
from nphm_track.refine.key_frames import sure_and_still
from nphm_track.refine.schedule import Refiner
from nphm_track.refine.solver import Evidence
from nphm_track.refine.source import ClipMaps
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.regressor.lookup import Regressor
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.tracking.clip import given_camera, open_input
from nphm_track.tracking.code_fit import fitted_codes, mean_camera
from nphm_track.tracking.fit import fit_clip, predicted_codes
from nphm_track.tracking.identity import Identity
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import observation_dtype, spread_rows
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.planning import GEOMETRY, has_regressor
from nphm_track.tracking.progress import NullProgress, Progress

VIEWS = 60
"""Frames of a take among which key frames are looked for; they know its focal length, too."""
UNKNOWN_SPEED = 1e9
"""Of a frame that has no neighbour."""
BETWEEN_TAKES = 1e6
"""Seconds: frames of two takes are no neighbours in time."""
FOCAL = 1000.0
"""Pixels, of the one camera that all takes are seen through."""


@dataclass(frozen=True)
class Take:
    """A take as the person's refinement needs it: its name, clip, file of votes and options."""

    name: str
    input: Path
    votes: Path
    options: TrackOptions


def key_views(log: NDArray[Any]) -> NDArray[Any]:
    """At most ``VIEWS`` records [V] of a log of observations, with their ``row`` in it: sure, still, evenly spread."""
    seen, times, shots, confidence = (column(log, name) for name in ("seen", "time", "shot", "confidence"))
    confidence = np.where(seen, confidence, 0)
    sure, still = sure_and_still(confidence, _speed(log, times, shots, confidence > 0))
    rows = spread_rows(sure & still, VIEWS)
    kept = [(name, log.dtype[name]) for name in log.dtype.names or () if name != "state"]
    views = np.zeros(len(rows), [("row", "i8"), *kept])
    views["row"] = rows
    for name, _ in kept:
        views[name] = log[name][rows]
    return views


def _speed(
    log: NDArray[Any], times: NDArray[np.float64], shots: NDArray[np.int32], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How fast the face moves over the picture [T], in distances of the eyes a second."""
    some = [*OUTER_EYE_CORNERS, NOSE_TIP, CHIN]
    corners = [np.array(log["landmarks"][k : k + 1024][:, some, :2]) for k in range(0, len(log), 1024)]
    points = np.concatenate(corners).astype(np.float64)
    eyes = np.linalg.norm(points[:, 0] - points[:, 1], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        step = np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(1) / (eyes[1:] * np.diff(times))
    step[(np.diff(shots) != 0) | ~(seen[1:] & seen[:-1]) | ~np.isfinite(step)] = UNKNOWN_SPEED
    return np.minimum(np.append(step, UNKNOWN_SPEED), np.append(UNKNOWN_SPEED, step))


@cache
def record_of(regressor: Regressor | None) -> np.dtype[Any]:
    """The record of a log of observations; ``regressor`` of the codes in it, None without codes."""
    landmarker = FaceLandmarker.from_pretrained()
    predictor = CodePredictor.from_pretrained(landmarker, regressor) if regressor else None
    return observation_dtype(len(FaceFollower(landmarker, Choice()).state()), predictor)


@flushed_denormals()
def refine_person(merged: Identity, takes: Sequence[Take], progress: Progress) -> tuple[Identity, list[str]]:
    """The merged identity of a person, refined on the best key frames of the takes that keep views.

    Returns it with the key frames, as "take frame". The result does not depend on the order of the takes, which all
    have one head model.

    Raises InputError when a file of votes or a clip cannot be read; ModelError.
    """
    if not takes:
        return merged, []
    takes = sorted(takes, key=lambda take: take.votes)
    options = takes[0].options
    place = usable_device(options.device)
    model = load_head_model(options.head_model, device=place)
    progress.stage("key frames", len(takes))
    parts = []
    for take in takes:
        if (views := _read_views(take.votes)) is not None:
            parts.append(_fitted(model, take, *views, merged.z_id, place))
        progress.advance()
    if not parts:
        return merged, []
    landmarker = FaceLandmarker.from_pretrained(device=place)
    predictor = GeometryPredictor(landmarker, GeometryNet.from_pretrained(GEOMETRY, device=place), mirror=True)
    clip = _TakesTogether.of(parts, merged.z_id)
    chosen: list[str] = []

    def maps(rows: NDArray[np.int64]) -> GeometryMaps:
        progress.stage("identity")
        chosen.extend(clip.names(rows))
        return clip.maps(rows, predictor, progress)

    state, _ = Refiner(model, clip, maps, takes[0].options.refinement()).solve_person()
    return Identity(state.z_id.cpu().numpy(), merged.model), chosen


@dataclass(frozen=True)
class _Part:
    """One take's views and what was fitted to them, feed-forward."""

    take: Take
    views: NDArray[Any]
    clip: Clip

    @property
    def scale(self) -> NDArray[np.float64]:
        """Pixels of the common camera to one of this take's, x and y."""
        return FOCAL / self.clip.camera.K[[0, 1], [0, 1]]

    @property
    def centre(self) -> NDArray[np.float64]:
        return self.clip.camera.K[:2, 2]

    def evidence(self, rows: NDArray[np.int64], maps: GeometryMaps, pixels: int) -> Evidence:
        """What is observed of some views, in pixels of the common camera; so are the ``maps``' regions."""
        own = replace(maps, rois=_moved(maps.rois, 1 / self.scale, self.centre))
        e = self.clip.evidence(rows, own, pixels, independent=True)
        centre, scale = (torch.from_numpy(v).to(e.landmarks) for v in (self.centre, self.scale))
        return replace(
            e,
            targets=replace(e.targets, pixels=(e.targets.pixels - centre) * scale),
            landmarks=(e.landmarks - centre) * scale,
            eyes=e.eyes * float(np.sqrt(self.scale.prod())),
        )

    def maps(self, rows: NDArray[np.int64], predictor: GeometryPredictor, progress: Progress) -> GeometryMaps:
        """The geometry maps of some views, their regions in pixels of the common camera."""

        def predict(images: Sequence[NDArray[np.uint8]], some: NDArray[np.int64]) -> GeometryMaps:
            return predictor.maps(images, np.array(self.views["landmarks"][some]))

        with open_input(self.take.input, self.take.options) as source:
            source.read_on = lambda: progress.advance(0)  # most of the take is passed over
            maps = ClipMaps(source, self.views["row"], np.ones(len(self.views), bool), predict)(rows)
        return replace(maps, rois=_moved(maps.rois, self.scale, -self.centre * self.scale))


def _moved(rois: Tensor, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Tensor:
    """Regions [B, 5] of a picture that is scaled, then shifted."""
    factors = torch.from_numpy(np.concatenate([scale, scale, [1.0]]))
    return rois.double() * factors + torch.from_numpy(np.concatenate([shift, np.zeros(3)]))


@dataclass(frozen=True)
class _TakesTogether(PersonViews):
    """The views of all takes, brought to one pinhole camera with its principal point at (0, 0)."""

    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, parts: Sequence[_Part], z_id: NDArray[np.float32]) -> _TakesTogether:
        starts = [part.clip.start for part in parts]
        K = starts[0].K.new_tensor(np.diag([FOCAL, FOCAL, 1.0]))
        z_ex, R, t = (torch.cat([getattr(start, name) for start in starts]) for name in ("z_ex", "R", "t"))
        return cls(
            start=State(torch.from_numpy(z_id).to(starts[0].z_id), z_ex, R, t, K),
            camera=Intrinsics(K.cpu().numpy(), (1, 1)),
            camera_known=True,
            identity_known=False,
            times=np.concatenate([k * BETWEEN_TAKES + p.clip.times for k, p in enumerate(parts)]),
            segments=np.repeat(np.arange(len(parts)), [len(p.clip) for p in parts]),
            confidence=np.concatenate([p.clip.confidence for p in parts]),
            parts=tuple(parts),
        )

    def evidence(
        self, rows: NDArray[np.int64], maps: GeometryMaps, pixels: int, *, independent: bool = False
    ) -> Evidence:
        """That of every take's own clip, seen through the common camera; frames are always independent."""
        found = [
            part.evidence(own, GeometryMaps(*(v[where] for v in vars(maps).values())), pixels)
            for part, own, where in self._by_part(rows)
        ]
        landmarks, confidence, eyes, times = (
            torch.cat([getattr(e, name) for e in found]) for name in ("landmarks", "confidence", "eyes", "times")
        )
        targets = type(found[0].targets)(
            *(torch.cat([getattr(e.targets, name) for e in found]) for name in vars(found[0].targets))
        )
        start = self.start.rows(torch.from_numpy(rows).to(self.start.z_id.device))
        segments = torch.arange(len(rows), device=self.start.z_id.device)
        return Evidence(targets, landmarks, confidence, eyes, times, segments, start)

    def maps(self, rows: NDArray[np.int64], predictor: GeometryPredictor, progress: Progress) -> GeometryMaps:
        found = [part.maps(own, predictor, progress) for part, own, _ in self._by_part(rows)]
        return GeometryMaps(*(torch.cat([getattr(m, name) for m in found]) for name in vars(found[0])))

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """The frames behind some rows, for people."""
        return [f"{part.take.name} {k}" for part, own, _ in self._by_part(rows) for k in part.views["frame"][own]]

    def _by_part(self, rows: NDArray[np.int64]) -> list[tuple[_Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Each take that ascending ``rows`` are of, its own rows, and their places in ``rows``."""
        number = self.segments[rows]
        first = np.searchsorted(self.segments, np.arange(len(self.parts)))
        places = [(k, np.flatnonzero(number == k)) for k in np.unique(number)]
        return [(self.parts[k], rows[where] - first[k], where) for k, where in places]


def _fitted(
    model: NphmDecoder,
    take: Take,
    views: NDArray[Any],
    size: tuple[int, int],
    z_id: NDArray[np.float32],
    device: torch.device,
) -> _Part:
    """A take's views with camera, poses and expressions of the merged identity."""
    single = views.copy()
    single["shot"], single["seen"] = np.arange(len(views)), True
    with open_input(take.input, take.options) as source:
        camera = given_camera(source, take.options)
    if has_regressor(take.options):
        regressor = LandmarkRegressor.from_pretrained(device=device) if take.options.codes == "landmarks" else None
        codes = predicted_codes(regressor, single, size, z_id)
    else:
        camera = camera or mean_camera(model, single, size, NullProgress(), z_id)
        codes = fitted_codes(model, single, camera, NullProgress(), z_id)
    fit = fit_clip(model, codes, single, size, camera, 0.0, NullProgress())
    start = State(
        torch.from_numpy(fit.z_id).to(device),
        torch.from_numpy(fit.z_ex).to(device),
        *(torch.from_numpy(np.array(v, np.float64)).to(device) for v in (fit.R, fit.t, fit.camera.K)),
    )
    clip = Clip(
        start, fit.camera, True, False, views["time"], single["shot"], views["confidence"], views["landmarks"][..., :2]
    )
    return _Part(take, views, clip)


def _read_views(votes: Path) -> tuple[NDArray[Any], tuple[int, int]] | None:
    """The views in a file of votes and the size of their frames; None when it keeps none."""
    with reading(votes, "a file of views"), Arrays(votes) as file:
        if "views" not in file:
            return None
        width, height = (int(v) for v in file["size"])
        return file["views"], (width, height)
