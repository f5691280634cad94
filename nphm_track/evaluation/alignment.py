"""Similarity and rigid alignment of a predicted mesh with a scan."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from nphm_track.rendering.surface import FloatArray, Surface, unit
from nphm_track.rigid import Similarity

ITERATIONS = 40
TRIM = 0.97
"""Share of the matches kept, the closest ones."""
HUBER = 0.001
"""Metres from which a match pulls with constant force."""
MAX_ANGLE_COS = 0.26
"""Matches with normals further apart than 75 degrees are left out."""
GATE = 0.02
"""Metres (or four times the median distance) beyond which a match is left out."""
LEASH = 0.007
"""Metres the eye corners and the nose base may move freely from the scan's: point-to-surface distances alone let a mesh
slide and shrink."""
LEASH_STRENGTH = 0.3


def fit_surface(
    surface: Surface,
    points: FloatArray,
    normals: FloatArray,
    start: Similarity,
    points7: FloatArray,
    target7: FloatArray,
    *,
    scaled: bool,
) -> Similarity:
    """Robust ICP of a predicted surface onto scan points [N, 3] with unit normals.

    Trimmed, Huber-weighted distances to the closest points. ``points7`` of the prediction are held within ``LEASH`` of
    ``target7`` on the scan, the mouth corners excepted: they move with the expression.
    """
    fit = start
    for iteration in range(ITERATIONS):
        centre, at, direction, distance, weight = _matches(surface, points, normals, fit)
        gap = (fit(points7) - target7)[:5]
        length = np.linalg.norm(gap, axis=1)
        tight = length > LEASH
        pull = np.full(np.count_nonzero(tight), LEASH_STRENGTH * len(at) / 7)
        at = np.concatenate([at, fit(points7)[:5][tight] - centre])
        direction = np.concatenate([direction, gap[tight] / length[tight, None]])
        residual = np.concatenate([distance, length[tight] - LEASH])
        weight = np.concatenate([weight, pull])
        step = _gauss_newton(at, direction, residual, weight, scaled)
        fit = _moved(fit, step, centre)
        still = np.linalg.norm(step[3:6]) < 2e-6 and np.linalg.norm(step[:3]) < 2e-5
        if iteration > 8 and still and abs(step[6]) < 2e-5:
            break
    return fit


def fit_distances(surface: Surface, points: FloatArray, start: Similarity, *, scaled: bool) -> Similarity:
    """Least squares of all distances of scan points [N, 3] to a predicted surface, without trimming or landmarks.

    This is how NoW refines its alignment; ``fit_surface`` is the robust one. Levenberg-Marquardt: undamped steps run
    back and forth where the surface may slide along the scan.
    """
    fit, damping, everywhere = start, 1e-3, np.ones(len(points))
    hits = surface.closest(fit.inverse(points))
    cost = float((hits.distance * fit.scale) @ (hits.distance * fit.scale))
    for _ in range(ITERATIONS):
        place = fit(hits.point)
        direction = np.where(hits.distance[:, None] > 1e-7, unit(place - points), hits.normal @ fit.R.T)
        centre = place.mean(0)
        step = _gauss_newton(place - centre, direction, hits.distance * fit.scale, everywhere, scaled, damping)
        trial = _moved(fit, step, centre)
        found = surface.closest(trial.inverse(points))
        change = cost - float((found.distance * trial.scale) @ (found.distance * trial.scale))
        if change > 0:
            fit, hits, cost, damping = trial, found, cost - change, damping / 5
        else:
            damping *= 10
        if damping > 1e3 or 0 < change < 1e-5 * cost or cost < 1e-14 * len(points):
            break
    return fit


def _matches(
    surface: Surface, points: FloatArray, normals: FloatArray, fit: Similarity
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Trusted matches: centre [3], places about it, directions in which the distance grows, distances, weights."""
    hits = surface.closest(fit.inverse(points))
    place, normal, distance = fit(hits.point), hits.normal @ fit.R.T, hits.distance * fit.scale
    direction = np.where(distance[:, None] > 1e-7, unit(place - points), normal)
    trusted = ~hits.on_border & (np.abs((normal * normals).sum(1)) > MAX_ANGLE_COS)
    if np.count_nonzero(trusted) > 50:
        trusted &= distance <= max(np.quantile(distance[trusted], TRIM), 1e-9)
    trusted &= distance < max(GATE, 4 * np.median(distance[trusted]))
    place, distance = place[trusted], distance[trusted]
    centre = place.mean(0)
    return centre, place - centre, direction[trusted], distance, np.minimum(1, HUBER / np.maximum(distance, 1e-12))


def _gauss_newton(
    at: FloatArray,
    direction: FloatArray,
    residual: FloatArray,
    weight: FloatArray,
    scaled: bool,
    damping: float = 0.0,
) -> FloatArray:
    """Small motion [7] (rotation vector, translation, growth) that shortens the residuals."""
    columns = [np.cross(at, direction), direction]
    if scaled:
        columns.append((at * direction).sum(1, keepdims=True))
    J = np.concatenate(columns, axis=1)
    H = (J * weight[:, None]).T @ J
    H += np.eye(len(H)) * 1e-9 * np.trace(H) + np.diag(damping * np.diag(H))
    step = np.zeros(7)
    step[: len(H)] = -np.linalg.solve(H, (J * weight[:, None]).T @ residual)
    return step


def _moved(fit: Similarity, step: FloatArray, centre: FloatArray) -> Similarity:
    turn, growth = Rotation.from_rotvec(step[:3]).as_matrix(), 1 + step[6]
    return Similarity(float(fit.scale * growth), turn @ fit.R, growth * turn @ (fit.t - centre) + centre + step[3:6])
