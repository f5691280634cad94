"""Weights of a rig's shapes for expression codes of any head model.

A model that knows ARKit's expressions says them by its linear map. Of any other, MonoNPHM first, the code moves the
wrapped template by inverting its deformation at some vertices, and the weights are those of the shapes that move the
rig most like that: robust linear least squares under a prior, within a box. Close to the lips' edges nothing is asked,
since a point of one lip may be found on the other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track import expression_prior
from nphm_track.bounded import solve_within
from nphm_track.conventions import LIP_RIMS, MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import pose_points
from nphm_track.heads.rig import Rig, knows_arkit
from nphm_track.robust import geman_mcclure

PLACES = 600
"""Vertices whose motion is looked at, among those that a neural surface is a witness of."""
WITNESS = 0.3
"""``Template.trust`` from which a vertex is one; less is the inside of lids, lips, nostrils and ears."""
SIGMA, INDEPENDENT = 0.0005, 400
"""Metres that shapes miss of a motion, and how many vertices count as independent."""
LIPS_AWAY = 0.006
"""Metres from the edges of the lips within which vertices are no witnesses."""
OUTLIER, ROUNDS = 0.003, 3
"""Metres beyond which a motion is an error, and how often the errors are judged anew."""
TOLERANCE, FOUND = 4e-4, 4e-3
"""Of inverting (model units, 0.1 mm), and the residual (1 mm) from which a vertex was not found and says nothing."""
LARGEST = 1.0
"""Weight of a shape at most: software clamps it."""
BATCH = 32
"""Frames inverted at once."""


def rig_weights(
    rig: Rig, model: NphmDecoder, z_id: Tensor, z_ex: Tensor, gaze: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Weights [T, K] of expression codes z_ex [T, D_ex], with the eyes' directions ``gaze`` [T, 2, 3]; see ``Rig``.

    Args:
        rig: the person's.
        model: whose codes they are.
        z_id: [D_id] the person's code.
    """
    if knows_arkit(model):
        return rig.weights(model, z_ex, gaze)
    return rig.with_gaze(solved_weights(rig, model, z_id, z_ex), gaze)


@torch.no_grad()
def solved_weights(rig: Rig, model: NphmDecoder, z_id: Tensor, z_ex: Tensor) -> NDArray[np.float32]:
    """Weights [T, K] in 0..``LARGEST`` of the shapes that move the rig most like codes z_ex [T, D_ex] do.

    Those of ``eyeLook`` are 0: the gaze says them.
    """
    index = _places(rig)
    own = np.array([not name.startswith("eyeLook") for name in rig.names])
    shapes = rig.shapes[own][:, index].astype(np.float64)  # [K, P, 3]
    rest = torch.from_numpy(rig.neutral[index]).to(z_ex) / MODEL_UNIT
    share = INDEPENDENT / len(index) / SIGMA**2
    out = np.zeros((len(z_ex), len(own)), np.float32)
    for start in range(0, len(z_ex), BATCH):
        codes = z_ex[start : start + BATCH]
        canonical = rest.expand(len(codes), -1, 3)
        posed = pose_points(model, canonical, z_id.expand(len(codes), -1), codes, tolerance=TOLERANCE)
        # What a code moves at rest is no expression: MonoNPHM's neutral is a code like any other.
        moved = ((posed.points - canonical) * MODEL_UNIT).double().cpu().numpy()
        seen = (posed.residual < FOUND).double().cpu().numpy()
        trust = seen
        prior = np.eye(len(shapes)) / expression_prior.FITTED_CODES.sigma**2
        for _ in range(ROUNDS):
            gram = share * np.einsum("kpc,tp,lpc->tkl", shapes, trust, shapes, optimize=True)
            pull = share * np.einsum("kpc,tp,tpc->tk", shapes, trust, moved, optimize=True)
            w = solve_within(gram + prior, pull, 0, LARGEST)
            missed = moved - np.tensordot(w, shapes, 1)
            trust = seen * geman_mcclure(torch.from_numpy((missed**2).sum(-1)), OUTLIER)[1].numpy()
        out[start : start + len(codes), own] = w
    return out


def _places(rig: Rig) -> NDArray[np.int64]:
    """Vertices [P] of the skin that some shape moves, evenly among those that can be trusted."""
    t = rig.template
    skin = rig.neutral[: t.skin_size]
    moves = np.abs(rig.shapes[:, : t.skin_size]).max((0, 2)) > 1e-3
    lips = t.landmarks(rig.neutral)[[p for rim in LIP_RIMS for p in rim]]
    away = np.linalg.norm(skin[:, None] - lips, axis=2).min(1) > LIPS_AWAY
    known = np.flatnonzero(moves & away & (t.trust > WITNESS))
    return known[np.linspace(0, len(known) - 1, min(PLACES, len(known))).astype(np.int64)]
