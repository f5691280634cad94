"""How well nphm-small holds people and expressions it never saw: surface, normals, anchors and landmarks.

    python benchmarks/head_accuracy.py --ict FOLDER --out FOLDER [--heads 16] [--steps 80]

Held-out heads of ICT-FaceKit (seeds 900000 and above), neutral and in an expression. Codes come from the linear maps,
or are then fitted to points and normals of the face's true surface; everything is measured at other points of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from report import machine, machine_line, save, table
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import load_head_model
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads, anchor_vertices, load_ict, sample_expression, sample_identity
from nphm_track.training.photo_fit import landmark_basis

MM = MODEL_UNIT * 1000
SEED = 900_500
POINTS = 1500
NAMES = ("surface mm", "normals deg", "landmarks mm", "anchors mm")


class Faces:
    """Points on the faces of ICT heads: skin in front, without the mouth pocket and the eyeballs behind closed lids."""

    def __init__(self, heads: IctHeads) -> None:
        self.heads = heads
        v, f = heads.neutral, heads.faces
        centre = v[f].mean(1)
        skin = ~heads.is_pocket[f].any(1) & ~heads.is_eye[f].any(1)
        inside = (centre[:, 2] > -0.01) & (centre[:, 1] > -0.1) & (centre[:, 1] < 0.085)
        self.triangles = np.flatnonzero(skin & inside)

    def sample(self, vertices: NDArray[np.float32], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Points and unit normals [POINTS, 3], model units."""
        f = self.heads.faces[self.triangles]
        corners = vertices[f]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        chosen = rng.choice(len(f), POINTS, p=area / area.sum())
        bary = rng.dirichlet([1, 1, 1], POINTS)[..., None]
        normals = (vertex_normals(vertices, self.heads.faces)[f[chosen]] * bary).sum(1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = (corners[chosen] * bary).sum(1) / MODEL_UNIT
        return torch.from_numpy(points).float(), torch.from_numpy(normals).float()


def distance_and_normal(
    model: NphmDecoder, x: Tensor, z_id: Tensor, z_ex: Tensor, graph: bool
) -> tuple[Tensor, Tensor]:
    """First-order distance F / |grad F| [N] (model units) and normal [N, 3]."""
    x = x.detach().requires_grad_(True)
    sdf = model.sdf(x, z_id, z_ex)
    (gradient,) = torch.autograd.grad(sdf.sum(), x, create_graph=graph)
    length = gradient.norm(dim=-1).clamp_min(0.2)
    return sdf / length, gradient / length[..., None]


def fit(
    model: NphmDecoder, surfaces: list[tuple[Tensor, Tensor]], codes: tuple[Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Codes that fit the points and normals of one head, neutral and posed, staying near the given ones."""
    start = [c.clone() for c in codes]
    spread = [model.identity_basis.norm(dim=1).clamp_min(1e-4), model.expression_basis.norm(dim=1).clamp_min(1e-4)]
    shift = [torch.zeros_like(c, requires_grad=True) for c in codes]
    optimiser = torch.optim.Adam(shift, 0.02)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / steps) + 1e-3
        z_id, z_ex = (s + d * w for s, d, w in zip(start, shift, spread, strict=True))
        loss = sum(0.02 * d.square().mean() for d in shift)
        for (x, n), z in zip(surfaces, (torch.zeros_like(z_ex), z_ex), strict=True):
            keep = torch.randint(len(x), (500,))
            distance, normal = distance_and_normal(model, x[keep], z_id, z, True)
            loss = loss + distance.abs().mean() * MM + 2 * (1 - cosine_similarity(normal, n[keep])).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tuple((s + d * w).detach() for s, d, w in zip(start, shift, spread, strict=True))  # type: ignore[return-value]


def measure(
    model: NphmDecoder,
    surface: tuple[Tensor, Tensor],
    z_id: Tensor,
    z_ex: Tensor,
    landmarks: Tensor,
    anchors: Tensor | None,
) -> list[float]:
    """The four figures; ``anchors`` None where the head is posed."""
    distance, normal = distance_and_normal(model, surface[0], z_id, z_ex, False)
    angle = torch.rad2deg((normal * surface[1]).sum(-1).clamp(-1, 1).acos())
    with torch.no_grad():
        carried = LandmarkCarrier(model, z_id, tuple(range(478)))(z_ex[None])[0] * 1000
        lm = (carried - landmarks).norm(dim=-1)[:468].mean()  # without the irises
        an = (
            torch.tensor(np.nan)
            if anchors is None
            else (model.anchors(z_id[None])[0] * MM - anchors).norm(dim=-1).mean()
        )
    return [float(distance.detach().abs().mean()) * MM, float(angle.detach().mean()), float(lm), float(an)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()
    prepare_torch()
    torch.manual_seed(0)
    rng = np.random.default_rng(SEED)
    heads, model = load_ict(args.ict), load_head_model()
    faces, basis = Faces(heads), landmark_basis(heads)
    place = anchor_vertices(heads, args.ict)
    w, e = sample_identity(rng, args.heads), sample_expression(rng, args.heads, heads.expression_names)
    found: dict[str, list[list[float]]] = {}
    for k in track(range(args.heads), description="heads"):
        wk, ek = torch.from_numpy(w[k]), torch.from_numpy(e[k])
        shapes = [heads.vertices(w[k]), heads.vertices(w[k], e[k])]
        codes = model.identity_basis[:, : len(wk)] @ wk, model.expression_basis @ ek
        fitted = fit(model, [faces.sample(v, rng) for v in shapes], codes, args.steps)
        for name, (z_id, z_ex) in (("linear codes", codes), ("fitted codes", fitted)):
            for pose, vertices, expression in zip(("neutral", "posed"), shapes, (z_ex * 0, z_ex), strict=True):
                weights = ek * (pose == "posed")
                marks = basis.points(wk[None].double(), weights[None].double())[0].float() * 1000
                anchors = torch.from_numpy(shapes[0][place]) * 1000 if pose == "neutral" else None
                surface = faces.sample(vertices, rng)
                found.setdefault(f"{name}, {pose}", []).append(
                    measure(model, surface, z_id, expression, marks, anchors)
                )
    rows = [[name, *(f"{x:.2f}" if np.isfinite(x) else "" for x in np.mean(v, 0))] for name, v in found.items()]
    facts = machine()
    text = f"{args.heads} held-out heads. {machine_line(facts)}\n\n{table(['', *NAMES], rows)}\n"
    results: dict[str, Any] = {name: dict(zip(NAMES, np.mean(v, 0).tolist(), strict=True)) for name, v in found.items()}
    save(args.out, "head_accuracy", {"machine": facts, "heads": args.heads, **results}, text)


if __name__ == "__main__":
    main()
