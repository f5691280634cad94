"""A small training run for test_processes.py: ``python worker.py FOLDER [STOP]``, alone or under torchrun.

With STOP the last process is asked to end in that step; without, a run goes on from its checkpoint.

Exit status 3: the process group outlived the run. Its threads abort now and then when the interpreter ends before them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nphm_track.training.recipe import TrainerConfig
from nphm_track.training.trainer import Share, Trainer

STOP = int(sys.argv[2]) if len(sys.argv) > 2 else None


class Regression:
    """Linear regression on rows that the generator draws for the global batch."""

    share = Share()

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        if step == STOP and self.share.rank == self.share.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        x = self.share.of(torch.randn(8, 4, generator=generator))
        y = x.sum(1, keepdim=True)
        return {"square": (self.model(x) - y).square().mean(), "size": self.model(x).abs().mean()}

    def evaluate(self, model: Any) -> dict[str, float]:
        return {"bias": float(model[2].bias)}

    def config(self) -> dict[str, Any]:
        return {"kind": "regression"}


def check_threads() -> None:
    """Ends the process with status 3 while threads of the process group run (seen on Linux only)."""
    if any("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm")):
        os._exit(3)


if __name__ == "__main__":
    atexit.register(check_threads)  # before the trainer registers the end of its group, so called after that
    settings = TrainerConfig(steps=30, learning_rate=0.02, warmup=3, evaluate_every=10)
    Trainer(Regression(), settings, {"square": 1.0, "size": 0.1}, sys.argv[1]).run(resume=STOP is None)
