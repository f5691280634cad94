"""What recipes of the paper's size take: parameters, memory, FLOP and time, counted on torch's meta device.

    python training/describe.py [RECIPE ...] [--tflops 150] [--gpus 8]

Nothing is allocated and no data is read: shapes alone are run through forward and backward pass. Activations are the
tensors that autograd keeps for one sample; --tflops is what a GPU sustains in bfloat16, half of an A100's peak.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nphm_track.training.describe import describe, table
from nphm_track.training.recipe import read_recipe

RECIPES = ("e_n", "e_p", "pix2nphm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--tflops", type=float, default=150.0, help="sustained by one GPU")
    parser.add_argument("--gpus", type=int, default=8)
    args = parser.parse_args()
    here = Path(__file__).parent / "recipes"
    recipes = args.recipes or [here / f"{name}.toml" for name in RECIPES]
    print(table({path.stem: describe(read_recipe(path)) for path in recipes}, args.tflops, args.gpus))


if __name__ == "__main__":
    main()
