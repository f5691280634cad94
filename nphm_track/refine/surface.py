"""The head's surface seen along rays, with exact derivatives: the fast renderer of the refinement.

A ray x(s) = o + s d meets the surface where F(x; z) = 0. The implicit function theorem gives how the depth s moves with
codes and rays, ``ds = -(dF/dz dz + n . (do + s dd)) / (n . d)``, and the normal's own motion follows from the second
derivatives of F: one evaluation of the network and three backward passes a pixel, with codes repeated for each pixel so
that the passes return a row for each (``network`` makes that cheap).

Why rows and not a loss: with the rows of all pixels a Gauss-Newton step costs as much as two or three gradient steps
and replaces dozens; expression weights and poses differ in scale by orders of magnitude, which first-order steps suffer
from and Gauss-Newton does not see. Newton steps on an implicit surface also need no samples off the surface.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.refine.codes import CodeSpace
from nphm_track.refine.network import PointDecoder

CHUNK = 2048
"""Rays linearised at once."""
MAX_CORRECTION = 0.004
"""Metres; a Newton step along a ray, or of a landmark, longer than this is cut: the surface is not that flat."""
ON_SURFACE = 0.0015
"""Metres; a ray whose last correction was longer has not found the surface."""
MIN_FACING = 0.15
"""Least cosine between the normal and the way to the camera; near the outline a depth means nothing."""
MAX_CURVATURE = 400.0
"""1 / metre; in sharper creases, where lips or lids meet, a normal's derivative holds for no step worth taking."""


@dataclass(frozen=True)
class Seen:
    """The surface at P rays (metres, head space).

    Attributes:
        depth: [P] s with x = o + s d.
        normal: [P, 3] unit, outward.
        valid: [P] the ray meets the surface from outside, not at a grazing angle.
    """

    depth: Tensor
    normal: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SeenRows(Seen):
    """With derivatives; the normal's are its coordinates along ``tangents`` [P, 2, 3].

    Attributes:
        depth_code, normal_code: [P, C], [P, 2, C] by the code weights: identity (when asked for), then expression.
        depth_ray, normal_ray: [P, 6], [P, 2, 6] by the ray's origin and direction.
    """

    tangents: Tensor
    depth_code: Tensor
    depth_ray: Tensor
    normal_code: Tensor
    normal_ray: Tensor


@dataclass(frozen=True)
class Rays:
    """P rays, each of one of B frames: origin, direction [P, 3] (metres, head space), frame [P], start depth [P]."""

    origin: Tensor
    direction: Tensor
    frame: Tensor
    depth: Tensor

    def split(self, size: int) -> list[Rays]:
        columns = zip(*(getattr(self, f.name).split(size) for f in fields(self)), strict=True)
        return [Rays(*part) for part in columns]


