"""Settings of the process that the networks' speed depends on."""

from __future__ import annotations

import torch


def prepare_torch(threads: int | None = None) -> None:
    """Call before the process's first torch operation.

    Denormal numbers, which the head network's steep Softplus produces in masses, are flushed to zero: they make it
    5-7 times slower, and worker threads inherit the setting only if it precedes them. ``threads`` bounds the threads
    of one operation.
    """
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)
