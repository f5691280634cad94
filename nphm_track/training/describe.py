"""Shapes, memory and FLOP of the paper's networks, by torch's meta device: nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nphm_track.errors import InputError
from nphm_track.geometry.vit import DenseVit, Vit, VitConfig
from nphm_track.heads.config import MONONPHM
from nphm_track.regressor.image_regressor import ImageRegressor, ImageRegressorConfig, pooled
from nphm_track.regressor.landmark_regressor import RegressorConfig
from nphm_track.training.dense_task import DenseData
from nphm_track.training.pix2nphm_task import Pix2NphmData
from nphm_track.training.recipe import Recipe, parse

STATE_BYTES = 20
"""Of a trained parameter: weight, gradient, two moments of Adam and the averaged weight, float32."""


@dataclass(frozen=True)
class Part:
    """One network in a step.

    Attributes:
        shapes: of input and output, for people.
        parameters, trained: how many, and how many of them are trained.
        flop: of one sample, forward and (where it is trained) backward.
        kept: bytes of activations of one sample that the backward pass needs, in the step's precision.
    """

    name: str
    shapes: str
    parameters: int
    trained: int
    flop: float
    kept: int


@dataclass(frozen=True)
class Cost:
    """What a recipe takes."""

    parts: tuple[Part, ...]
    batch: int
    steps: int

    def memory(self) -> float:
        """Bytes on one GPU that holds the whole batch, without what torch and the head model take."""
        state = sum(p.trained * STATE_BYTES + (p.parameters - p.trained) * 4 for p in self.parts)
        return state + self.batch * sum(p.kept for p in self.parts)

    def flop(self) -> float:
        """Of one step."""
        return self.batch * sum(p.flop for p in self.parts)


def describe(recipe: Recipe) -> Cost:
    """The cost of an E_n, E_p or Pix2NPHM recipe. Raises InputError for a recipe of another task."""
    half = recipe.trainer.precision == "bfloat16"
    if recipe.task == "dense":
        dense = parse(DenseData, recipe.data)
        return Cost((_dense(dense.config(), half),), dense.batch, recipe.trainer.steps)
    if recipe.task == "pix2nphm":
        data = parse(Pix2NphmData, recipe.data)
        encoders = (_encoder(replace(VitConfig(), target=target), half) for target in ("normals", "points"))
        return Cost((*encoders, _regressor(data, half)), data.batch, recipe.trainer.steps)
    raise InputError(f"'{recipe.task}' is no recipe of the paper's size: dense or pix2nphm")


def table(costs: Mapping[str, Cost], tflops: float, gpus: int) -> str:
    """Markdown: a row for each network, and for each recipe its step and its whole run."""
    lines = [
        "| recipe | network | shapes | parameters | GFLOP a sample | activations a sample |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        for p in cost.parts:
            trained = "" if p.trained else " (frozen)"
            row = (name, p.name + trained, p.shapes, f"{p.parameters / 1e6:.1f} M", f"{p.flop / 1e9:.0f}")
            lines.append(f"| {' | '.join(row)} | {p.kept / 2**20:.0f} MiB |")
    lines += [
        "",
        f"| recipe | batch | memory | TFLOP a step | seconds at {tflops:g} TFLOP/s | steps | days | on {gpus} GPUs |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, cost in costs.items():
        seconds = cost.flop() / (tflops * 1e12)
        days = seconds * cost.steps / 86400
        row = (name, str(cost.batch), f"{cost.memory() / 2**30:.0f} GiB", f"{cost.flop() / 1e12:.1f}", f"{seconds:.2f}")
        lines.append(f"| {' | '.join(row)} | {cost.steps:,} | {days:.1f} | {days / gpus:.1f} |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _dense(c: VitConfig, half: bool) -> Part:
    with torch.device("meta"):
        net = DenseVit(c)
        crop = torch.zeros(1, 3, c.size, c.size)
    shapes = f"{c.size} px, {c.grid**2} tokens of {c.width}, map of {c.out} px"
    flop, kept = measure(net, lambda: net(crop)[0], half)
    return Part(f"ViT and decoder, {c.target}", shapes, count(net), count(net), flop, kept)


def _encoder(c: VitConfig, half: bool) -> Part:
    with torch.device("meta"):
        net = Vit(c).requires_grad_(False)
        crop = torch.zeros(1, 3, c.size, c.size)
    flop, _ = measure(net, lambda: net(crop), half)
    return Part(f"ViT, {c.target}", f"{c.size} px, {c.grid**2} tokens of {c.width}", count(net), 0, flop, 0)


def _regressor(data: Pix2NphmData, half: bool) -> Part:
    c, vit = MONONPHM, VitConfig()
    groups = tuple((k,) for k in range(24))
    sizes = RegressorConfig(
        c.global_dim, c.local_dim, c.n_members, c.expression_dim, groups, data.width, data.layers, data.heads
    )
    config = ImageRegressorConfig(
        sizes, vit.width, data.encoders, data.landmarks, 0, 0, field_of_view=True, grid=vit.grid, pool=data.pool,
        recompute=data.recompute,
    )  # fmt: skip
    with torch.device("meta"):
        net = ImageRegressor(config).train()
        tokens = torch.zeros(1, vit.grid**2, vit.width)
        camera = torch.zeros(1, 1, data.width)

    def forward() -> Tensor:
        seen = [net.merge[e](pooled(tokens, vit.grid, data.pool)) + net.place[e] for e in data.encoders]
        return net.codes(net.read_out(torch.cat([*seen, camera], 1)))[0]

    flop, kept = measure(net, forward, half)
    read = len(data.encoders) * (vit.grid // data.pool) ** 2 + c.n_members + 1
    shapes = f"{read + 1} tokens of {data.width}, codes of {c.identity_dim} + {c.expression_dim}"
    return Part("regressor", shapes, count(net), count(net), flop, kept)


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in net.parameters())


def measure(net: nn.Module, forward: Callable[[], Tensor], half: bool) -> tuple[float, int]:
    """FLOP of a forward and, where ``net`` is trained, backward pass, and bytes that autograd keeps between them.

    Meta tensors know no autocast: what is kept is counted in half of its bytes for ``half``.
    """
    kept: dict[int, int] = {}
    own = {id(p) for p in net.parameters()}

    def keep(x: Tensor) -> Tensor:
        base = x if x._base is None else x._base
        if id(base) not in own:
            kept[id(base)] = base.numel() * base.element_size()
            alive.append(base)
        return x

    alive: list[Tensor] = []  # an id names a tensor for as long as it lives
    trained = any(p.requires_grad for p in net.parameters())
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = forward()
        if trained:
            out.sum().backward()
    return float(counter.get_total_flops()), sum(kept.values()) // (2 if half else 1)
