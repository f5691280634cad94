"""A head model that follows control points: today's ``nphm-small``.

Some 1,400 points of the skin with their tangents are linear in the codes, like the landmarks. Blended at a point of
space they say three things about it: roughly how far the surface is (implicit moving least squares, Shen et al. 2004),
where it lies on the neutral head, and where on the mean head, the *template*. An ensemble of local MLPs on the
template, as NPHM's, corrects the rough distance. Lids and lips meet and part with their control points; no network has
to learn that, and none blurs it.

Everything is in model units (``conventions.MODEL_UNIT`` metres), head space.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.heads.config import HeadConfig
from nphm_track.heads.decoder import CACHED, GroupedMlp, NphmDecoder

WIDTH = 0.8
"""Spread of a control point's weight for the rough distance in units of its radius: wide, so that planes blend."""
POWER = 5
"""Its weight for motion falls with this power of the squared distance: sharp, so that lids and lips part."""
ROUGH_SCALE = 60.0
"""Factor on the rough distance where it enters the local MLPs: they see 4 mm as 1."""
COORDINATES = 9
"""Numbers of a control point: position and two tangents."""


class Controls(NamedTuple):
    """Control points of B heads.

    Attributes:
        position: [B, K, 3].
        plane: [B, K, 5] one, normal, height of the tangent plane.
        shift: [B, K, 7] one, the ways to the neutral head and to the template.
    """

    position: Tensor
    plane: Tensor
    shift: Tensor


class Seen(NamedTuple):
    """What control points say about x [B, N, 3]: rough signed distance [B, N], offset to the neutral head [B, N, 3],
    place on the template [B, N, 3]."""

    rough: Tensor
    offset: Tensor
    template: Tensor


