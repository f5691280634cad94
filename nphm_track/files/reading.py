"""One door for what comes from outside: calibrations, codes, scans, points, lists, recipes, run folders, models.

Whatever is read here is a regular file of bounded size; JSON has a bounded depth and finite numbers; arrays are no
larger than the file can hold, and none is unpickled. ``reading`` turns whatever goes wrong on the way into one line.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError, NphmTrackError

SIDE_FILE = 64 << 20
"""Bytes of a side file (a calibration, a list, points), many times what any needs."""
ARRAYS = 16 << 30
"""Bytes of an array, decompressed."""
DIGITS = 100
"""Of a whole number in JSON; longer ones fit no type."""


@contextmanager
def reading(path: str | Path, what: str, error: type[NphmTrackError] = InputError) -> Iterator[None]:
    """Around reading and understanding ``path``: whatever fails becomes ``error``, one line that begins with the path.

    Parsers of foreign files fail in every way there is. ``what`` says what was looked for, for example "a calibration";
    errors of this package pass.
    """
    try:
        yield
    except NphmTrackError:
        raise
    except OSError as failure:
        raise error(f"{path} cannot be read ({failure.strerror or failure})") from None
    except KeyError as failure:
        raise error(f"{path} is not {what}: {failure.args[0] if failure.args else 'something'} is missing") from None
    except Exception as failure:
        raise error(f"{path} is not {what} ({_reason(failure)})") from None


def _reason(failure: Exception) -> str:
    if isinstance(failure, RecursionError):
        return "it is nested too deeply"
    if isinstance(failure, MemoryError):
        return "it is too large"
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def open_regular(path: str | Path, limit: int) -> IO[bytes]:
    """A regular file of at most ``limit`` bytes; devices, pipes and folders are refused before anything is read.

    Raises OSError or ValueError.
    """
    file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")  # noqa: SIM115
    state = os.fstat(file.fileno())
    problem = ""
    if not stat.S_ISREG(state.st_mode):
        problem = "it is a folder" if stat.S_ISDIR(state.st_mode) else "it is no regular file"
    elif state.st_size > limit:
        problem = f"it is larger than {limit >> 20} MB"
    if problem:
        file.close()
        raise ValueError(problem)
    return file


def read_bytes(path: str | Path, limit: int = SIDE_FILE) -> bytes:
    """Contents of a regular file. Raises OSError or ValueError."""
    with open_regular(path, limit) as file:
        return file.read(limit)


def read_text(path: str | Path, limit: int = SIDE_FILE) -> str:
    """Contents of a text file in UTF-8, with or without its mark. Raises OSError or ValueError."""
    return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: str | Path, limit: int = SIDE_FILE, *, finite: bool = True) -> Any:
    """A JSON file. Without ``finite``, NaN and Infinity pass. Raises OSError, ValueError or RecursionError."""
    return parse_json(read_text(path, limit), finite=finite)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """JSON whose numbers fit a float. Raises ValueError or RecursionError."""

    def number(literal: str) -> float:
        value = float(literal)
        if finite and not math.isfinite(value):
            raise ValueError(f"{literal[:20]} is not a finite number")
        return value

    def whole(literal: str) -> int:
        if len(literal) > DIGITS:
            raise ValueError(f"a number of {len(literal)} digits")
        return int(literal)

    return json.loads(text, parse_float=number, parse_int=whole, parse_constant=number)


def read_toml(path: str | Path, limit: int = SIDE_FILE) -> dict[str, Any]:
    """A TOML file. Raises OSError, ValueError or RecursionError."""
    return tomllib.loads(read_text(path, limit))


def read_npy(path: str | Path, limit: int = SIDE_FILE) -> NDArray[Any]:
    """The array of an ``.npy`` file. Raises OSError or ValueError."""
    with open_regular(path, limit) as file:
        return _array(file, os.fstat(file.fileno()).st_size)


class Arrays:
    """The arrays of an ``.npz`` file, each read when it is asked for. A context manager.

    Raises OSError, ValueError or zipfile.BadZipFile when the file is none.
    """

    def __init__(self, path: str | Path, limit: int = ARRAYS) -> None:
        self._file = open_regular(path, limit)
        self._limit = limit
        try:
            self._archive = zipfile.ZipFile(self._file)
        except BaseException:
            self._file.close()
            raise
        self._members = {info.filename.removesuffix(".npy"): info for info in self._archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Raises KeyError when there is none of that name, and what damaged files raise."""
        info = self._members[name]
        if info.file_size > self._limit:
            raise ValueError(f"{name} is larger than {self._limit >> 20} MB")
        with self._archive.open(info) as member:
            return _array(member, info.file_size)

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """The array in ``file``, whose header may not claim more than its ``size`` bytes."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"arrays of version {version} are not read")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject or any(n < 0 for n in shape):
        raise ValueError("it holds no plain numbers")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise ValueError(f"it claims {claimed} bytes and holds {size}")
    data = bytearray()
    while len(data) < claimed:
        block = file.read(min(claimed - len(data), 1 << 24))
        if not block:
            raise ValueError("it ends early")
        data += block
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def finite_array(values: Any, shape: tuple[int | None, ...], dtype: Any = np.float64) -> NDArray[Any]:
    """Numbers of that shape (None is any length). Raises ValueError when they are not, or one is not finite."""
    array = np.asarray(values, dtype)
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = [("any" if n is None else n) for n in shape]
        raise ValueError(f"shape {list(array.shape)} instead of {wanted}")
    if not np.isfinite(array).all():
        raise ValueError("not all numbers are finite")
    return array
