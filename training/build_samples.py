"""Samples for ``pix2nphm`` recipes from renders of ICT heads, with the codes of the weights they were drawn from.

    python training/build_samples.py --renders FOLDER --public PUBLIC --ict FOLDER --out FOLDER

The tables of the stand-in's checkpoint hold codes of people and expressions that ``export_mononphm.py`` drew; codes
are linear in ICT-FaceKit's weights, so the tables give those of any other weights too. Data of people has its codes
from ``nphm-track fit-scan`` instead (Pix2NPHM, Eq. 11).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from export_mononphm import drawn_weights
from numpy.typing import NDArray
from rich.progress import track

from nphm_track.heads.import_mononphm import read_checkpoint
from nphm_track.training.geometry_task import FaceShards
from nphm_track.training.ict import load_ict
from nphm_track.training.samples import COLUMNS, write_shard

A_SHARD = 250
SURFACE = 400
"""Points of a head's face that a sample keeps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=Path, required=True, help="written by build_face_renders.py")
    parser.add_argument("--public", type=Path, required=True, help="written by export_mononphm.py")
    parser.add_argument("--ict", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without-codes", action="store_true", help="2-D data: leave the codes out")
    args = parser.parse_args()
    heads, renders = load_ict(args.ict), FaceShards(args.renders)
    checkpoint = read_checkpoint(next((args.public / "checkpoints").glob("*.tar")))["latent_codes"]
    tables = [checkpoint[f"codebook.{kind}.embedding.weight"].double().numpy() for kind in ("geo", "exp")]
    weights = drawn_weights(len(tables[0]), len(tables[1]), heads.expression_names)
    maps = [np.linalg.lstsq(w, table, rcond=1e-4)[0] for w, table in zip(weights, tables, strict=True)]
    in_face = (heads.neutral[:, 2] > -0.02) & (heads.neutral[:, 1] > -0.1) & ~heads.is_pocket

    def samples(start: int) -> Iterator[tuple[bytes, dict[str, NDArray[Any]]]]:
        rows = np.arange(start, min(start + A_SHARD, len(renders)))
        for row in rows:
            found = {k: v[0] for k, v in renders.take(np.array([row])).items()}
            columns = {k: found[k] for k in COLUMNS}
            if not args.without_codes:
                chosen = np.random.default_rng(row).choice(np.flatnonzero(in_face), SURFACE)
                moved = np.einsum("k,kvc->vc", found["w"], heads.identity[:, chosen])
                moved += np.einsum("k,kvc->vc", found["e"], heads.expression[:, chosen])
                columns["surface"] = (heads.neutral[chosen] + moved).astype(np.float32)
                codes = (found[k] @ m for k, m in zip("we", maps, strict=True))
                columns |= {k: z.astype(np.float32) for k, z in zip(("z_id", "z_ex"), codes, strict=True)}
            yield found["jpeg"].tobytes(), columns

    for start in track(range(0, len(renders), A_SHARD), description="shards"):
        write_shard(args.out / f"samples_{start // A_SHARD:06d}.tar", samples(start))


if __name__ == "__main__":
    main()
