"""Round a finished run to float16 and put it where the package finds it.

python training/release.py RUN NAME [--identity-trust .55]        # writes models/NAME/model.safetensors
python training/release.py RUN                                    # of a faces run: geometry and image-regressor
python training/release.py RUN --mean geometry                    # of these, the mean with the weights released before
python training/release.py RUN --pack FILE                        # an unfinished run's weights, for data.init
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nphm_track.models import read_weights, write_weights
from nphm_track.training.faces_task import CALIBRATED, split_faces
from nphm_track.training.packing import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("name", nargs="?", help="of the model; a faces run names its two itself")
    parser.add_argument("--identity-trust", type=float, help="image regressors: factor on identity codes")
    parser.add_argument(
        "--mean", nargs="+", default=[], metavar="NAME", help="average with the weights released before"
    )
    parser.add_argument("--pack", type=Path, help="write the run's weights here, packed, and release nothing")
    args = parser.parse_args()
    tensors, config = read_weights(args.run)
    if args.pack:
        write_weights(args.pack, pack(tensors), config)
        return
    if config.get("kind") == "faces":
        models = split_faces(tensors, config)
    elif args.name:
        models = {args.name: (tensors, config)}
    else:
        parser.error("the model's name is missing")
    for name, (weights, own) in models.items():
        if args.identity_trust is not None and "regressor" in own:
            own["regressor"]["identity_trust"] = args.identity_trust
        path = Path("models") / name / "model.safetensors"
        if name in args.mean:
            before = read_weights(path)[0]
            trained = {k for k, v in weights.items() if v.is_floating_point() and f"{name}.{k}" not in CALIBRATED}
            weights = {k: (before[k] + v) / 2 if k in trained else v for k, v in weights.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, weights, own, half=True)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
