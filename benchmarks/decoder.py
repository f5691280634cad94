"""Speed of the head models: distances, gradients, meshes, carrying.

    OMP_WAIT_POLICY=passive python benchmarks/decoder.py --out bench/decoder

``mononphm`` has seeded random weights (its cost does not depend on them), ``nphm-small`` the released ones. Every
time is the best of several, alternating with the matrix product that it is compared with, so that other work on the
machine weighs on both; shares of the matrix product count 5.5 MFLOP a point. CPU seconds are of all threads together.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import machine, machine_line, save, table
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import TOLERANCE, MeshCarrier
from nphm_track.heads.config import MONONPHM
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import BOX, evaluate_grid, extract_canonical, model_field

FLOPS_PER_POINT = 5.5e6
SIDE = 1024  # of the matrices multiplied for comparison
Row = tuple[str, float, float | None, str, str]
"""What, by wall clock, by CPU time, target, note."""


def best(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least wall-clock and CPU seconds of each job, all taking turns."""
    times = {name: (math.inf, math.inf) for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name] = min(times[name][0], wall), min(times[name][1], cpu)
    return times


def big_model(anchors: Tensor) -> NphmDecoder:
    torch.manual_seed(0)
    model = NphmDecoder(MONONPHM).eval().requires_grad_(False)
    model.mean_anchors.copy_(anchors)
    for weight in model.ensemble.weights:
        weight.mul_(math.sqrt(2))
    return model


def distances(model: NphmDecoder, threads: int, points: int, rounds: int) -> tuple[list[Row], dict[str, Any]]:
    """Cost of exact and error-bounded distances near the anchors, and of gradients to the codes."""
    torch.set_num_threads(threads)
    z_id = torch.randn(model.config.identity_dim) * 0.02
    z_ex = torch.randn(model.config.expression_dim) * 0.05
    x = model.anchors(z_id)[torch.randint(0, 65, (points,))] + 0.03 * torch.randn(points, 3)
    a = torch.randn(SIDE, SIDE)
    tolerances = (1e-3, 4e-3, 1e-2)
    free = [z.clone().requires_grad_() for z in (z_id, z_ex)]

    def bounded(tolerance: float) -> Callable[[], Tensor]:
        return torch.inference_mode()(lambda: model.sdf(x, z_id, z_ex, tolerance=tolerance))

    jobs: dict[str, Callable[[], Any]] = {"matmul": torch.inference_mode()(lambda: [a @ a for _ in range(4)])}
    jobs["exact"] = bounded(0)
    jobs |= {f"tolerance {t:g}": bounded(t) for t in tolerances}
    jobs["gradient"] = lambda: torch.autograd.grad(model.sdf(x, free[0], free[1]).sum(), free)
    times = best(jobs, rounds)
    rate = [4 * 2 * SIDE**3 / t for t in times["matmul"]]
    share = [points * FLOPS_PER_POINT / t / r for t, r in zip(times["exact"], rate, strict=True)]
    ratio = [g / e for g, e in zip(times["gradient"], times["exact"], strict=True)]
    exact = bounded(0)()
    label = f"{threads} thread" + "s" * (threads > 1)
    rows: list[Row] = [
        (f"mononphm sdf, share of matmul rate, {label}", *share, ">= 0.35", ""),
        (f"mononphm sdf, microseconds a point, {label}", *(1e6 * t / points for t in times["exact"]), "", ""),
        (f"forward and gradient to the codes / forward, {label}", *ratio, "<= 3", ""),
    ]
    for t in tolerances:
        wall, cpu = (e / b for e, b in zip(times["exact"], times[f"tolerance {t:g}"], strict=True))
        error = (bounded(t)() - exact).abs().max().item()
        target = ">= 1.5" if t == max(tolerances) else ""
        rows.append((f"speed-up by tolerance {t:g}, {label}", wall, cpu, target, f"largest error {error:.1e}"))
    return rows, {"threads": threads, "seconds": times, "gflops": rate[0] / 1e9}


