"""Anny (Apache-2.0 code, CC0 MakeHuman data) as a second source of training heads: ages, sexes, builds, whole skulls.

A head is Anny's skin above the shoulders with its mouth pocket, closed over each eye by the front of the eyeball; the
eye cavities, the tongue and the body are left out. The coarse mesh is refined by Loop subdivision, a linear map, as
MakeHuman's base mesh is made for it. Shapes come from Anny's rest state (no bones): the neutral heads are reduced to a
principal basis and the facial actions are added, so that a head is linear in its weights like an ICT head and shares
its class. Metres, head space (docs/architecture.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import ConvexHull

from nphm_track.errors import InputError
from nphm_track.kd_tree import kd_tree
from nphm_track.rigid import fit_similarity
from nphm_track.training.ict import NECK_LEVEL, IctHeads, _boundary_loops

COMPONENTS = 27
"""Principal components kept; a head's weights are 1 for "mean of Anny" followed by these."""
DRAWN = 600
"""Heads the basis is computed from."""
SHOULDERS = 0.46
"""Height in Anny's rest frame (metres) below which the body is cut off, well under ``ict.NECK_LEVEL``."""
WIDTH = 0.26
"""Half-width (metres) kept of the shoulders: a child's must still reach beyond the box of the points."""
HALVED = 0.5
"""Part of each slider's range that is used: the shapes are an artist's, and their ends are caricatures."""
HEAD_CHANGES = ("cheek", "chin", "ear", "eye", "eyebrows", "forehead", "head", "mouth", "nose", "neck")
SIDEWAYS = ("nose-trans-out", "mouth-trans-out", "head-trans-out", "neck-trans-out", "head-angle-out")
UNSAFE_ACTIONS = ("mouthPress", "noseSneer", "mouthFunnel", "mouthDimple")
"""Facial actions left out: the motion of their landmarks and of ICT's of the same name have a cosine below 0.7."""


@dataclass(frozen=True)
class AnnySource:
    """Anny's sliders as a linear map to the refined head surface, before alignment (y up, z forward, metres).

    Attributes:
        model: the ``anny.Anny`` that turns sliders into coefficients [K].
        template: [C, 3] coarse head vertices.
        blendshapes: [K, C, 3].
        refine: [V, C] sparse, coarse to refined vertices.
        faces, closing, is_eye, is_pocket: as in :class:`nphm_track.training.ict.IctHeads`.
        expression: [E, V, 3] facial actions.
        expression_names: E names, ICT's.
    """

    model: Any
    template: NDArray[np.float64]
    blendshapes: NDArray[np.float64]
    refine: sparse.csr_matrix
    faces: NDArray[np.integer]
    closing: NDArray[np.integer]
    is_eye: NDArray[np.bool_]
    is_pocket: NDArray[np.bool_]
    expression: NDArray[np.float32]
    expression_names: tuple[str, ...]

    def vertices(self, sliders: dict[str, Any]) -> NDArray[np.float32]:
        """Refined vertices [B, V, 3] of the output of :func:`sample_sliders`."""
        coefficients = self.model.get_phenotype_blendshape_coefficients(**sliders).double().numpy()
        coarse = self.template + np.tensordot(coefficients, self.blendshapes, 1)
        return np.stack([self.refine @ v for v in coarse]).astype(np.float32)

    def as_heads(self, neutral: NDArray[np.floating], identity: NDArray[np.float32] | None = None) -> IctHeads:
        """A head model around ``neutral`` [V, 3] with components ``identity`` [I, V, 3] and the facial actions."""
        count = len(neutral)
        return IctHeads(
            neutral=neutral.astype(np.float32),
            identity=np.zeros((0, count, 3), np.float32) if identity is None else identity,
            expression=self.expression,
            expression_names=self.expression_names,
            faces=self.faces.astype(np.int32),
            closing=self.closing.astype(np.int32),
            is_eye=self.is_eye,
            is_pocket=self.is_pocket,
            mirror=kd_tree(neutral).query(neutral * np.array([-1, 1, 1]))[1],
            source=np.arange(count),
        )


