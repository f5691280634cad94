"""What was observed and fitted, as the arrays of ``track.npz``."""

from __future__ import annotations

import numpy as np

from nphm_track.tracking.fit import ClipFit
from nphm_track.tracking.fit_check import does_not_fit
from nphm_track.tracking.observations import column
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.refinement import RefinedFit


def to_track(
    log: np.ndarray, fit: ClipFit, size: tuple[int, int], refined: RefinedFit | None = None, known_heads: bool = True
) -> Track:
    """The arrays of track.npz; what lost frames lack becomes NaN.

    ``known_heads``: they are those of the released model, whose fits have been measured.
    """
    seen = column(log, "seen")
    misfit = seen & does_not_fit(
        log["landmarks"], fit.landmark_error_px, fit.unsmoothed_error_px if known_heads else None
    )
    status = np.where(seen, Status.TRACKED, np.where(fit.filled, Status.FILLED, Status.LOST)).astype(np.uint8)
    status[misfit] = Status.LOST
    lost = status == Status.LOST
    z_ex, R, t, landmarks_fit = fit.z_ex.copy(), fit.R.copy(), fit.t.copy(), fit.landmarks_fit.copy()
    for array in (z_ex, R, t, landmarks_fit):
        array[lost] = np.nan
    return Track(
        frame=column(log, "frame"),
        time=column(log, "time"),
        status=status,
        confidence=np.where(seen & ~misfit, column(log, "confidence"), 0).astype(np.float32),
        z_id=fit.z_id,
        z_ex=z_ex,
        R=R,
        t=t,
        K=fit.camera.K,
        image_size=np.array(size, np.int64),
        landmarks=log["landmarks"][..., :2],
        landmarks_fit=landmarks_fit,
        blendshapes=column(log, "blendshapes"),
        landmark_error_px=fit.landmark_error_px,
        normal_error_deg=refined.after[:, 0] if refined else np.full(len(log), np.nan, np.float32),
        distortion=np.zeros(5) if fit.camera.distortion is None else fit.camera.distortion,
        **(refined.report() if refined else {}),
    )
