"""Write a trained head model with MonoNPHM's architecture in the layout of the public checkpoint.

    python training/export_mononphm.py RUN --out FOLDER [--people 96] [--scans 192]

RUN is a run of ``nphm-track train training/recipes/mononphm_standin.toml``. Its codes are linear in ICT-FaceKit's
weights; the tables of the checkpoint hold those of random people and expressions, drawn as in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.heads.config import HeadConfig
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.models import load_network
from nphm_track.training.ict import sample_expression, sample_identity
from nphm_track.training.mononphm_layout import write_public


def drawn_weights(people: int, scans: int, names: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ICT weights [people, 100] and [scans, E] of the heads in the tables."""
    rng = np.random.default_rng(0)
    return sample_identity(rng, people), sample_expression(rng, scans, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the training run, or its model.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=96)
    parser.add_argument("--scans", type=int, default=192)
    parser.add_argument("--half", action="store_true", help="store float16")
    args = parser.parse_args()
    model = load_network(
        args.run, "nphm", "a head model", lambda config, _: NphmDecoder(HeadConfig.from_dict(config["head"]))
    )
    c = model.config
    drawn, scans = (torch.from_numpy(w) for w in drawn_weights(args.people, args.scans, c.expression_names))
    people = torch.zeros(args.people, c.identity_basis)
    people[:, : drawn.shape[1]] = drawn
    tables = people @ model.identity_basis.T, scans @ model.expression_basis.T
    print(write_public(model, *tables, args.out, half=args.half))


if __name__ == "__main__":
    main()