def load_source(expression_names: tuple[str, ...]) -> AnnySource:
    """Anny's heads with the facial actions named like ICT's; the first call fills the package's cache for minutes.

    Raises InputError without the package ``anny``.
    """
    try:
        import anny
        from anny.face_segmentation import get_face_segmentation_mask
    except ImportError as error:
        raise InputError("Anny heads need the package anny: pip install 'nphm-track[train]'") from error
    model = anny.Anny(local_changes="all", facial_actions="all")

    def part(*labels: str) -> NDArray[np.bool_]:
        return get_face_segmentation_mask(model, list(labels)).numpy()

    upright = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float).T  # Anny: x to the face's left, z up, -y forward
    template = model.template_vertices.double().numpy() @ upright
    triangles = model.faces.numpy().astype(np.int64)
    skin, pocket, eyes = _parts(
        template,
        triangles,
        cavity=part("eye_cavity.L", "eye_cavity.R"),
        mouth=part("mouth_cavity"),
        eyes=part("eye_front.L", "eye_front.R", "eye_back.L", "eye_back.R"),
        tongue=part("tongue"),
    )
    kept, surface = refine_head(template, skin, pocket, eyes)
    blendshapes = model.blendshapes.double().numpy()[:, kept] @ upright
    actions = {n: blendshapes[_action_row(model, n)] for n in model.facial_action_labels}
    neutral = surface.refine @ template[kept]
    expression = _named_actions(actions, expression_names, surface.refine, neutral)
    expression[:, surface.is_eye] = 0  # gaze is not a matter of the surface
    lids = np.array([n.startswith(("eye", "brow")) for n in expression_names])
    expression[np.ix_(lids, surface.is_pocket)] = 0  # Anny's blinks drag the roof of the mouth along
    return AnnySource(model, template[kept], blendshapes, *surface, expression, expression_names)


def _action_row(model: Any, name: str) -> int:
    return list(model.blendshape_labels).index(f"facial_action:{name}")


