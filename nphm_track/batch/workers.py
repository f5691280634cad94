"""Local worker processes: each does one step at a time, and neither side outlives the other unnoticed.

A worker sends a beat at least whenever a frame is done, at most once a second. One that dies is noticed by its pipe's
end, one that hangs by the beats it does not send. When the session's own process dies, the pipe ends on the other side
and the worker leaves at once; what it was writing has not got its final name.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, Protocol

from nphm_track.batch.steps import PersonWork, Work
from nphm_track.errors import END_SIGNALS, NO_SPACE, InputError, NoFaceError, NphmTrackError
from nphm_track.tracking.progress import Progress

BEAT = 1.0
"""Seconds between two beats of a worker, at least."""
START = 120.0
"""Seconds a new process may take until it says something."""
STALL = 1800.0
"""Seconds without a beat after which a worker counts as hung; loading models and solving the camera take far less."""

Step = Callable[[Work | PersonWork, Progress], dict[str, Any]]
Kind = Literal["beat", "done", "failed", "stopped", "lost"]


HOPELESS = (InputError.exit_code, NoFaceError.exit_code)
"""Exit codes of errors that lie in the clip: another attempt would end the same."""


@dataclass(frozen=True)
class Event:
    """What became of the step of the job ``key``."""

    key: str
    kind: Kind
    data: dict[str, Any] = field(default_factory=dict)
    """``done``: fields of the job; ``failed`` and ``lost``: ``error``, ``exit_code``, ``disk_full``."""


class Pool(Protocol):
    """Where steps are done."""

    def free(self) -> bool:
        """Whether another step can be begun now."""

    def submit(self, key: str, work: Work | PersonWork) -> None:
        """Begin a step."""

    def events(self, timeout: float) -> list[Event]:
        """What happened since, waiting at most ``timeout`` seconds for it; every step ends in one event."""

    def stop(self) -> None:
        """Let the steps in flight end after the current frame."""

    def close(self) -> None:
        """End everything now."""


class LocalPool:
    """Processes on this machine.

    Args:
        count: how many.
        step: what they do; importable by name.
        threads: of each process.
        gpus: how many GPUs to hand out, one a worker, in turn; 0 leaves the choice to the process.
        stall: seconds without a beat after which a worker is ended.
    """

    def __init__(self, count: int, step: Step, *, threads: int = 1, gpus: int = 0, stall: float = STALL) -> None:
        self._step, self._threads, self._gpus, self._stall = step, threads, gpus, stall
        self._workers: list[_Worker | None] = [None] * count

    def free(self) -> bool:
        return any(worker is None or worker.key is None for worker in self._workers)

    def submit(self, key: str, work: Work | PersonWork) -> None:
        slots = [k for k, worker in enumerate(self._workers) if worker is None or worker.key is None]
        slot = min(slots, key=lambda k: self._workers[k] is None)  # one that has its models loaded, if there is one
        worker = self._workers[slot] or _Worker(self._step, self._environment(slot))
        self._workers[slot] = worker
        worker.begin(key, work)

    def events(self, timeout: float) -> list[Event]:
        busy = [worker for worker in self._workers if worker is not None]
        if busy:
            wait([worker.connection for worker in busy], timeout)
        else:
            time.sleep(timeout)
        found = []
        for slot, worker in enumerate(self._workers):
            if worker is None:
                continue
            found += worker.messages()
            if not worker.lost and worker.key and worker.silence > (self._stall if worker.heard else START):
                minutes = self._stall / 60
                found.append(worker.end(f"its process did nothing for {minutes:.0f} min and was ended"))
            if worker.lost:
                self._workers[slot] = None
        return found

    def stop(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.end("")
        self._workers = [None] * len(self._workers)

    def _environment(self, slot: int) -> dict[str, str]:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        values = dict.fromkeys(names, str(self._threads))
        if self._gpus:
            visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
            visible = visible or [str(k) for k in range(self._gpus)]
            values["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
        return values


class _Worker:
    """The session's end of one worker process."""

    def __init__(self, step: Step, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, step), daemon=True)
        # Its environment is read when the numerical libraries load, before any code of ours runs there.
        with _environment(environment), _unheard():
            self.process.start()
        theirs.close()
        self.key: str | None = None
        self.heard = self.lost = False
        self._last = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since it last said something, or was given a step."""
        return time.monotonic() - self._last

    def begin(self, key: str, work: Work | PersonWork) -> None:
        self.key, self._last = key, time.monotonic()
        with suppress(OSError):  # it died while idle; its end of the pipe tells
            self.connection.send(work)

    def stop(self) -> None:
        with suppress(OSError):
            self.connection.send("stop")

    def messages(self) -> list[Event]:
        """What it said since; the last one tells when it is lost."""
        found: list[Event] = []
        try:
            while self.connection.poll():
                kind, data = self.connection.recv()
                self.heard, self._last = True, time.monotonic()
                found.append(Event(self.key or "", kind, data))
                if kind != "beat":
                    self.key = None
        except (EOFError, OSError):
            event = self.end()
            if event.key:
                found.append(event)
        return found

    def end(self, error: str | None = None) -> Event:
        """Make sure it is gone. ``error`` None: it died by itself, its exit tells how."""
        if error is None:
            self.process.join(5)
            error = _how_it_died(self.process.exitcode)
        self.process.kill()
        self.process.join(5)
        self.connection.close()
        self.lost, key = True, self.key
        return Event(key or "", "lost", {"error": error, "exit_code": 1, "disk_full": False})


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is None:
        return "its process closed its pipe"
    if exitcode >= 0:
        return f"its process ended with exit code {exitcode}"
    name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


class StepProgress:
    """Progress of one step: beats for the session, and the place where a step ends when it is asked to."""

    def __init__(self, send: Callable[[str, dict[str, Any]], None], stop: Callable[[], bool]) -> None:
        self._send, self._stop = send, stop
        self._total: int | None = None
        self._stage, self._done, self._next = "", 0, 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        self._stage, self._total, self._done, self._next = name, total, 0, 0.0
        self.advance(0)

    def advance(self, n: int = 1) -> None:
        """Unlike other progress it raises KeyboardInterrupt, between two frames, when the step is to end."""
        self._done += n
        if self._stop():
            raise KeyboardInterrupt
        if (now := time.monotonic()) >= self._next:
            self._next = now + BEAT
            self._send("beat", {"stage": self._stage, "done": self._done, "total": self._total})

    def note(self, text: str) -> None:
        pass


def do_step(step: Step, work: Work | PersonWork, progress: Progress) -> tuple[Kind, dict[str, Any]]:
    """Do a step; how it ended, as an event's kind and data."""
    start = time.monotonic()
    try:
        result = step(work, progress)
        return "done", {**result, "seconds": {work.step: round(time.monotonic() - start, 3)}}
    except KeyboardInterrupt:
        return "stopped", {}
    except NphmTrackError as error:
        return "failed", {"error": str(error), "exit_code": error.exit_code, "disk_full": is_disk_full(error)}
    except BaseException as error:  # the night goes on
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
        return "failed", {"error": " ".join(text.split()), "exit_code": 1, "disk_full": is_disk_full(error)}


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _work(connection: Connection, step: Step) -> None:
    """A worker process's life."""
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    steps: queue.SimpleQueue[Work | PersonWork] = queue.SimpleQueue()
    stopped = threading.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                if message == "stop":
                    stopped.set()
                else:
                    stopped.clear()
                    steps.put(message)
        os._exit(1)  # the session has ended

    def send(kind: str, data: dict[str, Any]) -> None:
        try:
            connection.send((kind, data))
        except OSError:
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        work = steps.get()
        progress = StepProgress(send, stopped.is_set)
        send("beat", {"stage": "start"})
        send(*do_step(step, work, progress))


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes started in the block do not hear requests to end, which reach whole groups: the session decides."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        resource_tracker.ensure_running()  # it lets some of them through again, once
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
