"""Settings of the process that the networks' speed depends on."""

from __future__ import annotations

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


def usable_device(name: str) -> torch.device:
    """The torch device of that name. Raises InputError when this machine cannot compute on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here ({str(error).splitlines()[0]})") from None
    return device
