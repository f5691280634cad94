"""How well a head model holds lids and lips in every expression: surface and normals near their edges, and elsewhere.

Held-out heads of ICT-FaceKit (seeds 900000 and above), neutral and in each of the model's expressions at full strength;
``mouthClose``, which only undoes ``jawOpen``, together with it. Codes come from the linear maps. Points lie on the true
skin: "near" within 10 mm of an edge of a lid or of a lip, "elsewhere" on the rest of the face; where skin lies against
skin, as in closed lips, there are none. Distances are |F| / |grad F| there, angles those of grad F to the true normal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.harness import Ict, Out, Report, table
from benchmarks.head_accuracy import MM, distance_and_normal
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads, edge_vertices, inside, load_ict, sample_identity

Samples = dict[str, dict[str, list[NDArray[np.float64]]]]
"""Distance (mm) and angle (degrees) [N, 2] of each head, by expression and region."""
SEED = 900_600
POINTS = {"lids": 150, "lips": 150, "elsewhere": 300}
"""On each head in each expression, before those that are covered are left out."""
NEAR = 0.01
"""Metres from an edge of a lid or a lip."""
COVERED = 0.0003
"""Metres above a point of the skin; where this is inside the head, the skin is covered by other skin."""


def run(ict: Ict, out: Out, head_model: str = DEFAULT, heads: int = 8) -> Report:
    """Neutral, the mean over all expressions, and the five that are worst near edges."""
    prepare_torch()
    rng = np.random.default_rng(SEED)
    known, model = load_ict(ict, eyeballs=False), load_head_model(head_model)
    parts = regions(known, ict)
    w = sample_identity(rng, heads)
    found: Samples = {}
    for name, e in track(expressions(known.expression_names).items(), description="expressions"):
        z_ex = model.expression_basis.detach() @ torch.from_numpy(e)
        for k in range(heads):
            vertices = known.vertices(w[k], e)
            z_id = model.identity_basis[:, : w.shape[1]].detach() @ torch.from_numpy(w[k])
            for part, triangles in parts.items():
                x, n = sample(known, vertices, triangles, POINTS[part], rng)
                distance, normal = distance_and_normal(model, x, z_id, z_ex, False)
                angle = torch.rad2deg((normal * n).sum(-1).clamp(-1, 1).acos())
                both = torch.stack([distance.detach().abs() * MM, angle.detach()], 1).double().numpy()
                found.setdefault(name, {}).setdefault(part, []).append(both)

    each = measured(found)
    posed = [name for name in each if name != "neutral"]
    mean = {p: np.mean([each[n][p] for n in posed], 0).tolist() for p in (*POINTS, "near")}
    worst = sorted(posed, key=lambda n: -each[n]["near"][0])[:5]
    rows = {"neutral": each["neutral"], f"mean of {len(posed)} expressions": mean, **{n: each[n] for n in worst}}
    header = ["", *(f"{p}: mm / 95 % / degrees" for p in mean)]
    body = [[name, *(f"{v[p][0]:.3f} / {v[p][2]:.2f} / {v[p][1]:.1f}" for p in mean)] for name, v in rows.items()]
    return Report(
        {"heads": heads, "mean": mean, "expressions": each},
        [f"{heads} held-out heads, {head_model}.", table(header, body)],
    )


def regions(heads: IctHeads, folder: Path) -> dict[str, NDArray[np.int64]]:
    """Triangles of the surface near lids, near lips, and on the rest of the face."""
    v, f = heads.neutral, heads.faces
    centre = v[f].mean(1)
    skin = ~(heads.is_pocket | heads.is_socket)[f].any(1)
    lids, lips = (kd_tree(v[edge]).query(centre)[0] < NEAR for edge in edge_vertices(heads, folder))
    face = (centre[:, 2] > -0.01) & (centre[:, 1] > -0.1) & (centre[:, 1] < 0.085)
    parts = {"lids": lids, "lips": lips, "elsewhere": face & ~lids & ~lips}
    return {name: np.flatnonzero(skin & part) for name, part in parts.items()}


def sample(
    heads: IctHeads, vertices: NDArray[np.float32], triangles: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and unit normals [N, 3] (model units) of the uncovered skin."""
    f = heads.faces[triangles]
    corners = vertices[f]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = rng.choice(len(f), count, p=area / area.sum())
    bary = rng.dirichlet([1, 1, 1], count)[..., None]
    normals = (vertex_normals(vertices, heads.faces)[f[chosen]] * bary).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = (corners[chosen] * bary).sum(1)
    free = ~inside(heads, vertices, points + COVERED * normals)
    return torch.from_numpy(points[free] / MODEL_UNIT).float(), torch.from_numpy(normals[free]).float()


def expressions(names: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """Neutral, and every expression at full strength."""
    weights = {"neutral": np.zeros(len(names), np.float32)}
    for k, name in enumerate(names):
        weights[name] = np.eye(len(names), dtype=np.float32)[k]
    weights["mouthClose"] = weights["mouthClose"] + weights["jawOpen"]
    return weights


def measured(found: Samples) -> dict[str, dict[str, list[float]]]:
    """By expression and region: mean distance (mm), mean angle (degrees), 95 % of distances."""
    out = {}
    for name, row in found.items():
        joined = {part: np.concatenate(v) for part, v in row.items()}
        joined["near"] = np.concatenate([joined["lids"], joined["lips"]])
        out[name] = {p: [*x.mean(0).tolist(), float(np.percentile(x[:, 0], 95))] for p, x in joined.items()}
    return out
