"""Head pose from 2-D/3-D correspondences: scaled orthography, then robust Levenberg-Marquardt, batched over frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nphm_track.errors import InputError
from nphm_track.landmark_model import POSE as LANDMARKS
from nphm_track.rigid import rotation
from nphm_track.robust import geman_mcclure

_FRONTAL = (1.0, -1.0, -1.0)
"""Diagonal of the pose of a head that looks straight at the camera (head y up, z out of the face; camera y down)."""
_MIN_DEPTH = 0.01  # metres
_FACING_AWAY_PENALTY = 4.0
_START_POINTS = 40
"""Points that decide between the starting hypotheses; all points refine the winner."""


@dataclass(frozen=True)
class Pose:
    """Head-to-camera poses, ``x_cam = R x_head + t`` (OpenCV axes, metres), and how well they fit.

    Attributes:
        R: [*batch, 3, 3] rotations.
        t: [*batch, 3] translations.
        rms: [*batch] px, root mean square reprojection error under the given and the robust weights.
        weights: [*batch, N] robust weight of each point in [0, 1]; 0 where the given weight is 0.
        valid: [*batch] bool, False where fewer than four points were usable (the pose is then a placeholder).
    """

    R: Tensor
    t: Tensor
    rms: Tensor
    weights: Tensor
    valid: Tensor


@dataclass
class _Problem:
    """Flat batch in float64. Points are relative to their weighted mean, which decouples rotation and translation."""

    points: Tensor  # [B, N, 3] metres
    rays: Tensor  # [B, N, 2] normalised image coordinates x/z, y/z
    weights: Tensor  # [B, N]
    focal: Tensor  # [B, 1, 2] px, turns normalised residuals into pixels
    scale_px: float | None

    def repeat(self, times: int) -> _Problem:
        points, rays, focal = (x.repeat(times, 1, 1) for x in (self.points, self.rays, self.focal))
        return _Problem(points, rays, self.weights.repeat(times, 1), focal, self.scale_px)

    def thinned(self, count: int) -> _Problem:
        """At most ``count`` points a frame, usable ones first, otherwise spread by chance (the same every time)."""
        n = self.weights.shape[1]
        if n <= count:
            return self
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(self.weights)
        chosen = ((self.weights > 0) * (n + order)).topk(count).indices
        points, rays = (x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1])) for x in (self.points, self.rays))
        return _Problem(points, rays, self.weights.gather(1, chosen), self.focal, self.scale_px)


def solve_pnp(
    points_head: Tensor,
    pixels: Tensor,
    K: Tensor,
    weights: Tensor | None = None,
    init: tuple[Tensor, Tensor] | None = None,
    *,
    scale_px: float | None = None,
    iterations: int = 12,
) -> Pose:
    """Pose of every frame of a batch; computed in float64, returned in the type of ``pixels``.

    Args:
        points_head: [*batch, N, 3] or [N, 3] metres, head space.
        pixels: [*batch, N, 2] undistorted pixels.
        K: [3, 3] or [*batch, 3, 3].
        weights: [*batch, N] or [N], >= 0; points with weight 0 or non-finite coordinates are ignored.
        init: (R [*batch, 3, 3], t [*batch, 3]) to start from; without it poses are found from scratch.
        scale_px: residual beyond which a point counts as an outlier; None estimates it frame by frame.
        iterations: Levenberg-Marquardt steps.

    Raises:
        InputError: shapes do not fit or there are fewer than four points.
    """
    batch, n = pixels.shape[:-2], pixels.shape[-2]
    if pixels.shape[-1] != 2 or points_head.shape[-2:] != (n, 3) or n < 4:
        raise InputError(f"PnP needs N >= 4 points [N, 3] and [N, 2], not {[*points_head.shape]}, {[*pixels.shape]}")
    problem, centroid, valid = _flatten(points_head, pixels, K, weights, scale_px)
    if init is None:
        R, t = _from_scratch(problem.thinned(_START_POINTS))
    else:
        R = init[0].to(problem.points).expand(*batch, 3, 3).reshape(-1, 3, 3)
        t = init[1].to(problem.points).expand(*batch, 3).reshape(-1, 3)
        t = t + (R @ centroid[..., None])[..., 0]
    R, t, residual, robust = _levenberg_marquardt(problem, R, t, iterations)
    t = t - (R @ centroid[..., None])[..., 0]

    total = (problem.weights * robust).sum(-1).clamp_min(1e-12)
    rms = ((problem.weights * robust * residual.square().sum(-1)).sum(-1) / total).sqrt()
    robust = robust * (problem.weights > 0)
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    return Pose(
        R.to(dtype).reshape(*batch, 3, 3),
        t.to(dtype).reshape(*batch, 3),
        rms.to(dtype).reshape(batch),
        robust.to(dtype).reshape(*batch, n),
        valid.reshape(batch),
    )


def _flatten(
    points_head: Tensor, pixels: Tensor, K: Tensor, weights: Tensor | None, scale_px: float | None
) -> tuple[_Problem, Tensor, Tensor]:
    """The problem, centroids [B, 3] of the usable points and validity [B]; unusable points get weight 0."""
    batch, n = pixels.shape[:-2], pixels.shape[-2]
    pixels = pixels.double().reshape(-1, n, 2)
    points = points_head.to(pixels).expand(*batch, n, 3).reshape(-1, n, 3)
    K = K.to(pixels).expand(*batch, 3, 3).reshape(-1, 3, 3)
    w = pixels.new_ones(1) if weights is None else weights.to(pixels)
    w = w.expand(*batch, n).reshape(-1, n)
    usable = (w > 0) & pixels.isfinite().all(-1) & points.isfinite().all(-1)
    valid = usable.sum(-1) >= 4
    w = torch.where(usable, w, 0.0)
    w = w / w.amax(-1, keepdim=True).clamp_min(1e-12)
    pixels, points = (torch.where(usable[..., None], x, 0.0) for x in (pixels, points))
    centroid = (w[..., None] * points).sum(-2) / w.sum(-1, keepdim=True).clamp_min(1e-12)
    focal = K.diagonal(dim1=-2, dim2=-1)[:, None, :2]
    rays = (pixels - K[:, None, :2, 2]) / focal
    return _Problem(points - centroid[:, None], rays, w, focal, scale_px), centroid, valid


def _from_scratch(problem: _Problem) -> tuple[Tensor, Tensor]:
    """The best of three closed-form starts (the affine pose and both depth flips of the plane through the points)."""
    starts = _scaled_orthography(problem)
    hypotheses = len(starts)
    R = torch.cat([R for R, _ in starts])
    t = torch.cat([t for _, t in starts])
    R, t, residual, _ = _levenberg_marquardt(problem.repeat(hypotheses), R, t, iterations=4)
    distance = residual.norm(dim=-1).reshape(hypotheses, *problem.weights.shape)
    # One scale for all hypotheses of a frame, or each would excuse its own errors.
    scale = _residual_scale(distance, problem.weights, problem.scale_px).amin(0)[:, None]
    cost = (problem.weights * geman_mcclure((distance / (LANDMARKS.outlier * scale)).square())[0]).sum(-1)
    # Landmarks are found on faces, so a head seen from behind is the wrong flip unless nothing else fits.
    facing = -R.reshape(hypotheses, -1, 3, 3)[..., 2, 2]
    cost = cost * (1 + _FACING_AWAY_PENALTY * (-facing).clamp_min(0))
    best = cost.argmin(0)
    frames = torch.arange(len(best), device=best.device)
    return R.reshape(hypotheses, -1, 3, 3)[best, frames], t.reshape(hypotheses, -1, 3)[best, frames]


def _scaled_orthography(problem: _Problem) -> list[tuple[Tensor, Tensor]]:
    """Poses (R [B, 3, 3], t [B, 3]) under orthography along the ray through the middle of the points.

    The affine map from head to image gives one pose; where the points are nearly flat its depth part is noise, and the
    part within their plane gives two (the Necker reversal).
    """
    w, points = problem.weights, problem.points
    middle = _weighted_median(problem.rays, w)
    to_axis = _rotation_to_axis(middle)
    seen = _homogeneous(problem.rays) @ to_axis.mT
    seen = seen[..., :2] / seen[..., 2:].clamp_min(0.1)

    # Rows of the affine map [B, 3, 2]: robust least squares on (point, 1), from the principal axes of the points.
    covariance = (w[..., None] * points).mT @ points
    axes = torch.linalg.eigh(covariance)[1].flip(-1)  # columns: widest first, the normal of the plane last
    axes = torch.cat([axes[..., :2], torch.linalg.cross(axes[..., 0], axes[..., 1])[..., None]], dim=-1)
    local = _homogeneous(points @ axes)  # [B, N, 4]
    robust = torch.ones_like(w)
    ridge = 1e-9 * torch.eye(4).to(local)
    for _ in range(6):
        normal = (w[..., None] * robust[..., None] * local).mT
        gram = normal @ local
        size = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None].clamp_min(1e-12)
        affine = torch.linalg.solve(gram + ridge * size, normal @ seen)
        distance = (local @ affine - seen).norm(dim=-1)
        scale = _residual_scale(distance, w, None, floor=1e-6)[..., None]
        robust = 1 / (1 + (distance / (LANDMARKS.outlier * scale)).square())
    offset = affine[:, 3]

    starts = [_orthonormal_rows(affine[:, :3].mT)]
    c1, c2 = affine[:, 0], affine[:, 1]
    # Third coordinates (p, q) that make the columns orthogonal and as long: (p + iq)^2 = |c2|^2 - |c1|^2 - 2i c1.c2
    root = torch.sqrt(torch.complex(c2.square().sum(-1) - c1.square().sum(-1), -2 * (c1 * c2).sum(-1)))
    for sign in (1.0, -1.0):
        depth = sign * torch.view_as_real(root)
        scale = (c1.square().sum(-1) + depth[:, 0].square()).sqrt().clamp_min(1e-12)
        columns = torch.cat([torch.stack([c1, c2], dim=-1), depth[:, None]], dim=1) / scale[:, None, None]
        rows = torch.linalg.cross(columns[..., 0], columns[..., 1])[..., None]
        starts.append((torch.cat([columns, rows], dim=-1), scale))

    poses = []
    for turn, scale in starts:
        t = _homogeneous(offset) / scale.clamp_min(1e-6)[:, None]
        R = to_axis.mT @ turn @ axes.mT
        poses.append((_nearest_rotation(R), (to_axis.mT @ t[..., None])[..., 0]))
    return poses


def _levenberg_marquardt(
    problem: _Problem, R: Tensor, t: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Refine poses of centred points; also the residuals [B, N, 2] px and robust weights [B, N] at the end."""
    points, w = problem.points, problem.weights
    damping = t.new_full(t.shape[:1], 1e-3)
    eye = torch.eye(6).to(points)
    t = torch.cat([t[:, :2], t[:, 2:].clamp_min(_MIN_DEPTH)], dim=-1)
    turned = points @ R.mT
    residual = _residual(turned + t[:, None], problem)
    scale = torch.full_like(damping, torch.inf)
    for _ in range(iterations):
        distance = residual.norm(dim=-1)
        scale = torch.minimum(scale, _residual_scale(distance, w, problem.scale_px))
        cutoff = (LANDMARKS.outlier * scale)[:, None]
        # Geman-McClure's weight; its sum of squares is the cost near the present residuals.
        weight = w * geman_mcclure((distance / cutoff).square())[1]
        hessian, gradient = _normal_equations(turned, t, residual, weight, problem.focal)
        diagonal = hessian.diagonal(dim1=-2, dim2=-1).clamp_min(1e-9)
        system = hessian + torch.diag_embed(damping[:, None] * diagonal) + 1e-12 * eye
        step = -torch.linalg.solve_ex(system, gradient[..., None])[0][..., 0]
        step = step.nan_to_num(0.0, 0.0, 0.0).clamp(-1e3, 1e3)
        turn = rotation(step[:, :3])
        new_t = t + step[:, 3:]
        new_turned = turned @ turn.mT
        moved = new_turned + new_t[:, None]
        new_residual = _residual(moved, problem)
        cost = (w * geman_mcclure((distance / cutoff).square())[0]).sum(-1)
        new_cost = (w * geman_mcclure((new_residual.norm(dim=-1) / cutoff).square())[0]).sum(-1)
        better = (new_cost < cost) & (moved[..., 2].amin(-1) > _MIN_DEPTH / 2)
        R = torch.where(better[:, None, None], turn @ R, R)
        t = torch.where(better[:, None], new_t, t)
        turned = torch.where(better[:, None, None], new_turned, turned)
        residual = torch.where(better[:, None, None], new_residual, residual)
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-9, 1e6)
        if (step.abs().amax() < 1e-9).item():
            break
    distance = residual.norm(dim=-1)
    scale = torch.minimum(scale, _residual_scale(distance, w, problem.scale_px))
    robust = geman_mcclure((distance / (LANDMARKS.outlier * scale)[:, None]).square())[1]
    return R, t, residual, robust


