"""``nphm_track.track``: a clip tracked to the end, report included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nphm_track.export.report import write_report
from nphm_track.tracking import everybody, pipeline
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run


def track(
    input: str | Path,
    output: str | Path | None = None,
    *,
    options: TrackOptions | None = None,
    overwrite: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> Run:
    """Track the face of a video, an image or a folder of images and write a run folder.

    Args:
        input: the clip.
        output: the run folder; default ``./<name>_nphm``. A run of the same clip and options is continued, or returned
            as it is when it is done. A run that lacks one of its files, or has it damaged, is completed.
        options: see :class:`TrackOptions`; ``overrides`` are single options by name.
        overwrite: start over when the folder holds a run of this clip with other options.
        break_lock: take the folder from a process that holds its lock.
        progress: told where the run is.

    Raises:
        InputError: the clip or an option cannot be used. NoFaceError: no face in the whole clip.
        ModelError: a model file is missing or damaged.
        OutputError: the folder cannot be written or belongs to another clip.
    """
    options = TrackOptions.build(options, **overrides)
    return pipeline.track(
        input,
        output,
        options=options,
        overwrite=overwrite,
        break_lock=break_lock,
        progress=progress,
        write_report=write_report,
    )


def track_people(
    input: str | Path,
    output: str | Path | None = None,
    *,
    options: TrackOptions | None = None,
    overwrite: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> list[Run]:
    """Track everybody in a shot: a run folder each, in the folder ``output``, of one pass over the input.

    People are looked for in frames spread over the clip; ``people.json`` says who was found, where and when. Each run
    is the one that ``face_at`` and ``face_time`` give. Args and errors as in :func:`track`; InputError for options that
    choose one person. Somebody whom no head fits is passed over with a note, as long as it is not everybody.
    """
    return everybody.track_people(
        input,
        output,
        options=TrackOptions.build(options, **overrides),
        overwrite=overwrite,
        break_lock=break_lock,
        progress=progress,
        write_report=write_report,
    )
