"""Files and folders written where the user says: whole under their name, and in nobody's way until they are."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    The place is beside the target, so that what is written refers to its neighbours as it will later, under a name that
    nobody else uses. What was called ``target`` before stays until the block ends. Raises OutputError when the place
    cannot be moved, or its folder cannot be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error})") from None
    mark = secrets.token_hex(4)
    place = target.with_name(f".{target.stem[:40]}.{mark}.partial{target.suffix}")
    old = target.with_name(f".{target.stem[:40]}.{mark}.old")
    try:
        yield place
        try:
            _move(place, target, old)
        except OSError as error:
            raise OutputError(f"cannot write {target} ({error.strerror or error})") from None
    finally:
        _remove(place)
        _remove(old)


def _move(place: Path, target: Path, old: Path) -> None:
    """Give ``place`` its name. A folder cannot be replaced in one step: an older one steps aside first."""
    if not place.is_dir():
        os.replace(place, target)
        return
    for _ in range(100):
        try:
            os.replace(place, target)
            return
        except OSError as error:
            older = error.errno in (errno.ENOTEMPTY, errno.EEXIST) or target.is_symlink()
            if not older:
                raise
        with suppress(FileNotFoundError):  # another process has just moved it
            os.replace(target, old)
        _remove(old)
    raise OutputError(f"cannot write {target}: other processes keep writing it")


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
