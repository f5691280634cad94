"""Round a finished run to float16 and put it where the package finds it.

python training/release.py RUN NAME                               # writes models/NAME/model.safetensors
python training/release.py RUN                                    # of a faces run: geometry and image-regressor
python training/release.py RUN --identity-trust 0.75 --photos FOLDER --fits FILE
python training/release.py RUN RUN --shares 0.6 0.4           # the mean of the weights of runs from the same start

With --identity-trust, identities are drawn towards the mean that the networks see in the photos of the people that
``training/build_photo_fits.py`` did not hold out: three quarters of what sets a person off from it are kept, say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.models import read_weights, write_weights
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.training.faces_task import split_faces
from nphm_track.training.photo_fit import largest_face


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="and the model's NAME; a faces run names its two itself")
    parser.add_argument("--shares", type=float, nargs="+", help="of each run, when their weights are averaged")
    parser.add_argument("--identity-trust", type=float, help="share kept of what sets a person off from people's mean")
    parser.add_argument("--photos", type=Path, help="folder with the face photos that the mean is taken of")
    parser.add_argument("--fits", type=Path, help="file written by training/build_photo_fits.py")
    args = parser.parse_args()
    if args.identity_trust is not None and not (args.photos and args.fits):
        parser.error("--identity-trust needs --photos and --fits")
    shares = args.shares or [1.0]
    runs, names = args.runs[: len(shares)], args.runs[len(shares) :]
    if len(runs) < len(shares) or abs(sum(shares) - 1) > 1e-6:
        parser.error("--shares takes one number a run, and they sum up to 1")
    tensors, config = averaged(runs, shares)
    faces = config.get("kind") == "faces"
    if len(names) != (0 if faces else 1):
        parser.error("a faces run takes no name" if faces else "a run takes one name, its model's")
    models = split_faces(tensors, config) if faces else {names[0]: (tensors, config)}
    for name, (weights, own) in models.items():
        path = Path("models") / name / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, weights, own, half=True)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if args.identity_trust is not None:
        path = Path("models/image-regressor/model.safetensors")
        weights, own = read_weights(path)
        weights["identity_mean"] = mean_identity(args.photos, args.fits)
        own["regressor"]["identity_trust"] = args.identity_trust
        write_weights(path, weights, own, half=True)


def averaged(runs: Sequence[str], shares: Sequence[float]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config of a run, or of the mean of several (Wortsman et al. 2022, "Model soups").

    What was measured in training, and is not true of the mean, is left out; hours and steps are those of all runs.
    """
    read = [read_weights(run) for run in runs]
    tensors, config = read[0]
    if len(read) == 1:
        return tensors, config
    mean = {
        name: sum(share * own[name].double() for share, (own, _) in zip(shares, read, strict=True)).to(t.dtype)
        if t.is_floating_point()
        else t
        for name, t in tensors.items()
    }
    training = {key: sum(own["training"][key] for _, own in read) for key in ("hours", "steps")}
    return mean, config | {"training": training}


def mean_identity(photos: Path, fits: Path) -> Tensor:
    """What the released networks see in the photos of training, on average: [D_id]."""
    landmarker = FaceLandmarker.from_pretrained()
    predictor = CodePredictor.from_pretrained(landmarker)
    regressor = predictor.regressor
    regressor.image_config = replace(regressor.image_config, identity_trust=1.0)
    table = np.load(fits)
    codes = []
    for name in track(table["photo"][~table["heldout"]], description="photos"):
        image = np.asarray(Image.open(photos / str(name)).convert("RGB"))
        face = largest_face(landmarker, image)
        if face is not None:
            codes.append(predictor([image], [face]).z_id)
    return torch.cat(codes).mean(0)


if __name__ == "__main__":
    main()