def _residual(points_cam: Tensor, problem: _Problem) -> Tensor:
    depth = points_cam[..., 2:].clamp_min(_MIN_DEPTH / 2)
    return (points_cam[..., :2] / depth - problem.rays) * problem.focal


def _normal_equations(
    turned: Tensor, t: Tensor, residual: Tensor, weight: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor]:
    """J'WJ [B, 6, 6] and J'Wr [B, 6] for a turn about the points' centre (left, axis-angle) and a shift."""
    moved = turned + t[:, None]
    inverse_depth = 1 / moved[..., 2].clamp_min(_MIN_DEPTH / 2)
    scale = focal * inverse_depth[..., None]
    x, y = (moved[..., :2] * inverse_depth[..., None]).unbind(-1)
    px, py, pz = turned.unbind(-1)
    zero = torch.zeros_like(x)
    # d(u, v)/d(point) is [1, 0, -x] and [0, 1, -y] times f/z; the turn moves a point by omega x p.
    row_u = torch.stack([-x * py, pz + x * px, -py, zero + 1, zero, -x], dim=-1) * scale[..., :1]
    row_v = torch.stack([-pz - y * py, y * px, px, zero, zero + 1, -y], dim=-1) * scale[..., 1:]
    jacobian = torch.cat([row_u, row_v], dim=1)
    weighted = (jacobian * torch.cat([weight, weight], dim=1)[..., None]).mT
    flat = torch.cat([residual[..., 0], residual[..., 1]], dim=1)
    return weighted @ jacobian, (weighted @ flat[..., None])[..., 0]


