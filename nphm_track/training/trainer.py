"""The one trainer behind every model: optimiser, schedule, averaged weights, checkpoints, logs, held-out evaluation."""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn

from nphm_track.errors import END_SIGNALS, InputError
from nphm_track.models import write_weights
from nphm_track.training.muon import Muon
from nphm_track.training.recipe import TrainerConfig

CHECKPOINT = "checkpoint.pt"
MODEL = "model.safetensors"


class Share(NamedTuple):
    """This process's part of a global batch: every ``world``-th row from ``rank`` on."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """The part of ``rows`` [N, ...] that this process works on."""
        return rows[self.rank :: self.world]


class Task(Protocol):
    """What a task gives the trainer: a model, losses of a step, held-out metrics and the configuration to store.

    The trainer sets ``share`` and moves the model to its device. A task draws the rows of the global batch and works on
    its share of them; losses are means over rows, so that the mean over processes is the loss of the global batch.
    """

    share: Share

    @property
    def model(self) -> nn.Module: ...

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Named terms of one step, without their weights; everything random comes from ``generator``.

        A step may leave terms out; their logged means are over the steps that had them.
        """
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]: ...

    def config(self) -> dict[str, Any]: ...


def join_processes() -> Share:
    """The share of this process when it was started by torchrun (NCCL with CUDA, else gloo); the whole otherwise."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Share()
    if not distributed.is_initialized():
        # Imported (by optimisers) after the group began, its default arguments would keep the group and its threads.
        import torch.distributed.nn.functional

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)  # left to the interpreter's end, its threads may abort
    return Share(distributed.get_rank(), world)


def learning_rate(config: TrainerConfig, step: int, seconds: float = 0.0) -> float:
    """Linear warm-up, then a cosine down to ``final_fraction`` over the steps, or over the time if that ends first."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.minutes:
        progress = max(progress, seconds / (60 * config.minutes))
    progress = min(1.0, progress)
    low = config.final_fraction
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimisers(model: nn.Module, config: TrainerConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of linear layers when it has a learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    if not config.matrix_learning_rate or not matrices:
        return [torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return [
        torch.optim.AdamW(rest, lr=config.learning_rate, weight_decay=config.weight_decay),
        Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay),
    ]


class Trainer:
    """Runs a :class:`Task` in ``folder``; a run killed at any moment continues from its newest checkpoint.

    Files: ``checkpoint.pt`` (weights, averaged weights, optimiser, step; read with ``weights_only``),
    ``model.safetensors`` (the averaged weights as released), ``log.jsonl`` and TensorBoard events when tensorboard is
    installed.
    """

    def __init__(self, task: Task, config: TrainerConfig, weights: Mapping[str, float], folder: str | Path) -> None:
        """``weights``: of each loss of the task, as in a recipe's ``[losses]``."""
        self.task, self.config, self.weights, self.folder = task, config, weights, Path(folder)
        self.share = task.share = join_processes()
        self.device = torch.device(config.device)
        self.model = task.model.to(self.device)
        self.averaged = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimisers = build_optimisers(self.model, config)
        self._peaks = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.step = 0
        self.seconds = 0.0
        self._asked = 0
        self._stepping = False

    def run(self, *, resume: bool = False) -> dict[str, float]:
        """Train to the end; returns the last held-out metrics.

        Raises InputError when the folder holds a checkpoint and ``resume`` is off, or one that does not fit.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / CHECKPOINT).exists():
            if not resume:
                raise InputError(f"{self.folder} holds a checkpoint: go on with --resume or choose another folder")
            self.restore()
        metrics: dict[str, float] = {}
        if self.finished:
            return self.task.evaluate(self._averaged_model())
        started, saved = time.monotonic(), time.monotonic()
        board = None if self.share.rank else _tensorboard(self.folder)
        logged: dict[str, list[float]] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not _is_terminal() or self.share.rank > 0) as bar, self._ending_well():
            job = bar.add_task("training", total=self.config.steps, completed=self.step)
            while not self.finished:
                terms = self.train_step()
                now = time.monotonic()
                self.seconds, asked = self._agreed(self.seconds + now - started, self._asked)
                started = now
                bar.update(job, completed=self.step, description=f"training  loss {terms['total']:.4f}")
                last = self.finished
                if asked and not last:
                    raise _Asked(asked)
                if self.share.rank:
                    continue
                for name, value in terms.items():
                    logged.setdefault(name, []).append(value)
                if self.step % 100 == 0 or last:
                    self._log(board, {k: sum(v) / len(v) for k, v in logged.items()})
                    logged = {}
                if self.step % self.config.evaluate_every == 0 or last:
                    metrics = self.task.evaluate(self._averaged_model())
                    self._log(board, {f"heldout/{k}": v for k, v in metrics.items()})
                if last or time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    saved = time.monotonic()
                    self.save(metrics)
        if self.share.world > 1:
            distributed.barrier()  # the others wait for the first one's last metrics: leaving alone may abort
        return metrics

    def _agreed(self, seconds: float, asked: int) -> tuple[float, int]:
        """The first process's clock, and the signal that any was sent, so that all of them end at the same step."""
        if self.share.world == 1:
            return seconds, asked
        known = [0.0 if self.share.rank else seconds, float(asked)]
        shared = torch.tensor(known, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return float(shared[0]), int(shared[1])

    @property
    def finished(self) -> bool:
        minutes = self.config.minutes
        return self.step >= self.config.steps or (minutes is not None and self.seconds >= 60 * minutes)

    @contextmanager
    def _ending_well(self) -> Iterator[None]:
        """Requests to end leave a checkpoint of the last whole step; then the signal takes its usual course.

        The first is heard at the end of a step, by all processes; one more takes its course at once.
        """

        def ask(number: int, frame: object) -> None:
            if self._asked:
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self._asked = number

        main = threading.current_thread() is threading.main_thread()
        heard = [n for n in END_SIGNALS if main and signal.getsignal(n) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        except (KeyboardInterrupt, _Asked) as error:
            if not self.share.rank and not self._stepping:
                self.save({})
            asked = error.args[0] if isinstance(error, _Asked) else 0
            if not asked:
                raise
        else:
            asked = 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked)
            raise KeyboardInterrupt  # for a signal that nobody else hears

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the values of the terms and their weighted ``total``."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        self.model.train()
        share = learning_rate(self.config, self.step, self.seconds) / self.config.learning_rate
        for optimiser, peak in zip(self.optimisers, self._peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * share
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            terms = self.task.losses(self.step, generator)
        if unknown := terms.keys() - self.weights.keys():
            raise InputError(f"recipe: [losses] has no weight for {', '.join(sorted(unknown))}")
        total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        self.model.zero_grad(set_to_none=True)
        total.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self._stepping = True
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = self.model.state_dict()
            names = [k for k, v in state.items() if v.is_floating_point()]
            torch._foreach_lerp_([self.averaged[k] for k in names], [state[k] for k in names], 1 - decay)
            for name in state.keys() - set(names):
                self.averaged[name].copy_(state[name])
        self.step += 1
        self._stepping = False
        values = torch.stack([total, *terms.values()]).detach()
        if self.share.world > 1:
            distributed.all_reduce(values)
            values /= self.share.world
        return dict(zip(("total", *terms), values.tolist(), strict=True))

    def _average_gradients(self) -> None:
        """Mean of the gradients over all processes, in one message."""
        if self.share.world == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.share.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self, metrics: dict[str, float]) -> None:
        """Checkpoint and released weights, both atomic."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        partial = self.folder / (CHECKPOINT + ".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)
        training = {"steps": self.step, "hours": self.seconds / 3600, **metrics}
        write_weights(self.folder / MODEL, self.averaged, {**self.task.config(), "training": training})

    def restore(self) -> None:
        """Continue from the checkpoint. Raises InputError when it is damaged or another model's."""
        try:
            state = torch.load(self.folder / CHECKPOINT, weights_only=True, map_location=self.device)
            self.model.load_state_dict(state["model"])
        except Exception as error:  # torch raises anything on a damaged file
            raise InputError(f"{self.folder / CHECKPOINT} cannot be continued: {str(error).splitlines()[0]}") from None
        self.averaged = state["averaged"]
        for optimiser, own in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(own)
        self.step, self.seconds = state["step"], state["seconds"]

    def _averaged_model(self) -> nn.Module:
        import copy

        model = copy.deepcopy(self.model)
        model.load_state_dict(self.averaged)
        return model.eval()

    def _log(self, board: Any, values: dict[str, float]) -> None:
        row = {"step": self.step, "lr": learning_rate(self.config, self.step, self.seconds), **values}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({k: float(f"{v:.6g}") for k, v in row.items()}) + "\n")
        if board is not None:
            for name, value in values.items():
                board.add_scalar(name, value, self.step)


class _Asked(Exception):
    """A signal asked the run to end."""


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _is_terminal() -> bool:
    import sys

    return sys.stderr.isatty()
