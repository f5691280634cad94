"""What a worker does with a take: observe it, or track it with the person's identity. The heavy imports are inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nphm_track.errors import InputError, NphmTrackError
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress

if TYPE_CHECKING:
    from nphm_track.tracking.records import Track
    from nphm_track.tracking.run_folder import Run

WORST = 5
"""Frames named as worth a look."""
APART = 10
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


def run(work: Work, progress: Progress) -> dict[str, Any]:
    """Do the step; returns fields of the take's job, as JSON values.

    Done twice, the second time finds the results of the first. Raises what ``nphm_track.track`` raises.
    """
    return observe(work, progress) if work.step == "observe" else track(work, progress)


def observe(work: Work, progress: Progress) -> dict[str, Any]:
    """The first step: what the frames of the take say about the identity goes to ``work.votes``."""
    import numpy as np

    from nphm_track.batch.manifest import durable
    from nphm_track.tracking import pipeline

    info, votes = pipeline.observe(work.input, work.output, options=_options(work), progress=progress)
    work.votes.parent.mkdir(parents=True, exist_ok=True)
    with durable(work.votes) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, z_id=votes.z_id, weight=votes.weight, model=head_model())
    return {"sha256": info.sha256, "observed": True}


def track(work: Work, progress: Progress) -> dict[str, Any]:
    """The second step: the run folder, and pictures for the summary."""
    from nphm_track.tracking import pipeline

    options = _options(work)
    overwrite = has_another_identity(work.output, options)
    run = pipeline.track(work.input, work.output, options=options, overwrite=overwrite, progress=progress)
    worst = worst_frames(run.track)
    try:
        draw_pictures(run, work.pictures, worst)
    except (NphmTrackError, OSError, ValueError) as error:  # a take is not lost for want of a picture
        progress.note(f"no pictures of {run.path} ({error})")
    return {
        "sha256": run.info.input.sha256,
        "identity": run.info.options.get("identity_sha256"),
        "quality": run.info.quality,
        "worst": worst,
        "artefacts": sorted(entry.name for entry in run.path.iterdir()),
    }


def head_model() -> str:
    """SHA-256 of the head model identity codes belong to."""
    from nphm_track.heads.loading import DEFAULT
    from nphm_track.models import resolve, sha256

    return sha256(resolve(DEFAULT))


def worst_frames(track: Track) -> list[int]:
    """Frames of the clip with the largest landmark errors relative to the size of the face, worst first."""
    import numpy as np

    eyes = np.linalg.norm(track.landmarks[:, 33] - track.landmarks[:, 263], axis=-1)
    error = np.nan_to_num(track.landmark_error_px / eyes, nan=-1.0)
    chosen: list[int] = []
    for row in np.argsort(-error, kind="stable"):
        if error[row] < 0 or len(chosen) == WORST:
            break
        if all(abs(row - other) > APART for other in chosen):
            chosen.append(int(row))
    return [int(track.frame[row]) for row in chosen]


def draw_pictures(run: Run, folder: Path, worst: list[int]) -> None:
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
    with open_video(run.overlay if overlay else run.info.input.path) as source:
        last = max(row if overlay else int(track.frame[row]) for row, _ in wanted)
        for index, (_, picture) in enumerate(source.pictures()):
            names = [name for row, name in wanted if (row if overlay else int(track.frame[row])) == index]
            if names:
                image = Image.fromarray(source.develop(picture))
                image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
                for name in names:
                    image.save(folder / name, quality=82)
            if index >= last:
                break


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
