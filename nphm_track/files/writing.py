"""Files and folders written where the user says: whole under their name, and in nobody's way until they are."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nphm_track.errors import OutputError


def check_free(target: Path, overwrite: bool) -> None:
    """Raises OutputError when a file is in the way that this program did not make and may not replace."""
    if target.is_dir():
        raise OutputError(f"{target} is a folder; choose another name with -o")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} exists; choose another name with -o, or pass --overwrite to replace it")


@contextmanager
def placing(target: Path) -> Iterator[Path]:
    """A place to write a file or folder to, which gets the name ``target`` when the block ends well.

    The place is in a new folder beside the target, so that it takes no name anybody else uses. What was called
    ``target`` before is gone then; until then it is as it was. Raises OutputError when it cannot be made or moved.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error})") from None
    try:
        place = room / target.name
        yield place
        try:
            _move(place, target, aside=room)
        except OSError as error:
            raise OutputError(f"cannot write {target} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def final_name(place: Path) -> Path:
    """What a place that ``placing`` gave will be called: relative paths written there start from it."""
    return place.parent.parent / place.name


def _move(place: Path, target: Path, aside: Path) -> None:
    """Give ``place`` its name. A folder cannot be replaced in one step: an older one steps aside first."""
    for attempt in range(100):
        try:
            os.replace(place, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR) or not target.is_dir():
                raise
        try:
            os.replace(target, aside / f"old{attempt}")
        except FileNotFoundError:
            continue  # another process has just moved it
    raise OutputError(f"cannot write {target}: other processes keep writing it")
