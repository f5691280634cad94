"""First pass over a clip: follow faces, keep what was seen of each in a log that survives a kill."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.faces.follower import FaceFollower
from nphm_track.faces.landmarker import FaceObservation
from nphm_track.overlap import Workers, ahead
from nphm_track.regressor.predictor import BATCH, CodePredictor
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.progress import Progress
from nphm_track.video.source import Frame, FrameSource


def observation_dtype(state_size: int, codes: CodePredictor | None = None) -> np.dtype[Any]:
    """One frame: its place in the clip, what was seen (NaN when lost), and the follower's state, to go on from."""
    fields: list[Any] = [
        ("frame", "i8"),
        ("time", "f8"),
        ("seen", "?"),
        ("shot", "i4"),
        ("confidence", "f4"),
        ("landmarks", "f4", (478, 3)),
        ("blendshapes", "f4", (52,)),
        ("state", "f4", (state_size,)),
    ]
    if codes is not None:
        identity, expression, parts = codes.sizes
        fields += [("z_id", "f2", (identity,)), ("z_ex", "f4", (expression,)), ("log_variance", "f4", (parts,))]
    return np.dtype(fields)


def observe_clip(
    source: FrameSource,
    people: Sequence[tuple[FaceFollower, ObservationLog]],
    codes: CodePredictor | None,
    progress: Progress,
    check_input: Callable[[], None] = lambda: None,
) -> None:
    """Append to each person's log a record for every frame that it does not have yet, in one pass for all.

    With codes, frames are encoded in the same groups in every run, so that a resumed one, and one with other people,
    gives the same numbers. ``check_input`` raises when the frames are of another clip by now; it is called before they
    are kept.
    """
    done = min(len(log) for _, log in people)
    if codes is not None:
        done = done // BATCH * BATCH
    progress.advance(done)
    with Workers() as workers, closing(ahead(source.frames(done))) as frames:
        observers = [_Observer(follower, _Waiting(codes, log, check_input, workers), done) for follower, log in people]
        for frame in frames:
            for observer in observers:
                observer.observe(frame)
            progress.advance()
        for observer in observers:
            observer.waiting.flush()


class _Observer:
    """One person's follower and log, from the ``done``-th frame on."""

    def __init__(self, follower: FaceFollower, waiting: _Waiting, done: int) -> None:
        self.follower, self.waiting, self.shot = follower, waiting, 0
        waiting.log.truncate(done)
        if done:
            last = waiting.log.read()[-1]
            follower.restore(last["state"])
            self.shot = int(last["shot"])

    def observe(self, frame: Frame) -> None:
        result = self.follower.step(frame.image, frame.time)
        self.shot += result.cut
        seen = result.observation
        record = np.zeros(1, self.waiting.log.dtype)
        record["frame"], record["time"], record["shot"] = frame.index, frame.time, self.shot
        record["seen"], record["confidence"] = seen is not None, result.confidence
        record["landmarks"] = np.nan if seen is None else seen.landmarks
        record["blendshapes"] = np.nan if seen is None else seen.blendshapes
        record["state"] = self.follower.state()
        self.waiting.add(record, frame.image, seen)


class _Waiting:
    """Records that wait for their codes, which workers predict a few frames at a time while the face is followed on."""

    def __init__(
        self, codes: CodePredictor | None, log: ObservationLog, check_input: Callable[[], None], workers: Workers
    ) -> None:
        self.codes, self.log, self.check_input, self.workers = codes, log, check_input, workers
        self.records: list[np.ndarray] = []
        self.faces: list[tuple[int, NDArray[np.uint8], FaceObservation]] = []
        self.under_way: deque[Future[np.ndarray]] = deque()

    def add(self, record: np.ndarray, image: NDArray[np.uint8], seen: FaceObservation | None) -> None:
        if self.codes is not None and seen is not None:
            self.faces.append((len(self.records), image, seen))
        self.records.append(record)
        if self.codes is None or len(self.records) >= BATCH:
            self._send()
            self._keep(self.workers.count)

    def flush(self) -> None:
        """Wait for all records, and keep them."""
        self._send()
        self._keep(0)

    def _send(self) -> None:
        if self.records:
            self.under_way.append(self.workers.submit(partial(_with_codes, self.codes, self.records, self.faces)))
            self.records, self.faces = [], []

    def _keep(self, waiting: int) -> None:
        """Keep the records that are ready, in order; those of ``waiting`` groups may still be under way."""
        while len(self.under_way) > waiting:
            records = self.under_way.popleft().result()
            self.check_input()
            self.log.append(records)


def _with_codes(
    codes: CodePredictor | None,
    records: list[np.ndarray],
    faces: list[tuple[int, NDArray[np.uint8], FaceObservation]],
) -> np.ndarray:
    """The records [N] in one array, with the codes of those that show a face."""
    out = np.concatenate(records)
    if codes is not None and faces:
        rows, images, seen = (list(x) for x in zip(*faces, strict=True))
        predicted = codes(images, seen)
        for name in ("z_id", "z_ex", "log_variance"):
            out[name][rows] = getattr(predicted, name).cpu().numpy()
    return out


def spread_rows(seen: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """At most ``count`` rows of those that are true, evenly spread."""
    rows = np.flatnonzero(seen)
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