class ControlPoints(nn.Module):
    """``coordinates = mean + identity z_id + expression e``, e the expression weights of z_ex; see the module.

    A control point sees the global code and the local codes of the members nearest to it, so that codes stay local.
    """

    mean: Tensor
    identity: Tensor
    expression: Tensor
    motion: Tensor
    members: Tensor
    radius: Tensor
    lift: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        c, k = config, config.control_points
        width = c.global_dim + c.control_members * c.local_dim
        self.register_buffer("mean", torch.zeros(k, COORDINATES))
        self.register_buffer("identity", torch.zeros(k, COORDINATES, width))
        self.register_buffer("expression", torch.zeros(k, COORDINATES, len(c.expression_names)))
        self.register_buffer("motion", torch.zeros(k, 3, len(c.expression_names)))
        self.register_buffer("members", torch.zeros(k, c.control_members, dtype=torch.long))
        self.register_buffer("radius", torch.ones(k))
        self.register_buffer("lift", torch.zeros(k))  # of the plane, for what blended planes cut off curved skin

    def forward(self, glob: Tensor, local: Tensor, e: Tensor) -> Controls:
        """Of codes [B, G] and [B, members, L] and expression weights [B, E]."""
        own = local[:, self.members].flatten(2)  # [B, K, 8 L]
        codes = torch.cat([glob.unsqueeze(1).expand(-1, len(self.mean), -1), own], -1)
        shape = torch.einsum("kcd,bkd->bkc", self.identity, codes)
        posed = self.mean + shape + torch.einsum("kcd,bd->bkc", self.expression, e)
        position, first, second = posed.split(3, -1)
        normal = F.normalize(torch.linalg.cross(first, second), dim=-1)
        height = (normal * position).sum(-1, keepdim=True) + self.lift[:, None]
        back = -torch.einsum("kcd,bd->bkc", self.motion, e)
        one = torch.ones_like(height)
        return Controls(
            position, torch.cat([one, normal, height], -1), torch.cat([one, back, back - shape[..., :3]], -1)
        )

    def look(self, x: Tensor, controls: Controls) -> Seen:
        """Blend the control points of B heads at x [B, N, 3]."""
        squared = self._squared(x, controls.position)
        plane, shift = self._wide(squared) @ controls.plane, self._sharp(squared)[0] @ controls.shift
        plane, shift = plane[..., 1:] / plane[..., :1], shift[..., 1:] / shift[..., :1]
        rough = (plane[..., :3] * x).sum(-1) - plane[..., 3]
        return Seen(rough, shift[..., :3], x + shift[..., 3:])

    def way(self, x: Tensor, controls: Controls) -> Tensor:
        """Offsets to the neutral head [B, N, 3] alone."""
        shift = self._sharp(self._squared(x, controls.position))[0] @ controls.shift[..., :4]
        return shift[..., 1:] / shift[..., :1]

    def slopes(self, x: Tensor, controls: Controls) -> tuple[Seen, Tensor, Tensor]:
        """As :meth:`look`, with the gradient of ``rough`` [B, N, 3] and the Jacobian of ``template`` [B, N, 3, 3]."""
        squared = self._squared(x, controls.position)
        inverse = 2 * self.radius**-2

        def blended(weight: Tensor, fall: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
            """Means [B, N, C - 1] and their derivatives [B, N, C - 1, 3]; d weight / dx = fall (x - a)."""
            placed = (carried.unsqueeze(-1) * controls.position.unsqueeze(-2)).flatten(2)
            rise = (fall @ carried).unsqueeze(-1) * x.unsqueeze(-2) - (fall @ placed).unflatten(-1, (-1, 3))
            sums = weight @ carried
            mean = sums[..., 1:] / sums[..., :1]
            return mean, (rise[..., 1:, :] - mean.unsqueeze(-1) * rise[..., :1, :]) / sums[..., :1, None]

        wide = self._wide(squared)
        plane, plane_slope = blended(wide, wide * inverse * (-0.5 / WIDTH**2), controls.plane)
        sharp, near = self._sharp(squared)
        shift, shift_slope = blended(sharp, -POWER * sharp * near * inverse, controls.shift)
        rough = (plane[..., :3] * x).sum(-1) - plane[..., 3]
        up = plane[..., :3] + (plane_slope[..., :3, :] * x.unsqueeze(-1)).sum(-2) - plane_slope[..., 3, :]
        jacobian = torch.eye(3, dtype=x.dtype, device=x.device) + shift_slope[..., 3:, :]
        return Seen(rough, shift[..., :3], x + shift[..., 3:]), up, jacobian

    def _squared(self, x: Tensor, position: Tensor) -> Tensor:
        """Squared distances [B, N, K] in units of the radii, by one matrix product."""
        one = torch.ones_like(x[..., :1])
        point = torch.cat([x.square().sum(-1, keepdim=True), x, one], -1)
        square = position.square().sum(-1, keepdim=True)
        terms = torch.cat([torch.ones_like(square), -2 * position, square], -1) * self.radius[:, None] ** -2
        return (point @ terms.mT).clamp_min(0)

    def _wide(self, squared: Tensor) -> Tensor:
        """Gaussian weights, up to a factor that is constant over the control points of a place."""
        return (squared.detach().amin(-1, keepdim=True) - squared).mul(0.5 / WIDTH**2).exp()

    def _sharp(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of motion, and 1 / (1 + squared)."""
        near = (1 + squared).reciprocal()
        return near.square().square() * near, near


class ControlledDecoder(NphmDecoder):
    """``F(x) = rough distance + correction(template place, rough distance; codes)``; see the module.

    The members of the ensemble stand at anchors of the template: the 65 that have local codes, then
    ``config.detail_pairs`` more pairs without. Each sees the codes of the ``control_members`` coded members nearest to
    it and z_ex; the odd member of a pair is its partner on the mirrored head.
    """

    mirrored_weights: Tensor
    detail_anchors: Tensor
    member_scale: Tensor
    neighbours: Tensor
    mlp_of_member: Tensor
    mirrored: Tensor

    def __init__(self, config: HeadConfig) -> None:
        nn.Module.__init__(self)
        self.config = c = config
        self.controls = ControlPoints(c)
        members = c.n_anchors + 2 * c.detail_pairs
        mlps = c.n_pairs + c.n_middle + c.detail_pairs
        self.register_buffer("mean_anchors", torch.zeros(c.n_anchors, 3))
        self.register_buffer("mean_landmarks", torch.zeros(c.n_landmarks, 3))
        self.register_buffer("detail_anchors", torch.zeros(2 * c.detail_pairs, 3))
        self.register_buffer("member_scale", torch.ones(members))
        self.register_buffer("neighbours", torch.zeros(members, c.control_members, dtype=torch.long))
        self.register_buffer("mirrored_weights", torch.eye(c.identity_basis))
        self.landmark_down = nn.Linear(c.identity_dim, c.landmark_rank, bias=False)
        self.landmark_up = nn.Linear(c.landmark_rank, c.n_landmarks * 3, bias=False)
        self.identity_basis = nn.Parameter(torch.randn(c.identity_dim, c.identity_basis) * 0.05)
        self.expression_basis = nn.Parameter(torch.randn(c.expression_dim, len(c.expression_names)) * 0.3)
        condition = c.global_dim + c.control_members * c.local_dim + c.expression_dim
        self.ensemble = GroupedMlp(mlps, condition, 4, c.hidden, c.hidden_layers, 1)
        index = torch.arange(members)
        coded = index < c.n_anchors
        paired = (index < 2 * c.n_pairs) | ~coded
        odd = torch.where(coded, index, index - c.n_anchors) % 2 == 1
        mlp = torch.where(index < 2 * c.n_pairs, index // 2, index - c.n_pairs)
        mlp = torch.where(coded, mlp, c.n_pairs + c.n_middle + (index - c.n_anchors) // 2)
        self.register_buffer("mlp_of_member", mlp, persistent=False)
        self.register_buffer("mirrored", paired & odd, persistent=False)

    # -- codes ---------------------------------------------------------------------------------------------------------
    def anchors(self, z_id: Tensor) -> Tensor:
        """Anchor positions [..., A, 3] on the canonical head: the first control points."""
        lead = z_id.shape[:-1]
        z = z_id.reshape(-1, z_id.shape[-1])
        controls = self.controls_of(z, z.new_zeros(len(z), self.config.expression_dim))
        return controls.position[:, : self.config.n_anchors].reshape(*lead, -1, 3)

    def mirror(self, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, D] of the mirrored heads: exact within the linear maps; the rest of z_id is swapped by pairs."""
        c = self.config
        to_weights, to_expressions = self._inverses()
        w = z_id @ to_weights.T
        glob, local = self.split_identity(z_id - w @ self.identity_basis.T)
        member = torch.arange(c.n_members, device=z_id.device)
        partner = torch.where(member < 2 * c.n_pairs, member ^ 1, member)
        swapped = torch.cat([glob, local[:, partner].flatten(1)], -1)
        e = z_ex @ to_expressions.T
        other = [c.expression_names.index(opposite(n)) for n in c.expression_names]
        return w @ self.mirrored_weights.T @ self.identity_basis.T + swapped, e[:, other] @ self.expression_basis.T

    # -- the field -----------------------------------------------------------------------------------------------------
    def deform(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """At posed ``points``: offsets to the canonical head [..., N, 3]; no hyper coordinates [..., N, 0]."""
        x, z_id, z_ex = self._flat(points, z_id, z_ex)
        controls = self.controls_of(z_id, z_ex)
        offset = torch.cat([self.controls.way(part, controls) for part in self._parts(x)], 1)
        return offset.reshape(*points.shape[:-1], 3), offset.new_zeros(*points.shape[:-1], 0)

    def sdf(self, points: Tensor, z_id: Tensor, z_ex: Tensor, *, tolerance: float = 0.0) -> Tensor:
        """Signed distance [..., N] at posed points, positive outside; ``tolerance`` as in ``NphmDecoder.sdf``."""
        x, z_id, z_ex = self._flat(points, z_id, z_ex)
        controls, shares = self.controls_of(z_id, z_ex), self.shares(z_id, z_ex)
        seen = [self.controls.look(part, controls) for part in self._parts(x)]
        rough, template = (torch.cat([getattr(part, name) for part in seen], 1) for name in ("rough", "template"))
        size = max(1, 2 * CACHED // (self.config.hidden * len(x)))
        parts = zip(template.split(size, 1), rough.split(size, 1), strict=True)
        return (rough + torch.cat([self.correction(*part, shares) for part in parts], 1)).reshape(points.shape[:-1])

    def canonical_sdf(self, queries: Tensor, z_id: Tensor, *, tolerance: float = 0.0) -> Tensor:
        """Signed distance [..., N] of the neutral head at points [..., N, 3]."""
        z_ex = z_id.new_zeros(*z_id.shape[:-1], self.config.expression_dim)
        return self.sdf(queries[..., :3], z_id, z_ex, tolerance=tolerance)

    def correction(self, template: Tensor, rough: Tensor, shares: Tensor) -> Tensor:
        """What the ensemble adds [B, N] to ``rough`` [B, N] at places [B, N, 3] of the template."""
        c = self.config
        member, blend = self._members_at(template)
        b, n, k = member.shape
        total = len(self.mlp_of_member)
        pair = member + total * torch.arange(b, device=member.device)[:, None, None]
        mlp = self.mlp_of_member[member.flatten()]
        counts = torch.bincount(mlp, minlength=int(self.mlp_of_member.max()) + 1).tolist()
        order = mlp.argsort(stable=True)
        pair, who = pair.flatten()[order], member.flatten()[order]
        anchors = torch.cat([self.mean_anchors, self.detail_anchors])
        local = (template.flatten(0, 1)[order // k] - anchors[who]) * self.member_scale[who, None]
        flip = torch.where(self.mirrored[who], -1.0, 1.0)[:, None]
        local = torch.cat([local[:, :1] * flip, local[:, 1:]], -1)
        q = torch.cat([local, ROUGH_SCALE * rough.flatten()[order // k, None]], -1)
        values = self.ensemble(q, counts, shares, pair, F.silu) * c.sdf_scale
        values = values.new_zeros(b * n * k, 1).index_copy(0, order, values).view(b, n, k)
        return (values * blend).sum(-1)

    def shares(self, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """First-layer shares [B * members, hidden] of codes [B, D]."""
        conditions = []
        for identity, expression in ((z_id, z_ex), self.mirror(z_id, z_ex)):
            glob, local = self.split_identity(identity)
            own = local[:, self.neighbours].flatten(2)
            shared = torch.cat([glob, expression], -1).unsqueeze(1).expand(-1, own.shape[1], -1)
            conditions.append(torch.cat([shared, own], -1))
        condition = torch.where(self.mirrored[:, None], conditions[1], conditions[0])
        return self.ensemble.constants(condition, self.mlp_of_member).flatten(0, 1)

    # -- internals -----------------------------------------------------------------------------------------------------
    def _inverses(self) -> tuple[Tensor, Tensor]:
        """Pseudo-inverses of the two maps to codes, worked out anew only when these have changed."""
        maps = self.identity_basis.detach(), self.expression_basis.detach()
        state = [(m.data_ptr(), m._version, m.dtype) for m in maps]
        if self.__dict__.get("_inverse", (None,))[0] != state:
            self.__dict__["_inverse"] = state, torch.linalg.pinv(maps[0]), torch.linalg.pinv(maps[1])
        _, to_weights, to_expressions = self.__dict__["_inverse"]
        return to_weights, to_expressions

    def controls_of(self, z_id: Tensor, z_ex: Tensor) -> Controls:
        """The control points of codes [B, D]."""
        out: Controls = self.controls(*self.split_identity(z_id), z_ex @ self._inverses()[1].T)
        return out

    def _members_at(self, template: Tensor) -> tuple[Tensor, Tensor]:
        """Members [B, N, K] at places of the template and their weights, which vanish where the next one takes over."""
        c = self.config
        anchors = torch.cat([self.mean_anchors, self.detail_anchors])
        with torch.no_grad():
            distance = torch.cdist(template, anchors, compute_mode="donot_use_mm_for_euclid_dist")
            distance = distance * (self.member_scale / self.member_scale.max())
            near = distance.topk(c.nearest + 1, largest=False).indices
        scale = (self.member_scale / self.member_scale.max())[near]
        squared = (template.unsqueeze(2) - anchors[near]).square().sum(-1) * scale.square()
        weight = (1 - squared[..., :-1] / squared[..., -1:]).clamp_min(0).square()
        return near[..., :-1], weight / (weight.sum(-1, keepdim=True) + 1e-8)

    def _flat(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lead = points.shape[:-2]
        x = points.reshape(math.prod(lead), *points.shape[-2:])
        return x, z_id.expand(*lead, -1).reshape(len(x), -1), z_ex.expand(*lead, -1).reshape(len(x), -1)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, 2 * CACHED // (self.config.control_points * max(1, len(x)))), 1)


def opposite(name: str) -> str:
    """The expression of the mirrored face."""
    if name.endswith(("_L", "_R")):
        return name[:-1] + {"L": "R", "R": "L"}[name[-1]]
    for a, b in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(a):
            return name[: -len(a)] + b
    return name
