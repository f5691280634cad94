"""One file of geometry networks from the runs of E_n and E_p: ``join_geometry.py runs/e_n runs/e_p --out FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nphm_track.geometry.vit import join
from nphm_track.models import WEIGHTS_NAME, write_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", help="run or file of E_n")
    parser.add_argument("p", help="run or file of E_p")
    parser.add_argument("--out", type=Path, required=True, help="model folder")
    parser.add_argument("--half", action="store_true", help="store float16")
    args = parser.parse_args()
    write_weights(args.out / WEIGHTS_NAME, *join(args.n, args.p), half=args.half)


if __name__ == "__main__":
    main()
