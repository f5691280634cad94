"""Arrays of a pickle, read without running what it says.

Model files of the field are pickled dictionaries of numpy arrays, scipy's sparse matrices and chumpy's wrappers of
arrays. Nothing else is built from one: of a class or function that is not named here reading ends with ValueError.
"""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.files.reading import open_regular

MULTIARRAY: Any = import_module("numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray")
LARGEST = 2 << 30
"""Bytes of a file."""
SPARSE = {"csc_matrix": 1, "csc_array": 1, "csr_matrix": 0, "csr_array": 0}
"""The axis that is compressed."""


class _Stored:
    """In place of an object: its class and what was stored of it."""

    kind = ""

    def __init__(self, *args: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"a {self.kind} in a form that is not known")
        self.state = state


def _rebuilt(stored: type, base: type, state: object) -> Any:
    """In place of copyreg's function of old protocols."""
    if not (isinstance(stored, type) and issubclass(stored, _Stored)):
        raise ValueError("it holds more than arrays")
    return stored()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        place = module.partition(".")[0]
        if place == "numpy":
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
            if name in ("_reconstruct", "scalar"):
                return getattr(MULTIARRAY, name)
        if (place == "scipy" and name in SPARSE) or place == "chumpy":
            return type(name, (_Stored,), {"kind": name})
        if module in ("copy_reg", "copyreg") and name == "_reconstructor":
            return _rebuilt
        if (module, name) in (("builtins", "object"), ("__builtin__", "object")):
            return object
        if (module, name) == ("_codecs", "encode"):  # how later Pythons store bytes in old protocols
            return lambda text, coding: text.encode("latin1")
        raise ValueError(f"it holds {module}.{name}, and is not opened")


def read_pickled_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a pickled dictionary by name, sparse ones filled out; values that are no numbers are left out.

    Raises OSError, ValueError and what damaged pickles raise.
    """
    with open_regular(path, LARGEST) as file:
        content = _Arrays(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    arrays = {str(name): _array(value) for name, value in content.items() if not isinstance(value, str | bytes)}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}


def _array(value: object) -> NDArray[Any]:
    if not isinstance(value, _Stored):
        return np.asarray(value) if isinstance(value, np.ndarray | int | float | list) else np.array(None)
    state = value.state
    if value.kind in SPARSE:
        return _filled(state, SPARSE[value.kind])
    if "x" in state:  # chumpy.Ch
        return _array(state["x"])
    if "a" in state and "idxs" in state:  # chumpy.Select
        picked = _array(state["a"]).ravel()[_array(state["idxs"])]
        return picked.reshape(state["preferred_shape"]) if "preferred_shape" in state else picked
    return np.array(None)


def _filled(state: dict[str, Any], axis: int) -> NDArray[Any]:
    """A compressed sparse matrix as an array."""
    shape = tuple(int(n) for n in state["_shape"])
    data, index, start = (np.asarray(state[name]) for name in ("data", "indices", "indptr"))
    if len(shape) != 2 or shape[0] * shape[1] * 8 > LARGEST or len(start) != shape[axis] + 1:
        raise ValueError(f"a sparse matrix of shape {shape} that does not fit its own numbers")
    out = np.zeros(shape)
    along = np.repeat(np.arange(shape[axis]), np.diff(start))
    np.add.at(out, (index, along) if axis else (along, index), data)
    return out
