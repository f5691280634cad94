"""Speed of the head models: distances, gradients, meshes, carrying a mesh from frame to frame.

``mononphm`` has seeded random weights (its cost does not depend on them), ``nphm-small`` the released ones. Every time
is the least of several, alternating with the matrix product that it is compared with, so that other work on the machine
weighs on both; shares of the matrix product count 5.5 MFLOP a point. CPU seconds are of all threads together. Run it
with OMP_WAIT_POLICY=passive.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import speech
from benchmarks.harness import Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import TOLERANCE, MeshCarrier
from nphm_track.heads.config import MONONPHM
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical

FLOPS_PER_POINT = 5.5e6
SIDE = 1024  # of the matrices multiplied for comparison
TOLERANCES = (1e-3, 4e-3, 1e-2)
Times = tuple[float, float]
"""By wall clock, and of the CPU."""
Row = tuple[str, float, float | None, str, str]
"""What, by wall clock, by CPU time, target, note."""


def run(
    out: Out, threads: list[int] = [1, 2], points: int = 8000, rounds: int = 5, frames: int = 30,  # noqa: B006
) -> Report:  # fmt: skip
    """Rows with targets where there are some."""
    prepare_torch(max(threads))
    small = load_head_model()
    big = random_mononphm(small.mean_anchors)
    rows = [row for count in threads for row in distances(big, count, points, rounds)]
    rows += meshes(small, frames)
    return Report({"rows": rows}, [table(("", "wall clock", "CPU time", "target", "note"), rows)])


def least(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Least wall-clock and CPU seconds of each job, all taking turns."""
    times = {name: (math.inf, math.inf) for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name] = min(times[name][0], wall), min(times[name][1], cpu)
    return times


def random_mononphm(anchors: Tensor) -> NphmDecoder:
    torch.manual_seed(0)
    model = NphmDecoder(MONONPHM).eval().requires_grad_(False)
    model.mean_anchors.copy_(anchors)
    for weight in model.ensemble.weights:
        weight.mul_(math.sqrt(2))
    return model


def distances(model: NphmDecoder, threads: int, points: int, rounds: int) -> list[Row]:
    """Cost of exact and error-bounded distances near the anchors, and of gradients to the codes."""
    torch.set_num_threads(threads)
    z_id = torch.randn(model.config.identity_dim) * 0.02
    z_ex = torch.randn(model.config.expression_dim) * 0.05
    x = model.anchors(z_id)[torch.randint(0, 65, (points,))] + 0.03 * torch.randn(points, 3)
    a = torch.randn(SIDE, SIDE)
    free = [z.clone().requires_grad_() for z in (z_id, z_ex)]

    def bounded(tolerance: float) -> Callable[[], Tensor]:
        return torch.inference_mode()(lambda: model.sdf(x, z_id, z_ex, tolerance=tolerance))

    times = least(
        {
            "matmul": torch.inference_mode()(lambda: [a @ a for _ in range(4)]),
            "exact": bounded(0),
            "gradient": lambda: torch.autograd.grad(model.sdf(x, free[0], free[1]).sum(), free),
            **{f"{t:g}": bounded(t) for t in TOLERANCES},
        },
        rounds,
    )
    rate = [4 * 2 * SIDE**3 / t for t in times["matmul"]]
    share = [points * FLOPS_PER_POINT / t / r for t, r in zip(times["exact"], rate, strict=True)]
    ratio = [g / e for g, e in zip(times["gradient"], times["exact"], strict=True)]
    exact = bounded(0)()
    label = f"{threads} thread" + "s" * (threads > 1)
    rows: list[Row] = [
        (f"mononphm sdf, share of matmul rate, {label}", share[0], share[1], ">= 0.35", ""),
        (f"mononphm sdf, microseconds a point, {label}", *_scaled(times["exact"], 1e6 / points), "", ""),
        (f"forward and gradient to the codes / forward, {label}", ratio[0], ratio[1], "<= 3", ""),
    ]
    for t in TOLERANCES:
        wall, cpu = (e / b for e, b in zip(times["exact"], times[f"{t:g}"], strict=True))
        error = float((bounded(t)() - exact).abs().max())
        target = ">= 1.5" if t == max(TOLERANCES) else ""
        rows.append((f"speed-up by tolerance {t:g}, {label}", wall, cpu, target, f"largest error {error:.1e}"))
    return rows


def _scaled(times: Times, factor: float) -> Times:
    return times[0] * factor, times[1] * factor


@torch.no_grad()
def meshes(model: NphmDecoder, frames: int) -> list[Row]:
    """One person's canonical mesh, then frames of speech at 30 a second, each carried from the one before."""
    z_id = torch.zeros(model.config.identity_dim)
    extraction = least({"mesh": lambda: extract_canonical(model, z_id)}, 3)["mesh"]
    mesh = extract_canonical(model, z_id)
    carry = MeshCarrier(model, mesh, z_id)
    e = speech(np.random.default_rng(0), model.config.expression_names, np.arange(frames) / 30)
    codes = torch.from_numpy(e) @ model.expression_basis.T
    last = carry(codes[0])
    times, residuals = [], []
    for z_ex in codes[1:]:
        wall, cpu = time.perf_counter(), time.process_time()
        last = carry(z_ex, last)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        skin = last.posed.points[carry.skin]
        residuals.append((skin + model.deform(skin, z_id, z_ex)[0] - carry.canonical[carry.skin]).norm(dim=-1))
    residual = torch.stack(residuals)
    median, fastest = (tuple((1e3 * f(times, axis=0)).tolist()) for f in (np.median, np.min))
    worst = f"all vertices evaluated; largest {residual.max().item() * MODEL_UNIT * 1e3:.2f} mm"
    within = [float((residual <= k * TOLERANCE).double().mean()) for k in (1, 4)]
    return [
        (f"nphm-small canonical mesh of {len(mesh.vertices)} vertices, s", *extraction, "<= 2", ""),
        ("carrying it to the next frame, ms (median)", median[0], median[1], "<= 80", ""),
        ("carrying it to the next frame, ms (least)", fastest[0], fastest[1], "", ""),
        ("share of the skin within 0.05 mm", within[0], None, "", worst),
        ("share of the skin within 0.2 mm", within[1], None, "", ""),
    ]
