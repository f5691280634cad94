"""A folder is written by one process at a time: leases, which end by themselves when their owner does.

The lock is a file. What it holds names its owner; its time of modification is the owner's heartbeat. Whether an owner
still lives is asked of the system where that can tell, and read from the heartbeat everywhere else: in another
container, on another machine, on systems whose process table cannot be asked. No advisory locks are needed, which
network file systems and FUSE often lack.

Two rules make sure that there never are two owners. A lock file appears whole and only where there is none (a hard
link, or exclusive creation where there are no links). And the lock of the owner ``X`` is replaced or removed only by
the process that holds the lock's *claim*, a lock called ``<lock>.X``, and has found ``X`` still in place after taking
it; of two processes that find the same owner dead, one gets the claim.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from nphm_track.errors import OutputError

BEAT = 3.0
"""Seconds between two heartbeats."""
LEASE = 30.0
"""Seconds without a heartbeat after which an owner that cannot be asked counts as dead."""
LOOK = 0.1
"""Seconds between two looks at a lock that others hold."""
UNSEEN = -1
"""Start time of a process that is there and shows nothing of itself."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock, as its file says it. ``token`` is empty in a file that cannot be read."""

    token: str = ""
    pid: int = 0
    host: str = "?"
    machine: str | None = None
    """Tells a system's process table from every other; None where it cannot be told."""
    started: int | None = None
    """The process's start time, so that a number given to another process later is not taken for the owner."""
    since: str = "?"

    @classmethod
    def this_process(cls) -> Owner:
        pid = os.getpid()
        since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        return cls(secrets.token_hex(4), pid, socket.gethostname(), _machine(), _started(pid), since)

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The owner a lock file names; None when there is no file."""
        try:
            record = json.loads(path.read_bytes())
            owner = cls(**record)
            return owner if isinstance(owner.token, str) and isinstance(owner.pid, int) else cls()
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError):
            return cls()

    def lives(self) -> bool | None:
        """Whether the process is there; None when this one cannot know."""
        if self.machine is None or self.machine != _machine():
            return None
        started = _started(self.pid)
        return None if started is UNSEEN else started is not None and started == self.started


class RunLock:
    """Exclusive right to write a folder, held until ``release``, or until the object is dropped.

    Args:
        path: the lock file.
        what: what it guards, for messages.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path, self.what = Path(path), what
        self._heart: _Heart | None = None

    def acquire(
        self, patience: float = 0.0, *, break_lock: bool = False, note: Callable[[str], None] = lambda line: None
    ) -> RunLock:
        """Take the lock.

        A lock whose owner has ended is taken over: at once where the system says that it has, after its heartbeat has
        stood still for ``LEASE`` seconds where only that can tell.

        Args:
            patience: seconds to wait for a living owner to let go of it.
            break_lock: take it from a living owner, who will notice.
            note: told once when there is something to wait for.

        Raises OutputError, naming the owner and its last heartbeat, when another process keeps it; OSError when the
        lock file cannot be written.
        """
        deadline = time.monotonic() + patience
        pulse = _Pulse(self.path)
        while True:
            owner = Owner.read(self.path)
            if owner is None:
                if self._publish():
                    break
                continue
            lives = pulse.lives(owner)
            if lives is False or break_lock:
                if self._succeed(owner):
                    break
            elif lives and time.monotonic() >= deadline:
                raise OutputError(self._refusal(owner, pulse))
            elif lives is None and pulse.first_look:
                note(f"{self.what} was left locked by {_name(owner)}; waiting whether that is still at work")
            time.sleep(LOOK)
        return self

    def check(self) -> None:
        """Raises OutputError when the lock is held no longer: it was broken, or its folder is gone."""
        if self._heart is not None and not self._heart.beat():
            now = Owner.read(self.path)
            reason = "its lock is not there any more" if now is None else f"{_name(now)} has taken it over"
            raise OutputError(f"{self.what} cannot be written: {reason}")

    def release(self) -> None:
        """Let others have it; does nothing when it is not held."""
        if self._heart is None:
            return
        self._sweep()
        heart, self._heart = self._heart, None
        heart.stop()
        with suppress(OSError):  # the folder may be gone, or its file system; the heartbeat has ended in any case
            if Owner.read(self.path) == heart.owner:
                self.path.unlink()

    def sweep(self) -> None:
        """Remove what a killed process left, its lock or a draft of one, if that can be told at once."""
        owner = Owner.read(self.path)
        drafts = owner is None and any(self.path.parent.glob(f"{self.path.name}.*"))
        if drafts or (owner is not None and owner.lives() is False):
            with suppress(OutputError, OSError):
                self.acquire().release()

    def _publish(self) -> bool:
        """Make the lock file, unless there is one; whether it is ours now."""
        owner = Owner.this_process()
        try:
            with self._draft(owner) as draft:
                _link(draft, self.path)
        except (FileExistsError, FileNotFoundError):  # there is one; or its owner swept our draft
            if Owner.read(self.path) != owner:
                return False
        return self._held(owner)

    def _succeed(self, dead: Owner) -> bool:
        """Take the lock over from an owner; False when another process has been quicker."""
        owner = Owner.this_process()
        try:
            with self._claim(dead), self._draft(owner) as draft:
                if Owner.read(self.path) != dead:
                    return False
                os.replace(draft, self.path)
        except (OutputError, FileNotFoundError):
            return False
        return self._held(owner)

    def _held(self, owner: Owner) -> bool:
        self._heart = _Heart(self.path, owner)
        self._heart.start()
        self._sweep()
        return True

    def _claim(self, owner: Owner) -> RunLock:
        """The right to replace or remove this owner's lock."""
        return RunLock(self.path.with_name(f"{self.path.name}.{owner.token or 'torn'}"), self.what)

    @contextmanager
    def _draft(self, owner: Owner) -> Iterator[Path]:
        """A file beside the lock that names an owner, to be moved or linked into place."""
        draft = self.path.with_name(f"{self.path.name}.{owner.token}.new")
        try:
            draft.write_text(json.dumps(asdict(owner)))
            yield draft
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed processes left beside the lock we hold: drafts, and claims on owners before us."""
        if self._heart is None:
            return
        mine = f"{self.path.name}.{self._heart.owner.token}"
        for left in self.path.parent.glob(f"{self.path.name}.*"):
            if not left.name.startswith(mine):
                with suppress(OSError):
                    left.unlink()

    def _refusal(self, owner: Owner, pulse: _Pulse) -> str:
        return (
            f"{self.what} is being written by {_name(owner)}, since {owner.since}; last heard of {pulse.age():.0f} s "
            "ago. If that process hangs, --break-lock takes over"
        )

    def __enter__(self) -> RunLock:
        return self if self._heart is not None else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be ending
            self.release()


class _Heart(threading.Thread):
    """Beats while its process holds a lock: keeps the time of modification of the lock file fresh."""

    def __init__(self, path: Path, owner: Owner) -> None:
        super().__init__(name=f"heartbeat of {path}", daemon=True)
        self.path, self.owner = path, owner
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(BEAT) and self.beat():
            pass

    def beat(self) -> bool:
        """Whether the lock still is ours."""
        try:
            if Owner.read(self.path) != self.owner:
                return False
            os.utime(self.path)
        except FileNotFoundError:
            return False
        except OSError:  # a network file system that is away for a moment
            pass
        return True

    def stop(self) -> None:
        self._stopped.set()


class _Pulse:
    """Watches the heartbeat of a lock's owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[Owner, int] | None = None
        self._beats = 0
        self._since = self._age = 0.0
        self.first_look = True

    def lives(self, owner: Owner) -> bool | None:
        """Whether an owner lives; None: not known yet, look again."""
        known = owner.lives()
        if known is not None:
            return known
        seen = (owner, self._modified())
        if self._seen is None or self._seen[0] != owner:
            self._seen, self._beats, self._since, self._age = seen, 0, time.monotonic(), self.age()
            return None
        self.first_look = False
        if self._seen != seen:
            self._seen, self._since, self._age = seen, time.monotonic(), 0.0
            return True
        still = time.monotonic() - self._since
        # At least two beats are waited for, however old the last one seems: the file system's clock may have jumped.
        return False if still > 2 * BEAT and still + self._age > LEASE else None

    def age(self) -> float:
        """Seconds since the last beat, by the clock of the file system."""
        probe = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.new")
        try:
            probe.touch()
            return max(0.0, (probe.stat().st_mtime_ns - self._modified()) / 1e9)
        except OSError:
            return 0.0
        finally:
            with suppress(OSError):
                probe.unlink()

    def _modified(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def _name(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}" if owner.token else "another process"


def _link(draft: Path, path: Path) -> None:
    """Make ``path`` what ``draft`` is, whole. Raises FileExistsError when there is something."""
    try:
        os.link(draft, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # no links on this file system
        with open(path, "xb") as file:
            file.write(draft.read_bytes())


def _machine() -> str | None:
    """Names the process table that this process is in: that of a boot, and of a container in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Start time of a process in the kernel's ticks since boot; None when it has ended, UNSEEN when it is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return UNSEEN if _exists(pid) else None


def _exists(pid: int) -> bool:
    """Whether there is a process, also one that ``/proc`` hides because it is another user's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