def _residual_scale(distance: Tensor, weights: Tensor, scale_px: float | None, floor: float = 1e-3) -> Tensor:
    """Standard deviation per axis of the bulk of the residual lengths [..., N]; points of weight 0 do not count."""
    if scale_px is not None:
        return distance.new_full(distance.shape[:-1], scale_px / LANDMARKS.outlier)
    bulk = torch.where(weights > 0, distance, torch.nan).nanmedian(-1).values
    return (bulk / 1.1774).nan_to_num(1.0).clamp_min(floor)  # median of a Rayleigh variable


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    return torch.where(weights[..., None] > 0, values, torch.nan).nanmedian(-2).values.nan_to_num(0.0)


def _homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def _rotation_to_axis(ray: Tensor) -> Tensor:
    """Smallest rotations [B, 3, 3] that bring viewing directions (x, y, 1) [B, 2] onto the optical axis."""
    tangent = ray.norm(dim=-1, keepdim=True)
    axis = torch.stack([ray[:, 1], -ray[:, 0], torch.zeros_like(ray[:, 0])], dim=-1) / tangent.clamp_min(1e-12)
    return rotation(axis * tangent.atan())


def _orthonormal_rows(affine: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [B, 3, 3] and scale [B] whose first two rows are nearest to an affine camera [B, 2, 3]."""
    u, s, vh = torch.linalg.svd(affine, full_matrices=False)
    rows = u @ vh
    third = torch.linalg.cross(rows[:, 0], rows[:, 1])
    return torch.cat([rows, third[:, None]], dim=1), s.mean(-1)


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """Proper rotations nearest to [B, 3, 3]; the frontal head where a matrix is degenerate."""
    frontal = torch.diag(torch.tensor(_FRONTAL)).to(matrix)
    broken = (~matrix.isfinite().all(-1).all(-1)) | (matrix.det().abs() < 1e-3)
    matrix = torch.where(broken[:, None, None], frontal, matrix)
    u, _, vh = torch.linalg.svd(matrix)
    flip = torch.ones_like(matrix[:, 0])
    flip[:, 2] = (u @ vh).det().sign()
    return (u * flip[:, None]) @ vh
