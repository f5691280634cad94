"""How true the heads are that photos of the training are taken for: the same fits to renders, whose heads are known.

python benchmarks/photo_fits.py --ict FOLDER --faces data/faces_heldout --fits FITS.npz --out FOLDER

Held-out renders (training/build_face_renders.py), camera unknown: landmarks alone, the networks alone, and both as in
training/build_photo_fits.py --networks. ``shape`` leaves out what moving, turning and scaling explains; ``residual`` is
that of the landmarks over the face's RMS radius. Also how far the mean of the photos' fits lies from ICT's mean head,
and how much of that the fits to renders show too, where it is the landmarks' bias. Writes photo_fits.json and .md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report import machine, machine_line, save, table
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.geometry.networks import GeometryNet
from nphm_track.regressor.image_regressor import ImageRegressor
from nphm_track.tracking.fit import OUTLINE
from nphm_track.training.geometry_task import FaceShards
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.ict import load_ict
from nphm_track.training.image_regressor_task import Table, encode_shards
from nphm_track.training.photo_fit import LANDMARKS, fit_photos, landmark_basis, landmark_weights


@torch.no_grad()
def network_weights(table: Table, terms: HeadTerms) -> tuple[Tensor, Tensor]:
    """What the released networks see, as ICT weights; whole identities."""
    regressor = ImageRegressor.from_pretrained()
    regressor.image_config = replace(regressor.image_config, identity_trust=1.0)
    tokens = {k: table[f"tokens_{k}"].float() for k in "npd"}
    unknown = torch.full((len(table["w"]),), torch.nan)
    codes = regressor.predict(table["landmarks"], table["scores"], table["size"], tokens, unknown)
    return terms.weights(codes.z_id, codes.z_ex)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ict", "faces", "fits"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare_torch()
    terms = HeadTerms("nphm-small", args.ict, LANDMARKS)
    table_ = encode_shards(FaceShards(Path(args.faces)), GeometryNet.from_pretrained(), ("n", "p", "d"))
    w, e = network_weights(table_, terms)
    basis, observed = landmark_basis(load_ict(args.ict)), (table_["landmarks"][..., :2].numpy(), table_["size"].numpy())
    alone = fit_photos(basis, *observed, landmark_weights(OUTLINE))
    both = fit_photos(basis, *observed, landmark_weights(OUTLINE), (w, e))
    found = {
        "mean head": (torch.zeros_like(w), torch.zeros_like(e), np.nan),
        "landmarks": (torch.from_numpy(alone.w), torch.from_numpy(alone.e), float(np.median(alone.error))),
        "networks": (w, e, np.nan),
        "networks and landmarks": (torch.from_numpy(both.w), torch.from_numpy(both.e), float(np.median(both.error))),
    }
    results = {}
    for name, (identity, expression, residual) in found.items():
        neutral = ((identity - table_["w"]) @ terms.identity).unflatten(-1, (-1, 3))
        moved = ((expression - table_["e"]) @ terms.expression).unflatten(-1, (-1, 3))
        mm = [float(x.norm(dim=-1).mean()) * MODEL_UNIT * 1000 for x in (terms.placed(neutral), moved)]
        results[name] = {"shape_mm": mm[0], "expression_mm": mm[1], "residual": residual}
    photos = np.load(args.fits)["w"].mean(0)
    bias = (alone.w - table_["w"].numpy()).mean(0)
    population = {"length": float(np.linalg.norm(photos)), "bias_share": float(bias @ photos / (photos @ photos))}
    facts = {"machine": machine(), "fits": results, "population": population}
    rows = [[name, *values.values()] for name, values in results.items()]
    note = (
        f"Mean of the photos' identities: {population['length']:.1f} from ICT's mean head (a person: about 10), of "
        f"which {100 * population['bias_share']:.0f} % are the landmarks' bias."
    )
    text = "\n\n".join(
        [machine_line(facts["machine"]), table(["", "shape, mm", "expression, mm", "residual"], rows), note]
    )
    save(args.out, "photo_fits", facts, text)


if __name__ == "__main__":
    main()
