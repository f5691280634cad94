"""The NPHM decoder, F(x; z_id, z_ex) -> signed distance: a backward deformation into an ensemble of local SDFs.

Source: MonoNPHM (CVPR 2024), sections 3.1-3.2; NPHM (CVPR 2023) for the ensemble. Everything here is in model units
(``conventions.MODEL_UNIT`` metres), head space; leading batch dimensions are free: points [..., N, 3],
z_id [..., D_id], z_ex [..., D_ex].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.heads.config import HeadConfig

CACHED = 2**17
"""Floats of one layer's activations that a core's cache holds beside the weights: sets how many points go at once."""
PILOT = 256
"""Points whose members are all evaluated to see how far they disagree, before any is skipped."""
Activation = Callable[[Tensor], Tensor]


class GroupedMlp(nn.Module):
    """G MLPs of one shape, evaluated on rows sorted by MLP. The first layer's columns are [condition, point]."""

    def __init__(self, groups: int, condition: int, point: int, hidden: int, hidden_layers: int, out: int) -> None:
        super().__init__()
        widths = [condition + point] + [hidden] * hidden_layers + [out]
        self.condition = condition
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            bound = math.sqrt(3.0 / fan_in)
            self.weights.append(nn.Parameter(torch.empty(groups, fan_out, fan_in).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.zeros(groups, fan_out)))

    def constants(self, condition: Tensor, mlp: Tensor) -> Tensor:
        """First layer's share of conditions [B, M, C] for members with MLPs ``mlp`` [M]: the same at all points."""
        weight = self.weights[0][mlp, :, : self.condition]
        return torch.einsum("bmc,moc->bmo", condition, weight) + self.biases[0][mlp]

    def forward(
        self,
        points: Tensor,
        counts: list[int],
        constants: Tensor,
        which: Tensor,
        activate: Activation,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        """Rows [P, I], ``counts`` of them for each MLP in turn, row p with ``constants[which[p]]`` of [M, hidden].

        Returns [P, O]; the last hidden layers before their activation [P, hidden] are appended to ``features``. An MLP
        runs through all its layers before the next begins: its activations stay in the processor's cache.
        """
        weights = list(zip(*(w.unbind() for w in self.weights), strict=True))
        biases = list(zip(*(b.unbind() for b in self.biases), strict=True))
        out = [points.new_zeros(0, self.weights[-1].shape[1])]
        for g, (x, of) in enumerate(zip(points.split(counts), which.split(counts), strict=True)):
            if not counts[g]:
                continue
            h = torch.addmm(constants.index_select(0, of), x, weights[g][0][:, self.condition :].T)
            for weight, bias in zip(weights[g][1:-1], biases[g][1:-1], strict=True):
                h = F.linear(activate(h), weight, bias)
            if features is not None:
                features.append(h)
            out.append(F.linear(activate(h), weights[g][-1], biases[g][-1]))
        return torch.cat(out)


@dataclass(frozen=True)
class _Conditioned:
    """What the ensemble needs of B identity codes: anchors [B, A, 3], first-layer shares [B * members, hidden]."""

    anchors: Tensor
    geometry: Tensor
    colour: Tensor | None


class NphmDecoder(nn.Module):
    """Head model of one :class:`HeadConfig`; see the methods for shapes. All outputs are in model units."""

    mean_anchors: Tensor
    mean_landmarks: Tensor
    mlp_of_member: Tensor
    local_axes: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = c = config
        self.activate: Callable[[Tensor], Tensor] = (
            partial(F.softplus, beta=100) if c.activation == "softplus" else F.silu
        )
        self.register_buffer("mean_anchors", torch.zeros(c.n_anchors, 3))
        self.anchor_mlp = nn.ModuleList(
            [
                nn.Linear(c.global_dim, c.anchor_hidden),
                nn.Linear(c.anchor_hidden, c.anchor_hidden),
                nn.Linear(c.anchor_hidden, c.n_anchors * 3),
            ]
        )
        self.ensemble = GroupedMlp(c.n_mlps, c.global_dim + c.local_dim, 3 + c.hyper_dim, c.hidden, c.hidden_layers, 1)
        self.compressor = nn.Linear(c.identity_dim + c.n_anchors * 3, c.compressed_dim)
        widths = [3 + c.compressed_dim + c.expression_dim] + [c.deform_hidden] * c.deform_layers + [3 + c.hyper_dim]
        self.deformation = nn.ModuleList(
            nn.Linear(i + (widths[0] if k == c.deform_skip else 0), o) for k, (i, o) in enumerate(pairwise(widths))
        )
        if c.bilinear:
            self.expression_field = nn.Linear(c.deform_hidden, 3 * c.expression_dim)
        if c.appearance:
            self.bottleneck = nn.ModuleList([nn.Linear(c.hidden, 16), nn.Linear(16, 16)])
            self.appearance = GroupedMlp(c.n_mlps, c.global_dim + c.local_dim, 16, c.hidden, c.hidden_layers, 3)
        if c.n_landmarks:
            self.register_buffer("mean_landmarks", torch.zeros(c.n_landmarks, 3))
            self.landmark_down = nn.Linear(c.identity_dim, c.landmark_rank, bias=False)
            self.landmark_up = nn.Linear(c.landmark_rank, c.n_landmarks * 3, bias=False)
        if c.identity_basis:
            self.identity_basis = nn.Parameter(torch.randn(c.identity_dim, c.identity_basis) * 0.05)
        if c.expression_names:
            self.expression_basis = nn.Parameter(torch.randn(c.expression_dim, len(c.expression_names)) * 0.3)
        self.register_buffer("mlp_of_member", _mlp_of_member(c), persistent=False)
        # Local coordinates are scaled, and mirrored for the odd member of a pair; hyper coordinates are only scaled.
        axes = torch.full((c.n_members, 3 + c.hyper_dim), c.local_scale)
        axes[1 : 2 * c.n_pairs : 2, 0] *= -1
        self.register_buffer("local_axes", axes, persistent=False)

    # -- codes ---------------------------------------------------------------------------------------------------------
    def split_identity(self, z_id: Tensor) -> tuple[Tensor, Tensor]:
        """z_id [..., D_id] -> global part [..., G] and local parts [..., members, L]."""
        c = self.config
        return z_id[..., : c.global_dim], z_id[..., c.global_dim :].unflatten(-1, (c.n_members, c.local_dim))

    @property
    def mean_identity(self) -> Tensor:
        """The code [D_id] of the mean head, which a linear identity prior starts from."""
        return self.mean_anchors.new_zeros(self.config.identity_dim)

    @property
    def mean_expression(self) -> Tensor:
        """The code [D_ex] that expressions are spread about."""
        return self.mean_anchors.new_zeros(self.config.expression_dim)

    def anchors(self, z_id: Tensor) -> Tensor:
        """Anchor positions [..., A, 3] on the canonical head."""
        h = z_id[..., : self.config.global_dim]
        h = F.relu(self.anchor_mlp[0](h))
        h = F.relu(self.anchor_mlp[1](h))
        return self.mean_anchors + self.anchor_mlp[2](h).unflatten(-1, (-1, 3))

    def landmarks(self, z_id: Tensor) -> Tensor:
        """The landmark set [..., 478, 3] on the canonical head (models with landmarks only)."""
        return self.mean_landmarks + self.landmark_up(self.landmark_down(z_id)).unflatten(-1, (-1, 3))

    # -- deformation ---------------------------------------------------------------------------------------------------
    def deform(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """Backward deformation: what brings posed points to the canonical head.

        Args:
            points: [..., N, 3] in head space, model units.
            z_id, z_ex: [..., D_id], [..., D_ex].

        Returns:
            Offsets [..., N, 3] (model units) and hyper coordinates [..., N, H].
        """
        anchors = self.anchors(z_id)
        compressed = self.compressor(torch.cat([z_id, anchors.flatten(-2)], -1))
        condition = torch.cat([compressed, z_ex], -1).unsqueeze(-2)  # [..., 1, C]
        field = None
        if self.config.bilinear:
            # The code is the same for all points: contract it with the weights first, [..., 3, hidden].
            weight = torch.einsum("cko,...k->...co", self.expression_field.weight.unflatten(0, (3, -1)), z_ex)
            bias = z_ex @ self.expression_field.bias.unflatten(0, (3, -1)).mT
            field = weight.mT, bias.unsqueeze(-2)
        batch = max(1, math.prod(points.shape[:-2]), math.prod(condition.shape[:-2]))
        size = max(1, 6 * CACHED // (self.config.deform_hidden * batch))
        out = torch.cat([self._deform(part, condition, field) for part in points.split(size, -2)], -2)
        return out[..., :3], out[..., 3:]

    def canonical_queries(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """Canonical position and hyper coordinates [..., N, 3 + H] of posed points."""
        offset, hyper = self.deform(points, z_id, z_ex)
        return torch.cat([points + offset, hyper], -1)

    # -- signed distance -----------------------------------------------------------------------------------------------
    def sdf(self, points: Tensor, z_id: Tensor, z_ex: Tensor, *, tolerance: float = 0.0) -> Tensor:
        """Signed distance [..., N] at posed points, model units, positive outside.

        Args:
            points: [..., N, 3] in head space, model units.
            z_id, z_ex: [..., D_id], [..., D_ex].
            tolerance: as in :meth:`canonical_sdf`.
        """
        return self.canonical_sdf(self.canonical_queries(points, z_id, z_ex), z_id, tolerance=tolerance)

    def canonical_sdf(self, queries: Tensor, z_id: Tensor, *, tolerance: float = 0.0) -> Tensor:
        """Signed distance [..., N] at canonical queries [..., N, 3 + H] (or [..., N, 3]: hyper coordinates zero).

        With a ``tolerance`` (model units) the members of least weight are skipped at each point. Weights sum to one, so
        skipping a share w moves the result by at most w times the difference between the largest and the smallest
        member there; w is ``tolerance`` over the largest such difference at ``PILOT`` of the points, where all members
        are evaluated. Where members differ by more than there, the bound grows in proportion.
        """
        return self._ensemble(queries, z_id, None, tolerance)[0]

    def gradient(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [..., N] and its gradient with respect to the posed points [..., N, 3]."""
        with torch.enable_grad():
            x = points.detach().requires_grad_(True)
            sdf = self.sdf(x, z_id, z_ex)
            (gradient,) = torch.autograd.grad(sdf.sum(), x)
        return sdf.detach(), gradient

    def colour(self, points: Tensor, z_id: Tensor, z_app: Tensor, z_ex: Tensor) -> Tensor:
        """Colour [..., N, 3] in [-1, 1] (models with appearance only); z_app is laid out like z_id."""
        colour = self._ensemble(self.canonical_queries(points, z_id, z_ex), z_id, z_app)[1]
        assert colour is not None
        return colour

    # -- internals -----------------------------------------------------------------------------------------------------
    def _deform(self, points: Tensor, condition: Tensor, field: tuple[Tensor, Tensor] | None) -> Tensor:
        """Offsets and hyper coordinates [..., N, 3 + H]; ``field`` is the contracted bilinear part, weight and bias."""
        c = self.config
        x = points * c.deform_scale
        h = features = x
        for k, layer in enumerate(cast("list[nn.Linear]", self.deformation)):
            features = h
            if k == 0:
                h = _linear_of_parts(layer, (x, condition))
            elif k == c.deform_skip:
                h = _linear_of_parts(layer, (h, x, condition), 1 / math.sqrt(2))
            else:
                h = layer(h)
            if k + 1 < len(self.deformation):
                h = self.activate(h)
        if field is not None:
            h = h + F.pad(features @ field[0] + field[1], (0, c.hyper_dim))
        return h * c.offset_scale

    def _ensemble(
        self, queries: Tensor, z_id: Tensor, z_app: Tensor | None, tolerance: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        c = self.config
        lead, n = queries.shape[:-2], queries.shape[-2]
        q = queries.reshape(math.prod(lead), *queries.shape[-2:])  # [B, N, 3 or 3 + H]
        if q.shape[-1] == 3:
            q = F.pad(q, (0, c.hyper_dim))
        z_id = z_id.expand(*lead, -1).reshape(len(q), -1)
        head = self._condition(z_id, None if z_app is None else z_app.expand(*lead, -1).reshape(len(q), -1))
        skipped = self._skippable_weight(q, head, tolerance) if tolerance > 0 and q.numel() else 0.0
        size = max(1, CACHED * c.n_mlps // ((c.nearest + 1) * c.hidden * max(1, len(q))))
        parts = [self._blended(part, head, skipped) for part in q.split(size, 1)]
        sdf = torch.cat([part[0] for part in parts], 1).reshape(*lead, n)
        if z_app is None:
            return sdf, None
        return sdf, torch.cat([cast("Tensor", part[1]) for part in parts], 1).reshape(*lead, n, 3)

    def _condition(self, z_id: Tensor, z_app: Tensor | None) -> _Conditioned:
        """The part of the ensemble that depends on codes [B, D] alone: once a member, not once a point."""

        def shares(mlp: GroupedMlp, z: Tensor) -> Tensor:
            glob, local = self.split_identity(z)
            condition = torch.cat([glob.unsqueeze(1).expand(-1, self.config.n_members, -1), local], -1)
            return mlp.constants(condition, self.mlp_of_member).flatten(0, 1)

        colour = None if z_app is None else shares(self.appearance, z_app)
        return _Conditioned(self.anchors(z_id), shares(self.ensemble, z_id), colour)

    @torch.no_grad()
    def _skippable_weight(self, q: Tensor, head: _Conditioned, tolerance: float) -> float:
        """The blend weight that may be skipped at a point, by how far members disagree at some of q [B, N, 3 + H]."""
        pilot = q[:, :: max(1, q.shape[1] // PILOT)]
        member, _ = self._blend(pilot[..., :3], head.anchors)
        values = self._members(pilot, head, member, None)[0]
        difference = (values.amax(-1) - values.amin(-1)).max().item()
        return tolerance / max(difference, 1e-12)

    def _blended(self, q: Tensor, head: _Conditioned, skipped: float) -> tuple[Tensor, Tensor | None]:
        """Signed distance [B, N] and colour [B, N, 3] at q [B, N, 3 + H], without ``skipped`` of the blend weight."""
        member, blend = self._blend(q[..., :3], head.anchors)
        keep = None
        if skipped > 0:
            ascending, order = blend.detach().sort(-1)
            keep = torch.zeros_like(blend, dtype=torch.bool).scatter(-1, order, ascending.cumsum(-1) > skipped)
            blend = blend * keep
            blend = blend / blend.sum(-1, keepdim=True)
        values, colours = self._members(q, head, member, keep)
        sdf = (values * blend).sum(-1)
        return sdf, None if colours is None else (colours * blend[..., None]).sum(-2)

    def _members(
        self, q: Tensor, head: _Conditioned, member: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Distances [B, N, K] and colours [B, N, K, 3] of members [B, N, K] at q [B, N, 3 + H]; zero where not kept."""
        c = self.config
        b, n, k = member.shape
        pair = member + c.n_members * torch.arange(b, device=q.device)[:, None, None]
        index = torch.arange(b * n * k, device=q.device) if keep is None else keep.flatten().nonzero().squeeze(1)
        mlp = self.mlp_of_member[member.flatten()[index]]
        counts = torch.bincount(mlp, minlength=c.n_mlps).tolist()
        index = index[mlp.argsort(stable=True)]  # sorted by MLP
        pair = pair.flatten()[index]
        centre = F.pad(head.anchors, (0, c.hyper_dim, 0, 1)).flatten(0, 1)  # [B * members, 3 + H]
        local = q.flatten(0, 1).index_select(0, index // k) - centre.index_select(0, pair)
        local = local * self.local_axes[pair % c.n_members]
        features: list[Tensor] | None = None if head.colour is None else []
        values = self.ensemble(local, counts, head.geometry, pair, self.activate, features) * c.sdf_scale
        values = values.new_zeros(b * n * k, 1).index_copy(0, index, values).view(b, n, k)
        if features is None or head.colour is None:
            return values, None
        shared = self.bottleneck[1](F.relu(self.bottleneck[0](torch.cat(features))))
        colours = self.appearance(shared, counts, head.colour, pair, F.relu)
        return values, colours.new_zeros(b * n * k, 3).index_copy(0, index, colours).view(b, n, k, 3)

    def _blend(self, x: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Members [B, N, K] evaluated for canonical points x [B, N, 3] and their normalised blend weights."""
        c = self.config
        with torch.no_grad():
            distance = torch.cdist(x, anchors, compute_mode="donot_use_mm_for_euclid_dist")
            near = distance.topk(c.nearest, largest=False).indices
        offset = x.unsqueeze(2) - _gather_rows(anchors, near)
        squared = offset.square().sum(-1)  # [B, N, nearest], ascending
        sigma2 = squared[..., c.sigma_rank - 1 : c.sigma_rank] / c.sigma_divisor**2
        squared = torch.cat([squared, torch.full_like(sigma2, c.free_distance**2)], -1)
        weight = torch.exp(-0.5 * squared / sigma2)
        member = torch.cat([near, torch.full_like(near[..., :1], c.n_anchors)], -1)
        return member, weight / (weight.sum(-1, keepdim=True) + 1e-8)


def _mlp_of_member(c: HeadConfig) -> Tensor:
    member = torch.arange(c.n_members)
    return torch.where(member < 2 * c.n_pairs, member // 2, member - c.n_pairs)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, A, C], index [B, N, K] -> [B, N, K, C]."""
    b, a, _ = values.shape
    flat = index + torch.arange(b, device=index.device)[:, None, None] * a
    return values.flatten(0, 1)[flat]


def _linear_of_parts(layer: nn.Linear, parts: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
    """``layer(cat(parts, -1) * scale)``; the last part is constant over points and broadcast only after its product."""
    sizes = [p.shape[-1] for p in parts]
    columns = (layer.weight * scale if scale != 1.0 else layer.weight).split(sizes, -1)
    out = F.linear(parts[-1], columns[-1], layer.bias)
    for part, weight in zip(parts[:-1], columns[:-1], strict=True):
        fused = part.dim() == out.dim() == 2
        out = torch.addmm(out, part, weight.T) if fused else out + F.linear(part, weight)
    return out
