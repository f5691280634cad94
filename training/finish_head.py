"""Turn a finished head-model run into a released model: attach the 478 landmarks in closed form, round to float16.

    python training/finish_head.py RUN/model.safetensors --ict FOLDER [--anny SHARDS] --out FILE

Landmarks of ICT's and Anny's heads are linear in the identity weights, and so are the codes:
landmarks = mean + L pinv(A) z_id. Without --anny, a model that is finished keeps how Anny's weights move its landmarks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.conventions import MODEL_UNIT
from nphm_track.models import read_weights, write_weights
from nphm_track.training.ict import load_ict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ict", required=True)
    parser.add_argument("--anny", help="shards the run was trained with")
    parser.add_argument("--landmarks", default="training/assets/ict_landmarks478.npz")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    tensors, config = read_weights(args.model)
    heads = load_ict(args.ict)
    where = np.load(args.landmarks)
    corner, bary = heads.faces[where["face"]], where["bary"][..., None]
    mean = (heads.neutral[corner] * bary).sum(1) / MODEL_UNIT  # [478, 3]
    modes = (heads.identity[:, corner] * bary).sum(2).reshape(100, -1) / MODEL_UNIT  # [100, 1434]
    if args.anny:
        modes = np.concatenate([modes, anny_modes(Path(args.anny), mean)])
    elif "landmark_up.weight" in tensors:
        modes = np.concatenate([modes, finished_modes(tensors)[len(modes) :]])
    tensors["mean_landmarks"] = torch.from_numpy(mean).float()
    # Unit-length rows of the pseudo-inverse keep both factors in float16's range.
    inverse = torch.linalg.pinv(tensors["identity_basis"].double())  # [columns, D_id]
    scale = inverse.norm(dim=1, keepdim=True)
    tensors["landmark_down.weight"] = (inverse / scale).float()
    tensors["landmark_up.weight"] = (torch.from_numpy(modes).double().T * scale.T).float()
    config["head"]["landmark_rank"] = len(modes)
    write_weights(args.out, tensors, config, half=True)


def finished_modes(tensors: dict[str, torch.Tensor]) -> NDArray[np.floating]:
    """Landmark modes [columns, 1434] (model units) of all identity weights of a finished model."""
    up, basis = tensors["landmark_up.weight"].double(), tensors["identity_basis"].double()
    inverse: NDArray[np.floating] = (up @ tensors["landmark_down.weight"].double() @ basis).T.numpy()
    return inverse


def anny_modes(folder: Path, mean: NDArray[np.floating]) -> NDArray[np.floating]:
    """Landmark modes [columns, 1434] (model units) of Anny's weights, which follow ICT's 100 in the shards."""
    shards = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("anny_0?????.npz"))]
    w = np.concatenate([s["w"] for s in shards])[:, 100:]
    landmarks = np.concatenate([s["landmarks"] for s in shards]).reshape(len(w), -1) / MODEL_UNIT
    modes, *_ = np.linalg.lstsq(w, landmarks - mean.reshape(-1), rcond=None)
    return modes


if __name__ == "__main__":
    main()
