"""A folder is written by one process at a time: lock files that a killed process or a power cut cannot leave closed."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from nphm_track.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """Exclusive right to write a folder, held by this process until ``release``.

    The file names its owner: host, boot, process and the process's start time, so that a number given to another
    process later is not taken for the owner. On one machine the system's own lock on the file decides, which ends with
    the process; where there is none, the owner's record does. A record of another machine is believed.

    Args:
        path: the lock file, removed on release.
        what: what it guards, for messages.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path, self.what = Path(path), what
        self._file: int | None = None

    def acquire(self, patience: float = 0.0) -> RunLock:
        """Take the lock, waiting at most ``patience`` seconds for another process to let go of it.

        Raises OutputError, naming the owner, when it does not; OSError when the lock file cannot be made.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._acquire()
            except OutputError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)

    def _acquire(self) -> RunLock:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                system_lock = self._lock(file)
                if not _is_named(file, self.path):  # its owner released it, with the file, just before we had it
                    os.close(file)
                    continue
                owner = _owner(file)
                if owner and _alive(owner, system_lock):
                    raise self._refusal(owner)
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                os.write(file, json.dumps(_this_process()).encode())
            except BaseException:
                with suppress(OSError):
                    os.close(file)
                raise
            self._file = file
            return self

    def release(self) -> None:
        """Let others have it; does nothing when it is not held."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):  # Windows does not unlink open files; a record left behind is recognised
                self.path.unlink(missing_ok=True)
            os.close(file)

    def sweep(self) -> None:
        """Remove the lock file if its owner was killed before it did; does nothing while it is held."""
        if self.path.exists():
            with suppress(OutputError, OSError):
                self.acquire().release()

    def _lock(self, file: int) -> bool:
        """Whether the system locks files here. Raises OutputError when another process has this one locked."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(_owner(file)) from None
        except OSError:  # some network file systems
            return False
        return True

    def _refusal(self, owner: dict[str, Any]) -> OutputError:
        pid, host, since = (owner.get(key, "?") for key in ("pid", "host", "since"))
        line = f"{self.what} is being written by process {pid} on {host}, since {since}"
        if host not in ("?", socket.gethostname()):
            line += f"; if that has ended, delete {self.path}"
        return OutputError(line)

    def __enter__(self) -> RunLock:
        return self if self._file is not None else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)


def _is_named(file: int, path: Path) -> bool:
    """Whether the open file still is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(file: int) -> dict[str, Any]:
    """The record in a lock file; empty when there is none, or a torn one."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        record = json.loads(os.read(file, 4096))
    except (ValueError, OSError):
        return {}
    return record if isinstance(record, dict) else {}


def _alive(owner: dict[str, Any], system_lock: bool) -> bool:
    """Whether the owner of a lock may still be at work."""
    if owner.get("host") != socket.gethostname():
        return True  # it cannot be asked
    if system_lock or owner.get("boot") != _boot():
        return False  # it would hold the system's lock; it ended with the machine
    pid = owner.get("pid")
    if not isinstance(pid, int) or not _runs(pid):
        return False
    return owner.get("started") == _started(pid)


def _runs(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot(),
        "started": _started(os.getpid()),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    }


def _boot() -> str | None:
    """What tells one boot of this machine from the next; None where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Start time of a process in the kernel's ticks since boot; None where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
