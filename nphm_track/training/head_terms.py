"""Losses on predicted codes of heads that the training tasks share: L3D in SDF space, vertex and landmark terms, R."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track import expression_prior
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.heads.loading import load_head_model
from nphm_track.training import losses as L
from nphm_track.training.ict import load_ict

RANGE = expression_prior.PHOTO.low, expression_prior.PHOTO.high
FACING = 15
"""Degrees that a head may be turned from the camera for both its eyes to be seen well."""


class HeadTerms:
    """Losses that compare predicted codes with the ICT weights of the true head; the head model is frozen.

    Its linear code maps turn predicted codes into vertices for the auxiliary terms.
    """

    def __init__(self, head_model: str, ict: str, landmarks: str) -> None:
        self.head = load_head_model(head_model).requires_grad_(False)
        heads = load_ict(ict)
        rng = np.random.default_rng(0)
        in_face = (heads.neutral[:, 2] > -0.02) & (heads.neutral[:, 1] > -0.1) & ~heads.is_pocket
        chosen = rng.choice(np.flatnonzero(in_face), 800, replace=False)
        unit = 1 / MODEL_UNIT
        self.vertices = torch.from_numpy(heads.neutral[chosen]) * unit
        self.identity = torch.from_numpy(heads.identity[:, chosen]).flatten(1) * unit
        self.expression = torch.from_numpy(heads.expression[:, chosen]).flatten(1) * unit
        self.reach = self.expression.unflatten(-1, (-1, 3)).norm(dim=-1).amax(-1)  # [E] of each weight
        self.placement = _placements(self.vertices)
        if not Path(landmarks).is_file():
            raise InputError(f"no {landmarks}: it is written by training/calibrate_landmarks.py")
        landmark = np.load(landmarks)
        corner, bary = heads.faces[landmark["face"]], landmark["bary"][None, ..., None]

        def at(basis: NDArray[np.float32]) -> Tensor:
            """Values [K, 478, 3] of vertex fields [K, V, 3] at the landmarks."""
            return torch.from_numpy((basis[:, corner] * bary).sum(2)).float()

        self.lm_neutral = at(heads.neutral[None])[0] * unit
        self.lm_identity = at(heads.identity).flatten(1) * unit
        self.lm_expression = at(heads.expression).flatten(1) * unit
        # The first columns are ICT's; the others belong to heads from elsewhere and are not predicted from ICT renders.
        self.basis_id = self.head.identity_basis[:, : len(heads.identity)]
        self.from_id = torch.linalg.pinv(self.basis_id)
        self.from_ex = torch.linalg.pinv(self.head.expression_basis)

    def to(self, device: torch.device | str) -> HeadTerms:
        """The same on another device."""
        import copy

        out = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(out, name, value.to(device))
        out.head = copy.deepcopy(self.head).to(device)
        return out

    def weights(self, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """ICT weights nearest to codes: w [B, 100], e [B, E]."""
        return z_id @ self.from_id.T, z_ex @ self.from_ex.T

    def codes(self, w: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of ICT weights."""
        return w @ self.basis_id.T, e @ self.head.expression_basis.T

    def vertex_terms(self, z_id: Tensor, z_ex: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        w, e = self.weights(z_id, z_ex)
        dw, de = w - batch["w"], e - batch["e"]
        neutral = (dw @ self.identity).unflatten(-1, (-1, 3))
        posed = neutral + (de @ self.expression).unflatten(-1, (-1, 3))
        zero = z_id.new_zeros(())
        reprojection = self._reproject(w, e, batch)
        off_id = z_id - w @ self.basis_id.T
        off_ex = z_ex - e @ self.head.expression_basis.T
        return {
            "neutral": L.point_loss(neutral, zero),
            "posed": L.point_loss(posed, zero),
            "shape": L.point_loss(self.placed(neutral), zero),
            "weights": (de.square() * self.reach).sum(-1).mean(),  # lids and brows are few of the vertices
            "reprojection": reprojection,
            "offmanifold": L.code_norm(off_id) + L.code_norm(off_ex),
            "range": (e.clamp(*RANGE) - e).square().sum(-1).mean(),
        }

    def placed(self, difference: Tensor) -> Tensor:
        """Vertex differences [B, V, 3] without what moving, turning or scaling the head explains.

        A single image does not tell the size of a head; its shape is what can be learnt.
        """
        d = difference.flatten(1)
        return (d - (d @ self.placement) @ self.placement.T).unflatten(-1, (-1, 3))

    def _reproject(self, w: Tensor, e: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Landmarks of the predicted head, in the true camera up to a best shift and scale, against the detected ones.

        In units of the face's RMS radius times 0.25, so that it compares with the vertex terms.
        """
        points = self.lm_neutral + (w @ self.lm_identity + e @ self.lm_expression).unflatten(-1, (-1, 3))
        camera = points * MODEL_UNIT @ batch["R"].mT + batch["t"][:, None]
        pixels = camera[..., :2] / camera[..., 2:] * batch["K"][:, None, :1, 0]
        seen = batch["landmarks"][..., :2]
        use = slice(0, 468)  # the irises move with the gaze, which the codes do not carry
        p, s = pixels[:, use] - pixels[:, use].mean(1, keepdim=True), seen[:, use] - seen[:, use].mean(1, keepdim=True)
        p = p * ((p * s).sum((1, 2)) / p.square().sum((1, 2)))[:, None, None]
        radius = s.square().sum(-1).mean(1).sqrt()[:, None]
        return ((p - s).norm(dim=-1) / radius).mean() * 0.25

    def sdf_term(
        self,
        z_id: Tensor,
        z_ex: Tensor,
        batch: dict[str, Tensor],
        generator: torch.Generator,
        n: int,
        k: int,
        *,
        placed: bool = False,
    ) -> Tensor:
        """L3D: mean |F(x; z_pred) - F(x; z_gt)| at k points near the true posed surface of n samples.

        ``placed``: the predicted heads are moved, turned and scaled towards the true ones before.
        """
        w, e = batch["w"][:n], batch["e"][:n]
        posed = self.vertices + (w @ self.identity + e @ self.expression).unflatten(-1, (-1, 3))
        device = generator.device
        chosen = torch.randint(posed.shape[1], (len(w), k), generator=generator, device=device)
        rows = torch.arange(len(w), device=device)[:, None], chosen
        x = posed[rows]
        x = x + torch.randn(x.shape, generator=generator, device=device) * (0.003 / MODEL_UNIT)
        with torch.no_grad():
            target = self.head.sdf(x, *self.codes(w, e))
        if placed:
            difference = ((self.weights(z_id[:n], z_ex[:n])[0] - w) @ self.identity).unflatten(-1, (-1, 3))
            x = x + (difference - self.placed(difference))[rows]
        return (self.head.sdf(x, z_id[:n], z_ex[:n]) - target).abs().mean()

    def metrics(self, z_id: Tensor, z_ex: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Mean vertex errors and SDF L1 near the surface (mm, head frame; no alignment but for ``shape`` and
        ``sdf_placed``), landmark error and expression correlations (``_facing``: heads within ``FACING``).
        """
        _, e = self.weights(z_id, z_ex)
        terms = self.vertex_terms(z_id, z_ex, batch)
        mm = MODEL_UNIT * 1000
        mean_head = (batch["w"] @ self.identity).unflatten(-1, (-1, 3))
        zero = torch.zeros(())
        out = {k + "_mm": float(terms[k]) * mm for k in ("neutral", "posed", "shape")}
        for name, placed in (("sdf", False), ("sdf_placed", True)):
            generator = torch.Generator().manual_seed(0)
            found = []
            for part in torch.arange(len(z_id)).split(25):
                some = {k: batch[k][part] for k in "we"}
                codes = z_id[part], z_ex[part]
                found.append(self.sdf_term(*codes, some, generator, len(part), 96, placed=placed))
            out[f"{name}_mm"] = float(torch.stack(found).mean()) * mm
        out["reprojection_percent"] = float(terms["reprojection"]) * 400
        names = self.head.config.expression_names
        everyone = torch.ones(len(e), dtype=torch.bool)
        facing = -batch["R"][:, 2, 2] > math.cos(math.radians(FACING))
        shown = [(n, "", everyone) for n in ("jawOpen", "mouthSmile_L", "eyeBlink_L", "mouthPucker", "browOuterUp_L")]
        for name, suffix, rows in (*shown, ("eyeBlink_L", "_facing", facing)):
            i = names.index(name)
            pair = np.stack([e[rows, i].numpy(), batch["e"][rows, i].numpy()])
            out[f"corr_{name}{suffix}"] = float(np.corrcoef(pair)[0, 1])
        out["mean_head_mm"] = float(L.point_loss(mean_head, zero)) * mm
        out["mean_head_shape_mm"] = float(L.point_loss(self.placed(mean_head), zero)) * mm
        return out


def of_usual_size(w: Tensor, identity: Tensor, placement: Tensor) -> Tensor:
    """Identity weights [N, K] of people, all moved alike, so that on average they are as large as the mean head.

    How large people are a photo does not tell; what networks make of it would grow from one round of self-training to
    the next. ``identity`` [K, 3 V] is the basis, ``placement`` [3 V, 7] what moves the mean head, its growth last.
    """
    growth = identity @ placement[:, -1]
    return w - (w.mean(0) @ growth) / growth.square().sum() * growth


def _placements(vertices: Tensor) -> Tensor:
    """Orthonormal motions [3 V, 7] of points [V, 3]: three shifts, three small turns, growth."""
    x = vertices - vertices.mean(0)
    motions = [axis.expand_as(x) for axis in torch.eye(3)]
    motions += [torch.linalg.cross(axis.expand_as(x), x, dim=-1) for axis in torch.eye(3)]
    return torch.linalg.qr(torch.stack([m.flatten() for m in (*motions, x)], 1))[0]
