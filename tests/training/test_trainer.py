"""The trainer on a quadratic bowl: nothing about a run may depend on where it was interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nphm_track.errors import InputError
from nphm_track.models import read_weights
from nphm_track.training import trainer as T
from nphm_track.training.recipe import TrainerConfig

GOAL = torch.tensor([[1.0, -2.0, 0.5]])
EVERY_STEP = 1e-9  # minutes between checkpoints
WEIGHTS = {"error": 1.0, "bias": 0.5, "flat": 2.0, "rare": 0.0, "seen": 0.1}


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(T, "_tensorboard", lambda folder: None)


class Bowl:
    """Noisy quadratic; stops like a killed process after ``stop`` steps."""

    def __init__(self, stop: int | None = None, poison: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Linear(3, 1)
        self.model.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.stop, self.poison = stop, poison
        self.evaluated: list[dict[str, Tensor]] = []

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        if step == self.stop:
            raise KeyboardInterrupt
        assert self.model.training
        self.model.seen += 1
        noise = torch.randn(GOAL.shape, generator=generator)
        error = (self.model.weight - GOAL + 0.1 * noise).square().sum()
        bias = self.model.bias.square().sum()
        return {"error": error * (torch.nan if step == self.poison else 1.0), "bias": bias}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        assert not model.training
        self.evaluated.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"distance": float((model.weight - GOAL).norm())}

    def config(self) -> dict[str, Any]:
        return {"kind": "bowl"}


def settings(**changes: Any) -> TrainerConfig:
    values = {"steps": 40, "learning_rate": 0.2, "warmup": 5, "evaluate_every": 20, "checkpoint_minutes": EVERY_STEP}
    return TrainerConfig(**{**values, **changes})


@pytest.mark.parametrize("muon", [0.0, 1.0])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, muon: float) -> None:
    config = settings(matrix_learning_rate=muon)
    whole = T.Trainer(Bowl(), config, WEIGHTS, tmp_path / "whole")
    metrics = whole.run()
    for stop in (13, 27):
        with pytest.raises(KeyboardInterrupt):
            T.Trainer(Bowl(stop), config, WEIGHTS, tmp_path / "broken").run(resume=stop == 27)
    resumed = T.Trainer(Bowl(), config, WEIGHTS, tmp_path / "broken")
    assert resumed.run(resume=True) == metrics
    assert resumed.step == 40
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
        assert torch.equal(resumed.averaged[name], whole.averaged[name])
    files = [read_weights(tmp_path / f / T.MODEL)[0] for f in ("whole", "broken")]
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    assert metrics["distance"] < 1, "the bowl was not descended"


def test_resuming_starts_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        T.Trainer(Bowl(stop=13), settings(), WEIGHTS, tmp_path).run()
    task = Bowl()
    trainer = T.Trainer(task, settings(), WEIGHTS, tmp_path)
    trainer.restore()
    assert trainer.step == 13
    assert int(task.model.seen) == 13


def test_a_signal_is_heard_at_the_end_of_a_step(tmp_path: Path) -> None:
    class Asked(Bowl):
        def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
            if step == 7:
                signal.raise_signal(signal.SIGTERM)
            return super().losses(step, generator)

    ends: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            T.Trainer(Asked(), settings(checkpoint_minutes=10), WEIGHTS, tmp_path).run()
        assert ends == [signal.SIGTERM]  # whoever heard it before hears it once the checkpoint is there
    finally:
        signal.signal(signal.SIGTERM, before)
    trainer = T.Trainer(Bowl(), settings(), WEIGHTS, tmp_path)
    trainer.restore()
    assert trainer.step == 8


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    T.Trainer(Bowl(), settings(steps=3), WEIGHTS, tmp_path).run()
    before = (tmp_path / T.CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match="--resume"):
        T.Trainer(Bowl(), settings(steps=3), WEIGHTS, tmp_path).run()
    assert (tmp_path / T.CHECKPOINT).read_bytes() == before


def test_averaged_weights_are_evaluated_and_released(tmp_path: Path) -> None:
    task = Bowl()
    trainer = T.Trainer(task, settings(ema=0.5, steps=6, evaluate_every=6), WEIGHTS, tmp_path)
    averaged = task.model.weight.detach().clone()
    for step in range(6):
        trainer.train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        averaged = decay * averaged + (1 - decay) * task.model.weight.detach()
    torch.testing.assert_close(trainer.averaged["weight"], averaged)
    assert not torch.allclose(averaged, task.model.weight)
    assert int(trainer.averaged["seen"]) == 6
    again = Bowl()
    T.Trainer(again, settings(ema=0.5, steps=6, evaluate_every=6), WEIGHTS, tmp_path / "run").run()
    tensors, config = read_weights(tmp_path / "run" / T.MODEL)
    torch.testing.assert_close(tensors["weight"], averaged)
    torch.testing.assert_close(again.evaluated[-1]["weight"], averaged)
    assert config["kind"] == "bowl" and config["training"]["steps"] == 6
    assert config["training"]["distance"] == pytest.approx(float((averaged - GOAL).norm()), rel=1e-5)


def test_a_loss_without_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[losses\] has no weight for bias"):
        T.Trainer(Bowl(), settings(), {"error": 1.0}, tmp_path).train_step()


def test_a_step_with_an_infinite_gradient_changes_nothing(tmp_path: Path) -> None:
    task = Bowl(poison=2)
    trainer = T.Trainer(task, settings(), WEIGHTS, tmp_path)
    for _ in range(2):
        trainer.train_step()
    before = task.model.weight.detach().clone()
    trainer.train_step()
    assert torch.equal(task.model.weight, before)
    trainer.train_step()
    assert task.model.weight.isfinite().all()


def test_the_log_holds_mean_terms_and_held_out_metrics(tmp_path: Path) -> None:
    class Constant(Bowl):
        def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
            terms = {"flat": self.model.weight.sum() * 0 + 3.0}
            return terms if step % 3 else {**terms, "rare": torch.tensor(5.0)}

    T.Trainer(Constant(), settings(steps=150, evaluate_every=150), WEIGHTS, tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    terms = [row for row in rows if "total" in row]
    assert [(row["step"], row["flat"], row["total"]) for row in terms] == [(100, 3.0, 6.0), (150, 3.0, 6.0)]
    assert [row["rare"] for row in terms] == [5.0, 5.0]  # over the steps that had it
    assert rows[-1]["step"] == 150 and rows[-1]["heldout/distance"] > 0


def test_muon_steps_the_matrices_of_linear_layers_only() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    adamw, muon = T.build_optimisers(model, settings(matrix_learning_rate=0.01))
    assert [p is model[0].weight for p in muon.param_groups[0]["params"]] == [True]
    assert sum(p.numel() for p in adamw.param_groups[0]["params"]) == 4 + 8 + 20
    assert len(T.build_optimisers(model, settings())) == 1


def test_learning_rate_warms_up_and_falls_to_its_last_fraction() -> None:
    config = settings(steps=100, warmup=10, final_fraction=0.1, learning_rate=1.0)
    rates = [T.learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_the_learning_rate_follows_the_clock_when_time_ends_first() -> None:
    config = settings(steps=100, warmup=10, final_fraction=0.1, learning_rate=1.0, minutes=2.0)
    assert T.learning_rate(config, 55) == pytest.approx(0.55)  # nothing is late yet: the steps count
    assert T.learning_rate(config, 10, 60) == pytest.approx(0.55)
    assert T.learning_rate(config, 10, 120) == T.learning_rate(config, 50, 999) == pytest.approx(0.1)
    assert T.learning_rate(config, 4, 60) == 0.5  # the warm-up is counted in steps
    rates = [T.learning_rate(config, 20, s) for s in range(0, 130, 5)]
    assert all(a >= b for a, b in pairwise(rates))
    assert T.learning_rate(settings(steps=100, warmup=10, learning_rate=1.0), 10, 1e6) == 1.0


def test_minutes_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 2))
    monkeypatch.setattr(T.time, "monotonic", lambda: float(next(clock)))
    config = settings(steps=500, minutes=1.0, warmup=2, evaluate_every=500, checkpoint_minutes=10)
    task = Bowl()
    trainer = T.Trainer(task, config, WEIGHTS, tmp_path)
    metrics = trainer.run()
    assert 60 <= trainer.seconds < 70
    assert 5 < trainer.step < 40
    assert metrics["distance"] > 0 and len(task.evaluated) == 1
    assert trainer.optimisers[0].param_groups[0]["lr"] < 0.01
    _, stored = read_weights(tmp_path / T.MODEL)
    assert stored["training"]["steps"] == trainer.step
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["lr"] == pytest.approx(0.2 * config.final_fraction, rel=1e-3)
    again = T.Trainer(Bowl(), config, WEIGHTS, tmp_path)
    again.run(resume=True)
    assert again.step == trainer.step  # its time is over


class Product(Bowl):
    """The bowl by a product, whose type shows the precision."""

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        out = self.model(torch.eye(3))
        self.kind = out.dtype
        return {"error": (out[:, 0] - GOAL[0]).square().sum(), "seen": out.square().mean()}


@pytest.mark.parametrize(("precision", "kind"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_products_have_the_wanted_precision_and_weights_stay_whole(
    tmp_path: Path, precision: str, kind: torch.dtype
) -> None:
    task = Product()
    trainer = T.Trainer(task, settings(precision=precision), WEIGHTS, tmp_path)
    first = trainer.train_step()["error"]
    for _ in range(39):
        last = trainer.train_step()
    assert task.kind == kind
    assert last["error"] < 0.2 * first
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert trainer.averaged["weight"].dtype == torch.float32
