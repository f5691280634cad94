"""How well a head model holds people and expressions it never saw: surface, normals, anchors and landmarks.

Held-out heads of ICT-FaceKit (seeds 900000 and above), neutral and in an expression. Codes come from the linear maps,
or are then fitted to points and normals of the face's true surface; everything is measured at other points of it.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads, anchor_vertices, load_ict, sample_expression, sample_identity
from nphm_track.training.photo_fit import landmark_basis

MM = MODEL_UNIT * 1000
SEED = 900_500
POINTS, FITTED = 1500, 500
"""Points of the surface that are known, and of these how many a step of the fit sees."""
FIGURES = ("surface mm", "normals deg", "landmarks mm", "anchors mm")
Surface = tuple[Tensor, Tensor]
"""Points and unit normals [N, 3], model units."""


def run(
    ict: Ict, out: Out, head_model: str = DEFAULT, heads: int = 16,
    steps: Annotated[int, typer.Option(help="Steps of the fit of the codes.")] = 80,
) -> Report:  # fmt: skip
    """The means over the heads of every figure."""
    prepare_torch()
    torch.manual_seed(0)
    rng = np.random.default_rng(SEED)
    known, model = load_ict(ict), load_head_model(head_model)
    skin, basis, place = Skin(known), landmark_basis(known), anchor_vertices(known, ict)
    w, e = sample_identity(rng, heads), sample_expression(rng, heads, known.expression_names)
    found: dict[str, list[list[float]]] = {}
    for k in track(range(heads), description="heads"):
        wk, ek = torch.from_numpy(w[k]), torch.from_numpy(e[k])
        shapes = {"neutral": known.vertices(w[k]), "posed": known.vertices(w[k], e[k])}
        linear = model.identity_basis[:, : len(wk)] @ wk, model.expression_basis @ ek
        fitted = fit(model, [skin.sample(v, rng) for v in shapes.values()], linear, steps)
        for name, (z_id, z_ex) in (("linear codes", linear), ("fitted codes", fitted)):
            for pose, vertices in shapes.items():
                own = (z_ex, ek) if pose == "posed" else (0 * z_ex, 0 * ek)
                marks = basis.points(wk[None].double(), own[1][None].double())[0].float() * 1000
                figures = [*surface_error(model, skin.sample(vertices, rng), z_id, own[0])]
                figures.append(landmark_error(model, z_id, own[0], marks))
                anchors = torch.from_numpy(vertices[place]) * 1000 if pose == "neutral" else torch.tensor(torch.nan)
                figures.append(float((model.anchors(z_id[None])[0] * MM - anchors).norm(dim=-1).mean()))
                found.setdefault(f"{name}, {pose}", []).append(figures)
    means = {name: dict(zip(FIGURES, np.mean(values, 0).tolist(), strict=True)) for name, values in found.items()}
    rows = [[name, *values.values()] for name, values in means.items()]
    return Report({"heads": heads, **means}, [f"{head_model}, {heads} held-out heads.", table(["", *FIGURES], rows)])


class Skin:
    """Surfaces of the faces of ICT heads: skin in front, without the mouth pocket and the eyeballs behind lids."""

    def __init__(self, heads: IctHeads) -> None:
        self.heads = heads
        v, f = heads.neutral, heads.faces
        centre = v[f].mean(1)
        skin = ~heads.is_pocket[f].any(1) & ~heads.is_eye[f].any(1)
        inside = (centre[:, 2] > -0.01) & (centre[:, 1] > -0.1) & (centre[:, 1] < 0.085)
        self.triangles = np.flatnonzero(skin & inside)

    def sample(self, vertices: NDArray[np.float32], rng: np.random.Generator) -> Surface:
        f = self.heads.faces[self.triangles]
        corners = vertices[f]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        chosen = rng.choice(len(f), POINTS, p=area / area.sum())
        bary = rng.dirichlet([1, 1, 1], POINTS)[..., None]
        normals = (vertex_normals(vertices, self.heads.faces)[f[chosen]] * bary).sum(1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = (corners[chosen] * bary).sum(1) / MODEL_UNIT
        return torch.from_numpy(points).float(), torch.from_numpy(normals).float()


def distance_and_normal(model: NphmDecoder, x: Tensor, z_id: Tensor, z_ex: Tensor, graph: bool) -> Surface:
    """First-order distance F / |grad F| [N] (model units) and normal [N, 3]."""
    x = x.detach().requires_grad_(True)
    sdf = model.sdf(x, z_id, z_ex)
    (gradient,) = torch.autograd.grad(sdf.sum(), x, create_graph=graph)
    length = gradient.norm(dim=-1).clamp_min(0.2)
    return sdf / length, gradient / length[..., None]


def fit(model: NphmDecoder, surfaces: list[Surface], start: tuple[Tensor, Tensor], steps: int) -> tuple[Tensor, Tensor]:
    """Codes that fit the points and normals of one head, neutral and posed, staying near the given ones."""
    spread = [model.identity_basis.norm(dim=1).clamp_min(1e-4), model.expression_basis.norm(dim=1).clamp_min(1e-4)]
    shift = [torch.zeros_like(code, requires_grad=True) for code in start]
    optimiser = torch.optim.Adam(shift, 0.02)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / steps) + 1e-3
        z_id, z_ex = (s + d * w for s, d, w in zip(start, shift, spread, strict=True))
        loss = 0.02 * (shift[0].square().mean() + shift[1].square().mean())
        for (x, n), z in zip(surfaces, (torch.zeros_like(z_ex), z_ex), strict=True):
            some = torch.randint(len(x), (FITTED,))
            distance, normal = distance_and_normal(model, x[some], z_id, z, True)
            loss = loss + distance.abs().mean() * MM + 2 * (1 - cosine_similarity(normal, n[some])).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    z_id, z_ex = ((s + d * w).detach() for s, d, w in zip(start, shift, spread, strict=True))
    return z_id, z_ex


def surface_error(model: NphmDecoder, surface: Surface, z_id: Tensor, z_ex: Tensor) -> tuple[float, float]:
    """Mean distance (mm) and mean angle between normals (degrees)."""
    distance, normal = distance_and_normal(model, surface[0], z_id, z_ex, False)
    angle = torch.rad2deg((normal * surface[1]).sum(-1).clamp(-1, 1).acos())
    return float(distance.detach().abs().mean()) * MM, float(angle.detach().mean())


@torch.no_grad()
def landmark_error(model: NphmDecoder, z_id: Tensor, z_ex: Tensor, truth: Tensor) -> float:
    """Mean distance (mm) of the landmarks but the irises."""
    carried = LandmarkCarrier(model, z_id, tuple(range(478)))(z_ex[None])[0] * 1000
    return float((carried - truth).norm(dim=-1)[:468].mean())
