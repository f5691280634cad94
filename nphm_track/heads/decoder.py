"""The NPHM decoder, F(x; z_id, z_ex) -> signed distance: a backward deformation into an ensemble of local SDFs.

Source: MonoNPHM (CVPR 2024), sections 3.1-3.2; NPHM (CVPR 2023) for the ensemble. Everything here is in model units
(``conventions.MODEL_UNIT`` metres), head space; leading batch dimensions are free: points [..., N, 3],
z_id [..., D_id], z_ex [..., D_ex].
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.heads.config import HeadConfig


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """Rows of ``x`` [P, I] in consecutive groups of ``counts``, each through its own ``weight`` [G, O, I] -> [P, O]."""
    parts = x.split(counts)
    rows = [F.linear(p, weight[g], None if bias is None else bias[g]) for g, p in enumerate(parts) if counts[g]]
    return torch.cat(rows) if rows else x.new_zeros(0, weight.shape[1])


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


class NphmDecoder(nn.Module):
    """Head model of one :class:`HeadConfig`; see the methods for shapes. All outputs are in model units."""

    mean_anchors: Tensor
    mean_landmarks: Tensor
    mlp_of_member: Tensor
    mirrored: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = c = config
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
        member = torch.arange(c.n_members)
        self.register_buffer("mlp_of_member", _mlp_of_member(c), persistent=False)
        self.register_buffer("mirrored", (member < 2 * c.n_pairs) & (member % 2 == 1), persistent=False)

    # -- codes ---------------------------------------------------------------------------------------------------------
    def split_identity(self, z_id: Tensor) -> tuple[Tensor, Tensor]:
        """z_id [..., D_id] -> global part [..., G] and local parts [..., members, L]."""
        c = self.config
        return z_id[..., : c.global_dim], z_id[..., c.global_dim :].unflatten(-1, (c.n_members, c.local_dim))

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
        """At posed ``points``: offsets to the canonical head [..., N, 3] and hyper coordinates [..., N, H]."""
        anchors = self.anchors(z_id)
        compressed = self.compressor(torch.cat([z_id, anchors.flatten(-2)], -1))
        condition = torch.cat([compressed, z_ex], -1).unsqueeze(-2)  # [..., 1, C]
        x = points * self.config.deform_scale
        h = x
        features = x
        for k, layer in enumerate(cast("list[nn.Linear]", self.deformation)):
            features = h
            if k == 0:
                h = _linear_of_parts(layer, (x, condition))
            elif k == self.config.deform_skip:
                h = _linear_of_parts(layer, (h, x, condition), 1 / math.sqrt(2))
            else:
                h = layer(h)
            if k + 1 < len(self.deformation):
                h = self._activate(h)
        offset, hyper = h[..., :3], h[..., 3:]
        if self.config.bilinear:
            # The code is the same for all points: contract it with the weights first, [..., 3, hidden].
            weight = torch.einsum("cko,...k->...co", self.expression_field.weight.unflatten(0, (3, -1)), z_ex)
            bias = z_ex @ self.expression_field.bias.unflatten(0, (3, -1)).mT
            offset = offset + features @ weight.mT + bias.unsqueeze(-2)
        return offset * self.config.offset_scale, hyper * self.config.offset_scale

    def canonical_queries(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """Canonical position and hyper coordinates [..., N, 3 + H] of posed points."""
        offset, hyper = self.deform(points, z_id, z_ex)
        return torch.cat([points + offset, hyper], -1)

    # -- signed distance -----------------------------------------------------------------------------------------------
    def sdf(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """Signed distance [..., N] at posed points, positive outside."""
        return self.canonical_sdf(self.canonical_queries(points, z_id, z_ex), z_id)

    def canonical_sdf(self, queries: Tensor, z_id: Tensor) -> Tensor:
        """Signed distance [..., N] at canonical queries [..., N, 3 + H] (or [..., N, 3]: hyper coordinates zero)."""
        return self._ensemble(queries, z_id, None)[0]

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
    def _activate(self, h: Tensor) -> Tensor:
        if self.config.activation == "softplus":
            return F.softplus(h, beta=100)
        return F.silu(h)

    def _ensemble(self, queries: Tensor, z_id: Tensor, z_app: Tensor | None) -> tuple[Tensor, Tensor | None]:
        lead = queries.shape[:-2]
        q = queries.reshape(-1, *queries.shape[-2:])  # [B, N, 3 or 3 + H]
        if q.shape[-1] == 3:
            q = F.pad(q, (0, self.config.hyper_dim))
        z = z_id.expand(*lead, -1).reshape(-1, z_id.shape[-1])  # [B, D]
        anchors = self.anchors(z)
        member, blend = self._blend(q[..., :3], anchors)  # [B, N, K]
        order, back, counts = _sort_by_mlp(self.mlp_of_member[member].flatten(), self.config.n_mlps)
        b, n, k = member.shape
        pair = (torch.arange(b, device=q.device)[:, None, None] * self.config.n_members + member).flatten()[order]
        row = order // k
        local = self._local_coordinates(q, anchors, row, pair)
        h = self._first_layer(self.ensemble, z, pair, local * self.config.local_scale, counts)
        for i in range(1, len(self.ensemble.weights)):
            h = grouped_linear(h, self.ensemble.weights[i], self.ensemble.biases[i], counts)
            if i == self.config.hidden_layers - 1:
                feature = h  # before its activation: what the appearance branch sees
            if i < self.config.hidden_layers:
                h = self._activate(h)
        sdf = (h[back].view(b, n, k) * blend).sum(-1).reshape(*lead, n) * self.config.sdf_scale
        if z_app is None:
            return sdf, None
        shared = self.bottleneck[1](F.relu(self.bottleneck[0](feature)))
        za = z_app.expand(*lead, -1).reshape(-1, z_app.shape[-1])
        c = self._first_layer(self.appearance, za, pair, shared, counts, relu=True)
        for i in range(1, len(self.appearance.weights)):
            c = grouped_linear(c, self.appearance.weights[i], self.appearance.biases[i], counts)
            if i + 1 < len(self.appearance.weights):
                c = F.relu(c)
        colour = (c[back].view(b, n, k, 3) * blend[..., None]).sum(-2).reshape(*lead, n, 3)
        return sdf, colour

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

    def _local_coordinates(self, q: Tensor, anchors: Tensor, row: Tensor, pair: Tensor) -> Tensor:
        """Point relative to its member's anchor [P, 3 + H], mirrored for the odd member of a pair."""
        c = self.config
        centre = F.pad(anchors, (0, c.hyper_dim, 0, 1)).flatten(0, 1)  # [B * members, 3 + H]
        delta = q.flatten(0, 1)[row] - centre[pair]
        sign = 1 - 2 * self.mirrored[pair % c.n_members].to(delta.dtype)
        return torch.cat([delta[:, :1] * sign[:, None], delta[:, 1:]], -1)

    def _first_layer(
        self, mlp: GroupedMlp, z: Tensor, pair: Tensor, point: Tensor, counts: list[int], relu: bool = False
    ) -> Tensor:
        """First layer of the local MLPs; what depends on the code alone is computed once a member, not once a point."""
        glob, local = self.split_identity(z)
        weight, bias = mlp.weights[0], mlp.biases[0]
        of = self.mlp_of_member
        condition = torch.cat([glob.unsqueeze(1).expand(-1, self.config.n_members, -1), local], -1)  # [B, members, C]
        constant = torch.einsum("bmc,moc->bmo", condition, weight[of, :, : mlp.condition]) + bias[of]
        h = grouped_linear(point, weight[:, :, mlp.condition :], None, counts) + constant.flatten(0, 1)[pair]
        return F.relu(h) if relu else self._activate(h)


def _mlp_of_member(c: HeadConfig) -> Tensor:
    member = torch.arange(c.n_members)
    return torch.where(member < 2 * c.n_pairs, member // 2, member - c.n_pairs)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, A, C], index [B, N, K] -> [B, N, K, C]."""
    b, a, _ = values.shape
    flat = index + torch.arange(b, device=index.device)[:, None, None] * a
    return values.flatten(0, 1)[flat]


def _sort_by_mlp(mlp: Tensor, groups: int) -> tuple[Tensor, Tensor, list[int]]:
    """Order that sorts pairs by MLP, the way back, and the group sizes."""
    order = torch.argsort(mlp, stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return order, back, torch.bincount(mlp, minlength=groups).tolist()


def _linear_of_parts(layer: nn.Linear, parts: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
    """``layer(cat(parts, -1) * scale)``; the last part is constant over points and broadcast only after its product."""
    sizes = [p.shape[-1] for p in parts]
    columns = (layer.weight * scale if scale != 1.0 else layer.weight).split(sizes, -1)
    out = F.linear(parts[-1], columns[-1], layer.bias)
    for part, weight in zip(parts[:-1], columns[:-1], strict=True):
        out = out + F.linear(part, weight)
    return out
