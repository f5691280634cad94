"""Settings of the process that the networks' speed depends on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nphm_track.errors import InputError


def prepare_torch(threads: int | None = None) -> None:
    """Call before the process's first torch operation.

    Denormal numbers, which the head network's steep Softplus produces in masses, are flushed to zero: they make it
    5-7 times slower, and worker threads inherit the setting only if it precedes them. ``threads`` bounds the threads
    of one operation.
    """
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """As ``prepare_torch``, but the calling thread's arithmetic is as before when it ends.

    For what is called from others' programs: their own numbers are not to change. torch's worker threads, which begin
    within, keep the setting.
    """
    flushed_before = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def usable_device(name: str) -> torch.device:
    """The torch device of that name. Raises InputError when this machine cannot compute on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here ({str(error).splitlines()[0]})") from None
    return device
