"""Third step, on request: the feed-forward fit of a clip refined against its geometry maps (``nphm_track.refine``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import IBUG68_FROM_478, N_LANDMARKS
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.refine.clip import Clip
from nphm_track.refine.codes import State
from nphm_track.refine.config import RefineConfig
from nphm_track.refine.schedule import Refined, frame_dtype, person_dtype, refine_clip
from nphm_track.refine.source import ClipMaps
from nphm_track.tracking.fit import ClipFit, head_landmarks, ibug_rows, landmark_carrier
from nphm_track.tracking.observations import column
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import RunFolder
from nphm_track.video.source import FrameSource

PERSON_BIN, FRAMES_BIN = "person.bin", "frames.bin"
"""Finished stages: a resumed run goes on from them."""


@dataclass(frozen=True)
class RefinedFit:
    """The refined fit and its report of T frames: NaN and False where nothing was refined.

    Attributes:
        before, after: [T, 3] normal error (degrees), point error (mm), landmark error (px) of both states.
        rolled_back: [T] the refined state was worse and the feed-forward one stands.
    """

    fit: ClipFit
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    rolled_back: NDArray[np.bool_]

    def report(self) -> dict[str, NDArray]:
        """The arrays of track.npz that say what the refinement did."""
        return {"refine_before": self.before, "refine_after": self.after, "rolled_back": self.rolled_back}


class _Rows:
    """Some rows of mapped landmarks, read when asked for; NaN for points that the head model does not know."""

    def __init__(self, values: NDArray[np.float32], rows: NDArray[np.int64], known: Sequence[int]) -> None:
        self.values, self.rows = values, rows
        self.unknown = np.setdiff1d(np.arange(N_LANDMARKS), known)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        landmarks = np.array(self.values[self.rows[index]])
        landmarks[:, self.unknown] = np.nan
        return landmarks


def refine_fit(
    model: NphmDecoder,
    predictor: GeometryPredictor,
    source: FrameSource,
    log: NDArray,
    fit: ClipFit,
    folder: RunFolder,
    config: RefineConfig,
    progress: Progress,
    *,
    camera_known: bool,
    identity_known: bool,
) -> RefinedFit:
    """Refine every frame that has a head. ``camera_known`` and ``identity_known`` say what was given and stays."""
    seen, times, shots = (column(log, name) for name in ("seen", "time", "shot"))
    rows = np.flatnonzero(seen | fit.filled)
    breaks = (np.diff(rows) > 1) | (np.diff(shots[rows]) != 0)
    device = model.mean_anchors.device
    start = State(
        torch.from_numpy(fit.z_id).to(device),
        torch.from_numpy(fit.z_ex[rows]).to(device),
        *(torch.from_numpy(np.array(v, np.float64)).to(device) for v in (fit.R[rows], fit.t[rows], fit.camera.K)),
    )
    confidence = np.where(seen, column(log, "confidence"), 0).astype(np.float32)[rows]
    clip = Clip(
        start,
        fit.camera,
        camera_known,
        identity_known,
        times[rows],
        np.concatenate([[0], breaks.cumsum()]),
        confidence,
        _Rows(log["landmarks"], rows, known_landmarks(model)),
    )

    def predict(images: Sequence[NDArray[np.uint8]], some: NDArray[np.int64]) -> GeometryMaps:
        return predictor.maps(images, np.array(log["landmarks"][rows[some]]))

    maps = ClipMaps(source, rows, seen[rows], predict)
    progress.stage("refine", len(rows))
    c = model.config
    person_log = folder.stage_log(PERSON_BIN, person_dtype(c.identity_dim))
    frame_log = folder.stage_log(FRAMES_BIN, frame_dtype(c.expression_dim))
    with person_log, frame_log:
        refined = refine_clip(model, clip, maps, config, person_log, frame_log, progress.advance)
    return _result(model, log, fit, rows, refined)


def _result(model: NphmDecoder, log: NDArray, fit: ClipFit, rows: NDArray[np.int64], refined: Refined) -> RefinedFit:
    """The refined frames in their places."""
    z_ex, R, t = fit.z_ex.copy(), fit.R.copy(), fit.t.copy()
    z_ex[rows], R[rows], t[rows] = (np.array(refined.frames[name]) for name in ("z_ex", "R", "t"))
    z_id, K = refined.state.z_id.cpu().numpy(), refined.state.K.cpu().numpy()
    camera = Intrinsics(K, fit.camera.size, fit.camera.distortion)
    carry, ibug = landmark_carrier(model, z_id), ibug_rows(model)
    projected, error = np.full_like(fit.landmarks_fit, np.nan), np.full_like(fit.landmark_error_px, np.nan)
    for k in range(0, len(rows), 256):
        some = rows[k : k + 256]
        points = head_landmarks(carry, z_ex[some])[:, : len(ibug)]
        pixels = camera.project(points @ R[some].swapaxes(-1, -2) + t[some, None])
        observed = log["landmarks"][some][:, np.array(IBUG68_FROM_478)[ibug], :2]
        projected[np.ix_(some, ibug)] = pixels
        error[some] = np.linalg.norm(pixels - observed, axis=-1).mean(1)
    T = len(log)
    before, after = np.full((T, 3), np.nan, np.float32), np.full((T, 3), np.nan, np.float32)
    rolled_back = np.zeros(T, bool)
    before[rows], after[rows] = refined.frames["before"], refined.frames["after"]
    rolled_back[rows] = refined.frames["rolled_back"]
    better = replace(
        fit, z_id=z_id, z_ex=z_ex, camera=camera, R=R, t=t, landmarks_fit=projected, landmark_error_px=error
    )
    return RefinedFit(better, before, after, rolled_back)