def grids(model: NphmDecoder, nodes: int, dense: int) -> list[Row]:
    """Sparse evaluation of the canonical head on uniform grids; the surface is compared on the ``dense`` one."""
    from scipy.spatial import cKDTree
    from skimage.measure import marching_cubes

    field = model_field(model, torch.zeros(model.config.identity_dim), None)
    axes = [np.linspace(low, high, nodes) for low, high in BOX]
    evaluations = evaluate_grid(field, axes)[2]
    axes = [np.linspace(low, high, dense) for low, high in BOX]
    everywhere = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = field(everywhere).reshape(dense, dense, dense), evaluate_grid(field, axes)[0]
    step = np.array([a[1] - a[0] for a in axes])
    full, sparse = (marching_cubes(v, 0.0, spacing=tuple(step))[0] for v in values)
    apart = max(cKDTree(a).query(b)[0].max() for a, b in ((full, sparse), (sparse, full)))
    return [
        (
            f"{nodes}^3 grid: dense / sparse evaluations",
            nodes**3 / evaluations,
            None,
            ">= 20",
            f"{evaluations} evaluations",
        ),
        (f"{dense}^3 grid: dense and sparse surfaces apart, cells", apart / step.min(), None, "< 0.5", ""),
    ]


@torch.no_grad()
def meshes(model: NphmDecoder, frames: int) -> list[Row]:
    """One person's canonical mesh, then speech-like frames at 30 per second, each from the one before."""
    z_id = torch.zeros(model.config.identity_dim)
    extraction = best({"mesh": lambda: extract_canonical(model, z_id)}, 3)["mesh"]
    mesh = extract_canonical(model, z_id)
    carry = MeshCarrier(model, mesh, z_id)
    last = carry(speech(model, 0))
    walls, cpus, residuals = [], [], []
    for frame in range(1, frames):
        z_ex = speech(model, frame / 30)
        wall, cpu = time.perf_counter(), time.process_time()
        last = carry(z_ex, last)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        skin = last.posed.points[carry.skin]
        residuals.append((skin + model.deform(skin, z_id, z_ex)[0] - carry.canonical[carry.skin]).norm(dim=-1))
    residual = torch.stack(residuals)
    within = (residual <= TOLERANCE).double().mean().item()
    within_4 = (residual <= 4 * TOLERANCE).double().mean().item()
    worst = residual.max().item() * MODEL_UNIT * 1e3
    v = len(mesh.vertices)
    return [
        (f"nphm-small canonical mesh of {v} vertices, s", *extraction, "<= 2", ""),
        (
            "carrying it to the next frame, ms (median)",
            *(1e3 * float(np.median(x)) for x in (walls, cpus)),
            "<= 80",
            "",
        ),
        ("carrying it to the next frame, ms (least)", 1e3 * min(walls), 1e3 * min(cpus), "", ""),
        ("share of the skin within .05 mm", within, None, "", f"all vertices evaluated; largest {worst:.2f} mm"),
        ("share of the skin within .2 mm", within_4, None, "", ""),
    ]


def speech(model: NphmDecoder, seconds: float) -> Tensor:
    """Expression code of a talking face: syllables at 4 a second, a smile, a blink every two seconds."""
    syllable = 0.5 + 0.5 * math.sin(8 * math.pi * seconds)
    smile = 0.4 + 0.3 * math.sin(2 * seconds)
    blink = max(0.0, 1 - abs((seconds % 2) - 1) / 0.15)
    weights = {"jawOpen": 0.3 * syllable, "mouthSmile_L": smile, "mouthSmile_R": smile}
    weights |= {"eyeBlink_L": blink, "eyeBlink_R": blink}
    names = model.config.expression_names
    return sum((model.expression_basis[:, names.index(name)] * w for name, w in weights.items()), torch.tensor(0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--points", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=257, help="of the grid whose evaluations are counted")
    parser.add_argument("--dense", type=int, default=129, help="of the grid that is also evaluated everywhere")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("bench/decoder"))
    args = parser.parse_args()
    prepare_torch(max(args.threads))
    facts: dict[str, Any] = {"machine": machine(), "distances": []}
    small = load_head_model()
    big = big_model(small.mean_anchors)
    rows: list[Row] = []
    for threads in args.threads:
        more, measured = distances(big, threads, args.points, args.rounds)
        rows += more
        facts["distances"].append(measured)
    rows += meshes(small, args.frames) + grids(small, args.nodes, args.dense)
    facts["rows"] = rows
    text = f"{machine_line(facts['machine'])}\n\n{table(('', 'wall clock', 'CPU time', 'target', 'note'), rows)}"
    save(args.out, "decoder", facts, text)


if __name__ == "__main__":
    main()
