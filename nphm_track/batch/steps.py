"""What a worker does: observe a take, refine a person's identity, track a take with it. Heavy imports are inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nphm_track.errors import InputError, NphmTrackError
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from nphm_track.tracking.identity import Identity
    from nphm_track.tracking.records import Track
    from nphm_track.tracking.run_folder import Run

WORST = 5
"""Frames named as worth a look."""
MIN_SEPARATION = 10
"""Frames between two of them, so that one bad moment is named once."""
PICTURE_WIDTH = 240


@dataclass(frozen=True)
class Work:
    """One step of one take; everything a worker needs to know, in a form that can be sent to it."""

    step: Literal["observe", "track"]
    input: Path
    output: Path
    votes: Path
    pictures: Path
    """Folder of the pictures for the summary: ``head.jpg`` and one for each of the worst frames."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonWork:
    """The step between: the merged identity of a person, refined on key frames of the takes that were observed."""

    merged: Identity
    takes: tuple[Work, ...]
    step: Literal["identity"] = "identity"


def run(work: Work | PersonWork, progress: Progress) -> dict[str, Any]:
    """Do the step; returns fields of the take's job, as JSON values, or of ``refine_identity``.

    Done twice, the second time finds the results of the first. Raises what ``nphm_track.track`` raises.
    """
    if isinstance(work, PersonWork):
        return refine_identity(work, progress)
    return observe(work, progress) if work.step == "observe" else track(work, progress)


def observe(work: Work, progress: Progress) -> dict[str, Any]:
    """The first step: what the frames of the take say about the identity goes to ``work.votes``."""
    import numpy as np

    from nphm_track.tracking import pipeline
    from nphm_track.tracking.records import durable

    options = _options(work)
    info, votes = pipeline.observe(work.input, work.output, options=options, progress=progress)
    extra: dict[str, Any] = {}
    if options.refine:
        extra = {"views": _key_views(work.output, options), "size": (info.width, info.height)}
    work.votes.parent.mkdir(parents=True, exist_ok=True)
    with durable(work.votes) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, z_id=votes.z_id, weight=votes.weight, model=head_digest(options), **extra)
    return {"sha256": info.sha256, "observed": True}


def refine_identity(work: PersonWork, progress: Progress) -> dict[str, Any]:
    """The identity: its numbers ``z_id``, its head ``model``, and the ``key_frames`` it was refined on."""
    from nphm_track.batch.person import Take, refine_person

    takes = [Take(take.output.name, take.input, take.votes, _options(take)) for take in work.takes]
    identity, frames = refine_person(work.merged, takes, progress)
    return {"z_id": identity.z_id.tolist(), "model": identity.model, "key_frames": frames}


def track(work: Work, progress: Progress) -> dict[str, Any]:
    """The second step: the run folder, and pictures for the summary."""
    from nphm_track import tracker

    options = _options(work)
    overwrite = has_another_identity(work.output, options)
    run = tracker.track(work.input, work.output, options=options, overwrite=overwrite, progress=progress)
    worst = worst_frames(run.track)
    try:
        draw_pictures(run, work.pictures, worst, progress)
    except (NphmTrackError, OSError, ValueError) as error:  # a take is not lost for want of a picture
        progress.note(f"no pictures of {run.path} ({error})")
    return {
        "sha256": run.info.input.sha256,
        "identity": run.info.options.get("identity_sha256"),
        "quality": run.info.quality,
        "worst": worst,
        "artefacts": sorted(entry.name for entry in run.path.iterdir()),
    }


def head_digest(options: TrackOptions) -> str:
    """SHA-256 of the head model that identity codes belong to."""
    from nphm_track.models import resolve, sha256

    return sha256(resolve(options.head_model))


def worst_frames(track: Track) -> list[int]:
    """Frames of the clip with the largest landmark errors relative to the size of the face, worst first."""
    import numpy as np

    from nphm_track.landmark_model import eye_distance

    error = np.nan_to_num(track.landmark_error_px / eye_distance(track.landmarks), nan=-1.0)
    chosen: list[int] = []
    for row in np.argsort(-error, kind="stable"):
        if error[row] < 0 or len(chosen) == WORST:
            break
        if all(abs(row - other) > MIN_SEPARATION for other in chosen):
            chosen.append(int(row))
    return [int(track.frame[row]) for row in chosen]


def draw_pictures(run: Run, folder: Path, worst: list[int], progress: Progress) -> None:
    """Small pictures of the overlay (or of the clip, when there is none): a frontal moment and the worst frames."""
    import numpy as np
    from PIL import Image

    from nphm_track.tracking.fit import frontalness
    from nphm_track.video.reader import open_video

    track = run.track
    overlay = run.info.options.get("overlay", True) and run.overlay.is_file()
    with np.errstate(invalid="ignore"):
        frontal = np.nan_to_num(frontalness(track.landmarks) * track.confidence, nan=-1.0)
    rows = {int(np.searchsorted(track.frame, frame)): f"worst_{k}.jpg" for k, frame in enumerate(worst)}
    wanted = [(int(frontal.argmax()), "head.jpg"), *rows.items()]
    folder.mkdir(parents=True, exist_ok=True)
    fps = None if overlay else run.info.options.get("fps")
    with open_video(run.overlay if overlay else run.info.input.place, fps=fps) as source:
        last = max(row if overlay else int(track.frame[row]) for row, _ in wanted)
        for index, (_, picture) in enumerate(source.pictures()):
            number = index if overlay else source.number(index)
            progress.advance(0)
            names = [name for row, name in wanted if (row if overlay else int(track.frame[row])) == number]
            if names:
                image = Image.fromarray(source.develop(picture))
                image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
                for name in names:
                    image.save(folder / name, quality=82)
            if number >= last:
                break


def _key_views(output: Path, options: TrackOptions) -> np.ndarray:
    """Frames of an observed take to refine the identity on."""
    from nphm_track.batch.person import key_views, record_of
    from nphm_track.tracking.observations import ObservationLog
    from nphm_track.tracking.planning import image_regressor
    from nphm_track.tracking.run_folder import OBSERVATIONS_BIN
    from nphm_track.tracking.run_folder import WORK as FOLDER

    with ObservationLog(output / FOLDER / OBSERVATIONS_BIN, record_of(image_regressor(options))) as log:
        return key_views(log.read())


def _options(work: Work) -> TrackOptions:
    return TrackOptions.build(**work.options)


def has_another_identity(output: Path, options: TrackOptions) -> bool:
    """Whether a finished run is to be made again, since its person's identity is another now."""
    from nphm_track.tracking.identity import load_identity
    from nphm_track.tracking.run_folder import read_run

    try:
        run = read_run(output)
    except InputError:
        return False
    digest = load_identity(options.identity).digest if options.identity else None
    return run.info.options.get("identity_sha256") != digest
