"""What a run will need and take: its models, its frames, its time."""

from __future__ import annotations

from nphm_track.regressor.lookup import GEOMETRY, Regressor, find_regressor, is_released
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo
from nphm_track.video.source import FrameSource

FIT_SECONDS = 1.0
"""Time that a frame's codes take without a regressor, roughly: MonoNPHM on two CPU cores."""


def models_of(options: TrackOptions) -> tuple[str, ...]:
    """Names of the models a run needs; ``TrackOptions.head`` for the head model."""
    found = image_regressor(options)
    regressors: tuple[str, ...] = (found.geometry, found.name) if found else ()
    if found is None and is_released(options.head):
        regressors = ("landmark-regressor",)
    names = ("face_landmarker", *regressors, options.head, *((GEOMETRY,) if options.refine else ()))
    return tuple(dict.fromkeys(names))


def image_regressor(options: TrackOptions) -> Regressor | None:
    """What predicts codes from the images; None where the options take them from landmarks, or nothing does."""
    return find_regressor(options.head) if options.codes == "image" else None


def has_regressor(options: TrackOptions) -> bool:
    """Whether codes are predicted and not fitted: from images, or from landmarks for the released head model."""
    return is_released(options.head) or image_regressor(options) is not None


def plan_line(info: InputInfo, source: FrameSource, options: TrackOptions) -> str:
    """What is about to happen, with a rough estimate for two CPU cores."""
    count = expected_frames(source, options)
    if not count or source.info.kind == "image":
        return str(info)
    per_frame = 0.06 + (0.16 if options.meshes or options.overlay else 0) + (1.2 if options.refine else 0)
    per_frame += 0 if has_regressor(options) else FIT_SECONDS
    minutes = (6 + count * per_frame) / 60
    line = f"{info}; about {count} frames"
    return f"{line}, {minutes:.0f} min on 2 CPU cores" if minutes >= 1.5 else line


def expected_frames(source: FrameSource, options: TrackOptions) -> int | None:
    """How many frames the options select, as far as the container tells."""
    count, rate = source.info.frame_count, source.info.frame_rate
    if not count:
        return None
    if rate and (options.start or options.end):
        length = (options.end or source.info.duration or 0) - (options.start or 0)
        count = min(count, round(length * rate))
    return max(1, -(-count // options.every))
