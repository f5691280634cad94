"""A quick stand-in for the steps: a clip is a JSON file that says how long it is and what goes wrong in it.

It writes real run folders, frame by frame, and its results depend on the clip and the identity alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nphm_track.batch.steps import PersonWork, Work, has_another_identity
from nphm_track.batch.workers import Event, StepProgress, do_step
from nphm_track.errors import InputError, ModelError, NoFaceError, OutputError
from nphm_track.tracking.identity import load_identity
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import InputInfo, durable, input_digest, replacing
from nphm_track.tracking.run_folder import RunFolder

Track = Callable[..., dict[str, str]]
"""Works on a session; returns the states of takes, errors behind them."""
RECORD = np.dtype([("frame", "i8"), ("value", "f8")])


def write_take(path: Path, frames: int = 10, **what: Any) -> Path:
    """A clip; ``what``: ``delay``, seconds a frame; ``passed_over``, frames before the first; ``go_wrong``, see
    ``_mishap``; ``once``, a mishap of the first attempt only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"frames": frames, **what}))
    return path


def run(work: Work | PersonWork, progress: Progress) -> dict[str, Any]:
    if isinstance(work, PersonWork):
        return _refine_identity(work, progress)
    try:
        clip = json.loads(work.input.read_text())
    except ValueError:
        raise InputError(f"{work.input}: not a video") from None
    digest, size = input_digest(work.input)
    info = InputInfo(path=str(work.input), sha256=digest, size=size, width=4, height=4)
    options = TrackOptions.build(**work.options)
    overwrite = work.step == "track" and has_another_identity(work.output, options)
    with RunFolder.open(work.output, info, options, overwrite=overwrite) as folder:
        if not folder.complete:
            _mishap(clip, work)
            with folder.log(RECORD) as log:
                progress.stage("faces", clip["frames"])
                for _ in range(clip.get("passed_over", 0)):
                    time.sleep(0.01)
                    progress.advance(0)
                for frame in range(len(log), clip["frames"]):
                    record = np.zeros(1, RECORD)
                    record["frame"], record["value"] = frame, _value(digest, frame)
                    time.sleep(clip.get("delay", 0))
                    log.append(record)
                    progress.advance()
                values = np.array(log.read()["value"])
        if work.step == "observe":
            work.votes.parent.mkdir(parents=True, exist_ok=True)
            with durable(work.votes) as partial, open(partial, "wb") as file:
                z_id = np.stack([values[:4], values[1:5]]).astype(np.float32)
                np.savez(file, z_id=z_id, weight=np.ones(2, np.float32))
            folder.update(state="interrupted")
            return {"sha256": digest, "observed": True}
        if not folder.complete:
            _track(folder, options, values, clip.get("delay", 0), progress)
        return {
            "sha256": digest,
            "identity": folder.info.options.get("identity_sha256"),
            "quality": folder.info.quality,
            "worst": [1, 5],
            "artefacts": sorted(entry.name for entry in folder.path.iterdir() if entry.name != "run.lock"),
        }


def gpu(work: Work | PersonWork, progress: Progress) -> dict[str, Any]:
    """A step that tells which GPU its process sees, and takes long enough for every worker to get one."""
    time.sleep(0.5)
    return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}


def _refine_identity(work: PersonWork, progress: Progress) -> dict[str, Any]:
    """Half of what was merged; a file ``mishap`` beside the clips says what goes wrong."""
    for take in work.takes:
        if (mishap := take.input.with_name("mishap")).exists():
            _mishap({"go_wrong": mishap.read_text()}, take)
    progress.advance()
    frames = [f"{take.output.name} 0" for take in work.takes]
    return {"z_id": (work.merged.z_id / 2).tolist(), "model": work.merged.model, "key_frames": frames}


def _track(folder: RunFolder, options: TrackOptions, values: np.ndarray, delay: float, progress: Progress) -> None:
    z_id = load_identity(options.identity).z_id if options.identity else np.zeros(4, np.float32)
    with replacing(folder.track) as partial, open(partial, "wb") as file:
        np.savez(file, z_id=z_id, values=values)
    folder.mesh_path(0).parent.mkdir(exist_ok=True)
    for frame, value in enumerate(values):
        with replacing(folder.mesh_path(frame)) as partial:
            partial.write_bytes((value + z_id).tobytes())
            time.sleep(delay)
        progress.advance()
    with replacing(folder.overlay) as partial, open(partial, "wb") as file:
        for value in values:
            file.write((value * z_id).tobytes())
            file.flush()
            time.sleep(delay)
            progress.advance()
    folder.finish(quality={"frames": len(values), "tracked": len(values), "lost": 0, "landmark_error_percent": 1.5})


def _value(digest: str, frame: int) -> float:
    return int(hashlib.sha256(f"{digest} {frame}".encode()).hexdigest()[:8], 16) / 2**32


def _mishap(clip: dict[str, Any], work: Work) -> None:
    what = clip.get("go_wrong")
    if "once" in clip:
        mark = work.input.with_suffix(".been_here")
        what = None if mark.exists() else clip["once"]
        mark.touch()
    errors = {
        "raise": RuntimeError("a bug\nin two lines"),
        "unreadable": InputError(f"{work.input}: not a video"),
        "no face": NoFaceError(f"no face found in {work.input}"),
        "no model": ModelError("model 'head' not found"),
    }
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        time.sleep(60)
    elif what == "disk full":
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
        except OSError as error:
            raise OutputError(f"cannot write x: {error.strerror}") from None
    elif what in errors:
        raise errors[what]


class InlinePool:
    """Does steps in this process, one by one: quick, and unfit for those that kill."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stopped = False

    def free(self) -> bool:
        return not self._events

    def submit(self, key: str, work: Work | PersonWork) -> None:
        progress = StepProgress(lambda kind, data: None, lambda: self._stopped)
        self._events.append(Event(key, *do_step(run, work, progress)))

    def events(self, timeout: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        pass


def contents(session: Path) -> dict[str, bytes]:
    """Every result of a session; what tells times and places is left out."""
    changing = ("session.json", "index.html", "quality.csv", "run.json")
    return {
        path.relative_to(session).as_posix(): path.read_bytes()
        for path in sorted(session.rglob("*"))
        if path.is_file() and path.name not in changing
    }
