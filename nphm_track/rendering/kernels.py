"""Compiled inner loops: numba's ``njit`` with a cache on disk that can be missing, unwritable or damaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


class _ForgivingCache(FunctionCache):
    """numba's cache, which saves a compilation and must never cost a run: what cannot be read is compiled again."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a file cut short by a power cut raises whatever pickle makes of it
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: compile a function with numba, free of the interpreter lock, and keep the result where possible.

    The result is kept beside the source, in the user's cache folder or in ``NUMBA_CACHE_DIR``. An installation that
    cannot be written, used by someone without a home folder, has no such place: there it is compiled in each process.

    Args:
        options: of ``numba.njit``.
    """

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # numba's word for: no place for a cache
            compiled._cache = _ForgivingCache(function)
        return compiled

    return compile
