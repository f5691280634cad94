"""The head model with codes of its own for every point, arranged for second derivatives.

The same parameters and the same function as ``NphmDecoder.sdf`` (a test says so). What differs is the work that rows of
derivatives take: the identity enters through parts (anchors, compressed code, code) whose own derivative is the same at
all points and is taken once; only the members that a point needs see its code; SiLU knows its second derivative, which
autograd would take through a dozen elementary operations.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nphm_track.heads.decoder import NphmDecoder


class PointDecoder:
    """Distances and offsets of a decoder at points x [P, 3] (model units), with an expression code z_ex [P, D_ex] each.

    Attributes:
        model: a copy of the decoder that shares all its parameters; only the activation is another implementation.
    """

    def __init__(self, model: NphmDecoder) -> None:
        self.model = copy.copy(model)
        self.config = model.config
        if model.config.activation == "silu":
            self.model.activate = _Silu.apply

    def identity_parts(self, z_id: Tensor) -> Tensor:
        """What z_id [..., D_id] enters the network through, [..., U]: compressed code, anchors, the code itself."""
        anchors = self.model.anchors(z_id).flatten(-2)
        return torch.cat([self.model.compressor(torch.cat([z_id, anchors], -1)), anchors, z_id], -1)

    def identity_parts_by(self, z_id: Tensor, basis: Tensor) -> Tensor:
        """Derivative [U, k] of the parts at z_id [D_id] along the columns of ``basis`` [D_id, k]."""
        glob = slice(self.config.global_dim)
        jacobian = torch.autograd.functional.jacobian(self.model.anchors, z_id[glob], vectorize=True).flatten(0, 1)
        anchors = jacobian @ basis[glob]
        return torch.cat([self.model.compressor.weight @ torch.cat([basis, anchors]), anchors, basis])

    def offsets(self, x: Tensor, parts: Tensor, z_ex: Tensor) -> Tensor:
        """Offsets to the canonical head and hyper coordinates [P, 3 + H]; parts [U] or [P, U], of which only the
        compressed code is used."""
        c, model = self.config, self.model
        compressed = parts[..., : c.compressed_dim].expand(len(x), -1)
        field = None
        if c.bilinear:
            weight = torch.einsum("cko,pk->pco", model.expression_field.weight.unflatten(0, (3, -1)), z_ex)
            bias = z_ex @ model.expression_field.bias.unflatten(0, (3, -1)).mT
            field = weight.mT, bias.unsqueeze(-2)
        return model._deform(x[:, None], torch.cat([compressed, z_ex], -1)[:, None], field)[:, 0]

    def distances(self, x: Tensor, parts: Tensor, z_ex: Tensor) -> Tensor:
        """Signed distance [P]; parts [U] of everyone or [P, U]."""
        out = self.offsets(x, parts, z_ex)
        q = torch.cat([x + out[:, :3], out[:, 3:]], -1)
        if parts.dim() == 1:
            return self.model.canonical_sdf(q[None], parts[-self.config.identity_dim :][None])[0]
        return self._own_members(q, parts)

    def _own_members(self, q: Tensor, parts: Tensor) -> Tensor:
        """The ensemble's distance [P] at canonical queries q [P, 3 + H] with identity parts [P, U] for each."""
        c, model = self.config, self.model
        glob, own = model.split_identity(parts[:, -c.identity_dim :])
        anchors = parts[:, c.compressed_dim : -c.identity_dim].unflatten(-1, (-1, 3))
        member, blend = model._blend(q[:, None, :3], anchors)

        # One row for each point and member that weighs there, sorted by the MLP that evaluates it.
        K = member.shape[-1]
        mlp = model.mlp_of_member[member.flatten()]
        counts = torch.bincount(mlp, minlength=c.n_mlps).tolist()
        index = mlp.argsort(stable=True)
        point, who = index // K, member.flatten()[index]
        centre = F.pad(anchors, (0, c.hyper_dim, 0, 1))[point, who]
        local = (q.index_select(0, point) - centre) * model.local_axes[who]
        codes = torch.cat([glob.index_select(0, point), own[point, who]], -1)

        # The codes' share of the first layer, which is linear in them.
        ensemble = model.ensemble
        first = zip(ensemble.biases[0].unbind(), ensemble.weights[0].unbind(), strict=True)
        shares = [
            torch.addmm(bias, code, weight[:, : ensemble.condition].T)
            for (bias, weight), code in zip(first, codes.split(counts), strict=True)
        ]
        which = torch.arange(len(index), device=q.device)
        values = ensemble(local, counts, torch.cat(shares), which, model.activate) * c.sdf_scale
        values = values.new_zeros(len(index), 1).index_copy(0, index, values).view(-1, K)
        return (values * blend[:, 0]).sum(-1)


class _Silu(torch.autograd.Function):
    """y = x s with the sigmoid s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.silu(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grads[0], x)
        return cast("Tensor", _SiluBackward.apply(grads[0], x, y.detach()))


class _SiluBackward(torch.autograd.Function):
    """g y' with y' = y + s (1 - y); y'' = (1 - s) (2 y' - y)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        slope = torch.addcmul(y, s, 1 - y)
        ctx.save_for_backward(g, slope, s, y)
        ctx.bend = None
        return g * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        g, slope, s, y = ctx.saved_tensors
        if ctx.bend is None:  # the same for every row
            ctx.bend = torch.sub(y, slope, alpha=2).mul_(s - 1).mul_(g)
        return grads[0] * slope, grads[0] * ctx.bend, None