def _parts(
    template: NDArray[np.float64], triangles: NDArray[np.int64], **masks: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Triangles of the skin with the mouth pocket, the vertices of the pocket, and the triangles of each eyeball."""
    above = (template[triangles, 1] > SHOULDERS).all(1) & (np.abs(template[triangles, 0]) < WIDTH).all(1)
    skin = above & ~masks["cavity"] & ~masks["eyes"] & ~masks["tongue"]
    pocket = np.setdiff1d(triangles[masks["mouth"]], triangles[skin & ~masks["mouth"]])
    balls = triangles[masks["eyes"]]
    side = np.sign(template[balls, 0].mean(1))
    return triangles[skin], pocket, [balls[side < 0], balls[side > 0]]


class Surface(NamedTuple):
    """A refined, closed surface; the fields are those of :class:`AnnySource`."""

    refine: sparse.csr_matrix
    faces: NDArray[np.integer]
    closing: NDArray[np.integer]
    is_eye: NDArray[np.bool_]
    is_pocket: NDArray[np.bool_]


def refine_head(
    template: NDArray[np.float64], skin: NDArray[np.int64], pocket: NDArray[np.int64], eyes: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], Surface]:
    """Subdivide and close skin and eyeballs: the coarse vertices used [C] and the surface. Needs libigl."""
    kept = np.unique(np.concatenate([skin.ravel(), *(e.ravel() for e in eyes)]))
    parts = [_skin_surface(kept, skin, pocket), *(_eye_surface(template, kept, ball) for ball in eyes)]
    start = np.cumsum([0] + [p.refine.shape[0] for p in parts])
    joined = Surface(
        sparse.csr_matrix(sparse.vstack([p.refine for p in parts])),
        np.concatenate([p.faces + k for p, k in zip(parts, start, strict=False)]).astype(np.int32),
        np.concatenate([p.closing + k for p, k in zip(parts, start, strict=False)]).astype(np.int32),
        np.concatenate([p.is_eye for p in parts]),
        np.concatenate([p.is_pocket for p in parts]),
    )
    return kept, joined


def _skin_surface(kept: NDArray[np.int64], skin: NDArray[np.int64], pocket: NDArray[np.int64]) -> Surface:
    """The skin subdivided once, each border closed by a fan about an extra vertex, the border's mean."""
    import igl

    matrix, coarse = _selected(skin, kept)
    step, faces = igl.loop_matrix(coarse, matrix.shape[0])
    in_pocket = np.asarray(step @ np.isin(kept[matrix.indices], pocket).astype(float)) > 0.99
    matrix = step @ matrix
    n = matrix.shape[0]
    loops = _boundary_loops(faces.astype(np.int64))
    centres = [sparse.csr_matrix(matrix[loop].mean(0)) for loop in loops]
    fans = [np.stack([loop, np.roll(loop, -1), np.full(len(loop), n + k)], 1) for k, loop in enumerate(loops)]
    return Surface(
        sparse.vstack([matrix, *centres]),
        faces,
        np.concatenate(fans) if fans else np.empty((0, 3), np.int64),
        np.zeros(n + len(loops), bool),
        np.append(in_pocket, np.zeros(len(loops), bool)),
    )


def _eye_surface(template: NDArray[np.float64], kept: NDArray[np.int64], ball: NDArray[np.int64]) -> Surface:
    """An eyeball subdivided twice at its coarse size; its rear only closes the surface."""
    import igl

    coarse, faces = _selected(ball, kept)
    smooth = coarse
    for _ in range(2):
        step, faces = igl.loop_matrix(faces, smooth.shape[0])
        smooth = step @ smooth
    smooth = _restore_size(template[kept], coarse, smooth)
    front, rear = _eye_halves(smooth @ template[kept])
    n = smooth.shape[0]
    return Surface(smooth, front, rear, np.ones(n, bool), np.zeros(n, bool))


def _selected(triangles: NDArray[np.int64], kept: NDArray[np.int64]) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    """Selection matrix [own vertices, C] and the triangles in own indices."""
    own, local = np.unique(triangles, return_inverse=True)
    matrix = sparse.csr_matrix(
        (np.ones(len(own)), (np.arange(len(own)), np.searchsorted(kept, own))), (len(own), len(kept))
    )
    return matrix, local.reshape(-1, 3).astype(np.int64)


def _restore_size(v: NDArray[np.float64], coarse: sparse.csr_matrix, smooth: sparse.csr_matrix) -> sparse.csr_matrix:
    """Undo the shrinking of a subdivided eyeball: scale about its centre to the coarse vertices' mean radius."""
    centre = sparse.csr_matrix(coarse.mean(0))
    radius = [np.linalg.norm(m @ v - centre @ v, axis=1).mean() for m in (coarse, smooth)]
    about = sparse.csr_matrix(np.ones((smooth.shape[0], 1))) @ centre
    return about + (smooth - about) * (radius[0] / radius[1])


def _eye_halves(points: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Convex hull of an eyeball as (front, rear) triangles, outward; front = may be seen between the lids."""
    hull = ConvexHull(points)
    tri = hull.simplices.astype(np.int64)
    normal = np.cross(points[tri[:, 1]] - points[tri[:, 0]], points[tri[:, 2]] - points[tri[:, 0]])
    flip = (normal * hull.equations[:, :3]).sum(1) < 0
    tri[flip] = tri[flip][:, ::-1]
    outward = points[tri].mean(1) - points.mean(0)
    ahead = outward[:, 2] > 0.35 * np.linalg.norm(outward, axis=1)
    return tri[ahead], tri[~ahead]


def _named_actions(
    actions: dict[str, NDArray[np.float64]],
    names: tuple[str, ...],
    refine: sparse.csr_matrix,
    neutral: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Facial actions [E, V, 3] in the order of ``names`` (``_L``/``_R``); zero where Anny has none or an unsafe one.

    An action that Anny has only for both sides is divided between ``_L`` and ``_R`` by a smooth step over the middle.
    """
    out = np.zeros((len(names), len(neutral), 3), np.float32)
    left = np.clip(neutral[:, :1] / 0.03 + 0.5, 0, 1)
    left = left * left * (3 - 2 * left)
    for i, name in enumerate(names):
        stem, _, side = name.rpartition("_") if name.endswith(("_L", "_R")) else (name, "", "")
        if stem in UNSAFE_ACTIONS:
            continue
        own = stem + {"L": "Left", "R": "Right", "": ""}[side]
        if own in actions:
            out[i] = refine @ actions[own]
        elif side and stem in actions:
            out[i] = (refine @ actions[stem]) * (left if side == "L" else 1 - left)
    return out


def sample_sliders(rng: np.random.Generator, count: int, changes: list[str]) -> dict[str, Any]:
    """Anny's phenotypes and local changes for ``count`` heads, each range halved; ages from child to old.

    ``changes`` are the model's ``local_change_labels``; only those of the head are drawn.
    """
    import torch

    def uniform(low: float, high: float) -> Any:
        return torch.from_numpy(rng.uniform(low, high, count))

    near, far = 0.5 - HALVED / 2, 0.5 + HALVED / 2
    sliders = {n: uniform(near, far) for n in ("gender", "muscle", "weight", "height", "proportions")}
    sliders["age"] = uniform(1 / 3, 1)  # half of newborn (-1/3) to old (1)
    origin = 1 / 3 + HALVED * (rng.dirichlet([0.7] * 3, count) - 1 / 3)
    sliders |= {n: torch.from_numpy(origin[:, i].copy()) for i, n in enumerate(("african", "asian", "caucasian"))}
    local: dict[str, Any] = {}
    for name in changes:
        stem = name[2:] if name.startswith(("l-", "r-")) else name
        if not stem.startswith(HEAD_CHANGES):
            continue
        reach = HALVED * (0.2 if stem.startswith(SIDEWAYS) else 1.0) * (rng.random(count) < 0.6)
        value = rng.uniform(-1, 1, count) * reach
        if name.startswith("r-") and "l-" + stem in local:  # faces are nearly symmetric
            value = 0.85 * local["l-" + stem].numpy() + 0.15 * value
        local[name] = torch.from_numpy(value)
    return {**sliders, "local_changes": local}


def align(heads: NDArray[np.float32], reference: NDArray[np.floating], fixed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Heads [B, V, 3] moved rigidly (sizes stay) so that the vertices ``fixed`` lie best on ``reference`` [V, 3]."""
    moved = np.empty_like(heads)
    for k, head in enumerate(heads):
        moved[k] = fit_similarity(head[fixed].astype(np.float64), reference[fixed], scaled=False)(head)
    return moved


def face_vertices(source: AnnySource, vertices: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The fixed set that heads are aligned by: skin of the face in front of the eyeballs' centres, between the ears."""
    eyes = vertices[source.is_eye].mean(0)
    d = vertices - eyes
    used = np.isin(np.arange(len(vertices)), source.faces) & ~source.is_eye & ~source.is_pocket
    return used & (d[:, 2] > -0.02) & (np.abs(d[:, 1] + 0.02) < 0.08) & (np.abs(d[:, 0]) < 0.07)


def draw(source: AnnySource, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Neutral heads [B, V, 3] of random sliders, in Anny's own frame."""
    return source.vertices(sample_sliders(rng, count, list(source.model.local_change_labels)))


def mean_head(source: AnnySource, heads: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean [V, 3] of heads [B, V, 3] after rigid alignment to each other."""
    mean = heads.mean(0, dtype=float)
    fixed = face_vertices(source, mean)
    for _ in range(3):
        mean = align(heads, mean, fixed).mean(0, dtype=float)
    return mean


@dataclass(frozen=True)
class AnnyBasis:
    """The linear head model made of Anny's heads; ``heads.identity`` are the principal components, unit variance.

    Attributes:
        heads: mean, components [27, V, 3] and facial actions as an ICT-like head model.
        vertex_weight: [V] the metric of the components (area, more on the face).
        gain: [E] the ICT weight that moves the landmarks most like the full facial action, at most 1.
    """

    heads: IctHeads
    vertex_weight: NDArray[np.float32]
    gain: NDArray[np.float32]

    def weights(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights [B, 27] of the nearest heads to aligned vertices [B, V, 3]."""
        modes = self.heads.identity.reshape(len(self.heads.identity), -1).astype(float)
        weighted = modes * np.repeat(self.vertex_weight, 3)
        offset = (vertices - self.heads.neutral).reshape(len(vertices), -1)
        return np.linalg.solve(modes @ weighted.T, weighted @ offset.T).T.astype(np.float32)

    def save(self, path: Path) -> None:
        arrays = {f.name: getattr(self.heads, f.name) for f in fields(IctHeads)}
        np.savez(path, vertex_weight=self.vertex_weight, gain=self.gain, **arrays)

    @classmethod
    def load(cls, path: Path) -> AnnyBasis:
        if not path.is_file():
            raise InputError(f"no Anny basis at {path}: training/build_anny_sdf.py makes it")
        data = np.load(path, allow_pickle=False)
        arrays = {f.name: data[f.name] for f in fields(IctHeads)}
        arrays["expression_names"] = tuple(str(n) for n in arrays["expression_names"])
        return cls(IctHeads(**arrays), data["vertex_weight"], data["gain"])


def action_gain(action: NDArray[np.floating], model: NDArray[np.floating]) -> NDArray[np.float32]:
    """Weights [E] in [0, 1] of the motions ``model`` [E, N, 3] that come nearest to ``action`` [E, N, 3]."""
    along = (action * model).sum((1, 2)) / np.maximum((model**2).sum((1, 2)), 1e-12)
    return along.clip(0, 1).astype(np.float32)


def principal_basis(
    source: AnnySource, heads: NDArray[np.float32], mean: NDArray[np.floating], gain: NDArray[np.float32]
) -> tuple[AnnyBasis, float]:
    """Components of heads [B, V, 3] about ``mean`` [V, 3] in head space, and the part of the variance they hold."""
    moved = align(heads, mean, face_vertices(source, mean))
    flat = (moved - moved.mean(0)).reshape(len(moved), -1)
    weight = _vertex_weight(source, mean)
    weighted = flat * np.repeat(np.sqrt(weight), 3)
    values, vectors = np.linalg.eigh((weighted @ weighted.T).astype(float))
    kept = np.argsort(values)[::-1][:COMPONENTS]
    scores = vectors[:, kept] * np.sqrt(len(heads))  # unit variance
    components = (scores.T @ flat / len(heads)).reshape(COMPONENTS, -1, 3).astype(np.float32)
    explained = float(values[kept].sum() / values.sum())
    return AnnyBasis(source.as_heads(moved.mean(0), components), weight, gain), explained


def _vertex_weight(source: AnnySource, mean: NDArray[np.floating]) -> NDArray[np.float32]:
    """[V] area, ten times on the face, little on the pocket and the neck and none below the neck's level; sums to 1."""
    corners = mean[source.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    weight = np.bincount(source.faces.ravel(), np.repeat(area, 3), len(mean))
    weight *= np.where(face_vertices(source, mean), 10.0, 1.0) * np.where(source.is_pocket | source.is_eye, 0.1, 1.0)
    weight *= np.where(mean[:, 1] > -0.085, 1.0, 0.02) * (mean[:, 1] > NECK_LEVEL)
    return (weight / weight.sum()).astype(np.float32)
