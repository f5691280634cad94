"""How true fits to photos are: the same fits to renders, whose heads are known.

Held-out renders (training/build_face_renders.py), camera unknown: landmarks alone, the networks alone, and both as in
training/build_photo_fits.py --networks. ``shape`` leaves out what moving, turning and scaling explains; ``residual`` is
that of the landmarks over the face's RMS radius.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.geometry.networks import GeometryNet
from nphm_track.regressor.image_regressor import ImageRegressor
from nphm_track.training.geometry_task import FaceShards
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.ict import load_ict
from nphm_track.training.image_regressor_task import encode_shards
from nphm_track.training.photo_fit import LANDMARKS, fit_photos, landmark_basis, landmark_weights


@torch.no_grad()
def run(ict: Ict, faces: Annotated[Path, typer.Option(help="Folder of held-out renders.")], out: Out) -> Report:
    """Errors of each kind of fit, means over the renders."""
    prepare_torch()
    terms = HeadTerms("nphm-small", str(ict), LANDMARKS)
    truth = encode_shards(FaceShards(faces), GeometryNet.from_pretrained(), ("n", "p", "d"))
    regressor = ImageRegressor.from_pretrained()
    regressor.image_config = replace(regressor.image_config, identity_trust=1.0)  # whole identities
    tokens = {k: truth[f"tokens_{k}"].float() for k in "npd"}
    unknown = torch.full((len(truth["w"]),), torch.nan)
    codes = regressor.predict(truth["landmarks"], truth["scores"], truth["size"], tokens, unknown)
    w, e = terms.weights(codes.z_id, codes.z_ex)
    basis, observed = landmark_basis(load_ict(ict)), (truth["landmarks"][..., :2].numpy(), truth["size"].numpy())
    alone = fit_photos(basis, *observed, landmark_weights())
    both = fit_photos(basis, *observed, landmark_weights(), (w, e))
    found = {
        "mean head": (torch.zeros_like(w), torch.zeros_like(e), np.nan),
        "landmarks": (torch.from_numpy(alone.w), torch.from_numpy(alone.e), float(np.median(alone.error))),
        "networks": (w, e, np.nan),
        "networks and landmarks": (torch.from_numpy(both.w), torch.from_numpy(both.e), float(np.median(both.error))),
    }
    rows: list[list[object]] = []
    for name, (identity, expression, residual) in found.items():
        neutral = terms.placed(((identity - truth["w"]) @ terms.identity).unflatten(-1, (-1, 3)))
        moved = ((expression - truth["e"]) @ terms.expression).unflatten(-1, (-1, 3))
        mm = [float(x.norm(dim=-1).mean()) * MODEL_UNIT * 1000 for x in (neutral, moved)]
        rows.append([name, *mm, residual])
    return Report({"rows": rows}, [table(["", "shape, mm", "expression, mm", "residual"], rows)])
