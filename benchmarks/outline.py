"""How much a head's outline could tell of its shape, beside the image codes and the landmarks.

python benchmarks/outline.py --ict FOLDER --faces data/faces_heldout

Linear and Gaussian, so nothing is drawn or searched for: identities and expressions err as the regressor's do on
held-out renders (their covariance), landmarks by 1.5 mm each, the pose is free. The outline, the rim of the face and
jaw seen from some angle, is found everywhere, off by so many mm at 30 independent places. Prints the RMS error of the
face's shape that is left (mm, placed): an upper bound of what a silhouette term can gain.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from report import table

from models import image_regressor
from nphm_track._runtime import prepare_torch
from nphm_track.geometry.networks import GeometryNet
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads, load_ict

YAWS = (0, 15, 25, 40)
OUTLINE_MM = (0.3, 1.0, 2.0)
LANDMARK_MM, LANDMARKS, PLACES = 1.5, 60, 30
Array = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--faces", required=True)
    args = parser.parse_args()
    prepare_torch()
    heads = load_ict(args.ict)
    identity, expression = error_covariances(args.ict, args.faces)
    prior = np.zeros((len(identity) + len(expression) + 6,) * 2)  # precision of identity, expression, turn, shift
    k, e = len(identity), len(identity) + len(expression)
    prior[:k, :k], prior[k:e, k:e] = np.linalg.inv(identity), np.linalg.inv(expression)
    prior[e:, e:] = np.diag([np.radians(3) ** -2] * 3 + [10.0**-2] * 3)

    v = 1000 * heads.neutral.astype(np.float64)
    face = (v[:, 2] > -20) & (np.abs(v[:, 1] + 5) < 85)
    tip = v[np.argmax(np.where(face, v[:, 2], -np.inf))]
    shape = np.flatnonzero(face & (np.linalg.norm(v - tip, axis=1) < 90))[::3]
    marks = np.random.default_rng(0).choice(np.flatnonzero(face), LANDMARKS, replace=False)
    placed = placed_shape(heads, v, shape)
    rows = []
    for yaw in YAWS:
        angle = np.radians(yaw)
        right, up = np.array([np.cos(angle), 0, -np.sin(angle)]), np.array([0.0, 1.0, 0.0])
        rim, outward = outline(heads, v, tip, right, up)
        seen = np.concatenate([np.einsum("k,pkc->pc", axis, motions(heads, v, marks)) for axis in (right, up)])
        information = prior + seen.T @ seen / LANDMARK_MM**2
        across = np.einsum("pk,pkc->pc", outward, motions(heads, v, rim)) * np.sqrt(min(1, PLACES / len(rim)))
        left = [rms(placed, information, k)]
        left += [rms(placed, information + across.T @ across / mm**2, k) for mm in OUTLINE_MM]
        rows.append([yaw, len(rim), *left, *(f"{100 * (1 - value / left[0]):.1f} %" for value in left[1:])])
    columns = ["yaw", "vertices of the rim", "without", *(f"outline to {mm} mm" for mm in OUTLINE_MM)]
    print(table(columns + [f"gain at {mm} mm" for mm in OUTLINE_MM], rows))


@torch.no_grad()
def error_covariances(ict: str, faces: str) -> tuple[Array, Array]:
    """Of the regressor's identity weights [K, K] and expression weights [E, E]."""
    task = image_regressor(ict, faces, GeometryNet.from_pretrained())
    codes = task._predict(task.model.eval(), task.heldout_table, None)
    found = task.terms.weights(codes.z_id, codes.z_ex)
    wrong = [(f - task.heldout_table[name]).double().numpy() for f, name in zip(found, "we", strict=True)]
    return tuple(np.cov(d.T) + 1e-6 * np.eye(d.shape[1]) for d in wrong)  # type: ignore[return-value]


def motions(heads: IctHeads, v: Array, index: NDArray[np.int64]) -> Array:
    """Derivative [P, 3, C] (mm) of vertices by identity, expression, turn (radians) and shift (mm)."""
    x = v[index] - v.mean(0)
    bases = [1000 * basis[:, index].transpose(1, 2, 0) for basis in (heads.identity, heads.expression)]
    turns = np.stack([np.cross(axis, x) for axis in np.eye(3)], -1)
    return np.concatenate([*bases, turns, np.broadcast_to(np.eye(3), (len(x), 3, 3))], -1)


def placed_shape(heads: IctHeads, v: Array, index: NDArray[np.int64]) -> Array:
    """Derivative [3 P, K] of the shape by the identity, less what moving, turning and scaling explains."""
    moved = motions(heads, v, index)
    x = v[index] - v[index].mean(0)
    q = np.linalg.qr(np.concatenate([moved[..., -6:].reshape(-1, 6), x.reshape(-1, 1)], 1))[0]
    j = moved[..., : len(heads.identity)].reshape(len(q), -1)
    return j - q @ (q.T @ j)


def outline(heads: IctHeads, v: Array, tip: Array, right: Array, up: Array) -> tuple[NDArray[np.int64], Array]:
    """Vertices on the rim of face and jaw seen along right x up, and the unit vectors [P, 3] across the rim."""
    corner = v[heads.faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    front = normal @ np.cross(right, up) > 0
    sides = np.zeros((2, len(v)), bool)
    for side in (0, 1):
        sides[side, heads.faces[front == bool(side)]] = True
    flat, across = (np.stack([x @ right, x @ up], 1) for x in (v, vertex_normals(v, heads.faces).astype(np.float64)))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    rim = []
    for i in np.flatnonzero(sides.all(0) & (np.linalg.norm(v - tip, axis=1) < 125)):
        offset = flat - flat[i]
        beside = np.abs(offset @ [-across[i, 1], across[i, 0]]) < 3
        if not (beside & (offset @ across[i] > 2)).any():  # nothing of the head lies farther out
            rim.append(i)
    return np.array(rim), across[rim, :1] * right + across[rim, 1:] * up


def rms(placed: Array, information: Array, k: int) -> float:
    covariance = np.linalg.inv(information)[:k, :k]
    return float(np.sqrt(3 * np.einsum("pi,ij,pj->", placed, covariance, placed) / len(placed)))


if __name__ == "__main__":
    main()