class Renderer(Protocol):
    """Sees the head's surface along rays; z_id [D_id], z_ex [B, D_ex]."""

    def see(self, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Seen: ...

    def linearise(self, rays: Rays, z_id: Tensor, z_ex: Tensor, *, identity: bool) -> SeenRows:
        """``identity``: derivatives by the identity weights come first among the code columns."""
        ...


class SurfaceRenderer:
    """Surface points by Newton steps along the ray from a start near the surface, exact implicit derivatives."""

    def __init__(self, model: NphmDecoder, space: CodeSpace) -> None:
        self.model, self.space = PointDecoder(model), space

    def see(self, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Seen:
        parts, person = [], self.model.identity_parts(z_id).detach()
        for part in rays.split(2 * CHUNK):
            depth, normal, found = part.depth, part.direction, torch.zeros_like(part.depth, dtype=torch.bool)
            for _ in range(3):
                x = (part.origin + depth[:, None] * part.direction) / MODEL_UNIT
                sdf, gradient = self._gradient(x, person, z_ex[part.frame])
                depth, normal, found = newton(part, depth, sdf, gradient)
            parts.append((depth, normal, found))
        depth, normal, found = (torch.cat(column) for column in zip(*parts, strict=True))
        return Seen(depth, normal, found)

    def linearise(self, rays: Rays, z_id: Tensor, z_ex: Tensor, *, identity: bool) -> SeenRows:
        person = self.model.identity_parts(z_id).detach()
        basis = self.model.identity_parts_by(z_id, self.space.identity) if identity else None
        parts = [self._linearise(part, person, basis, z_ex) for part in rays.split(CHUNK)]
        return SeenRows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(SeenRows)))

    def _gradient(self, x: Tensor, person: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            sdf = self.model.distances(y, person, z_ex)
            (gradient,) = torch.autograd.grad(sdf.sum(), y)
        return sdf.detach(), gradient

    @torch.enable_grad()
    def _linearise(self, rays: Rays, person: Tensor, basis: Tensor | None, z_ex: Tensor) -> SeenRows:
        """``person`` [U] identity parts; ``basis`` [U, k] their derivative by the identity weights, if these count."""
        y = ((rays.origin + rays.depth[:, None] * rays.direction) / MODEL_UNIT).detach().requires_grad_(True)
        codes = [z_ex[rays.frame].detach().requires_grad_(True)]
        bases = [self.space.expression]
        if basis is not None:
            codes.insert(0, person.expand(len(y), -1).clone().requires_grad_(True))
            bases.insert(0, basis)
        sdf = self.model.distances(y, person if basis is None else codes[0], codes[-1])
        gradient, *by_code = torch.autograd.grad(sdf.sum(), [y, *codes], create_graph=True)
        g = gradient.detach()
        tangents = tangent_frame(F.normalize(g, dim=-1))
        rows = [
            torch.autograd.grad((gradient * tangents[:, i]).sum(), [y, *codes], retain_graph=i == 0) for i in (0, 1)
        ]
        with torch.no_grad():
            size = g.norm(dim=-1)
            hessian = torch.stack([row[0] for row in rows], 1) / size[:, None, None]  # [P, 2, 3], per model unit
            mixed = [
                torch.stack([row[k + 1] for row in rows], 1) @ basis / size[:, None, None]
                for k, basis in enumerate(bases)
            ]
            by_weight = torch.cat([d @ basis for d, basis in zip(by_code, bases, strict=True)], -1)
            depth, normal, valid = newton(rays, rays.depth, sdf.detach(), g)
            along = (g * rays.direction).sum(-1, keepdim=True)  # n . d
            along = torch.where(along.abs() > 1e-6, along, -1e-6)
            depth_code = -MODEL_UNIT * by_weight / along
            by_origin = -g / along
            depth_ray = torch.cat([by_origin, by_origin * depth[:, None]], -1)
            # The normal where the corrected depth is, and its motion with the point's: dx = do + s dd + d ds.
            turn = torch.einsum("pij,pj->pi", hessian, rays.direction) / MODEL_UNIT  # [P, 2] by ds
            normal = F.normalize(g, dim=-1) + torch.einsum("pik,pi,p->pk", tangents, turn, depth - rays.depth)
            base = hessian / MODEL_UNIT
            valid &= base.flatten(1).norm(dim=-1) < MAX_CURVATURE
            normal_ray = torch.cat([base, base * depth[:, None, None]], -1) + turn[..., None] * depth_ray[:, None]
            normal_code = torch.cat(mixed, -1) + turn[..., None] * depth_code[:, None]
        return SeenRows(
            depth, F.normalize(normal, dim=-1), valid, tangents, depth_code, depth_ray, normal_code, normal_ray
        )


def newton(rays: Rays, depth: Tensor, sdf: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth after a step, unit normal, and whether the ray meets the surface there."""
    direction = F.normalize(rays.direction, dim=-1)
    normal = F.normalize(gradient, dim=-1)
    facing = -(normal * direction).sum(-1)
    slope = (gradient * direction).sum(-1)
    step = -sdf * MODEL_UNIT / torch.where(slope.abs() > 1e-6, slope, 1e-6)
    found = (step.abs() < ON_SURFACE) & (facing > MIN_FACING)
    step = step.clamp(-MAX_CORRECTION, MAX_CORRECTION)
    return depth + step / rays.direction.norm(dim=-1), normal, found


def tangent_frame(normal: Tensor) -> Tensor:
    """Two unit vectors [P, 2, 3] across unit ``normal`` [P, 3]."""
    helper = torch.zeros_like(normal)
    helper.scatter_(-1, normal.abs().argmin(-1, keepdim=True), 1.0)
    first = F.normalize(torch.linalg.cross(normal, helper), dim=-1)
    return torch.stack([first, torch.linalg.cross(normal, first)], 1)
