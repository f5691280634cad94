"""From a run to a data set for Gaussian avatars (GaussianAvatars, SplattingAvatar, nerfstudio and their kin).

    python examples/gaussian_avatar_data.py clip_run dataset --test 0.1

Writes images, head masks, meshes and ``transforms.json`` in a head-fixed world, and splits the latter as such trainers
expect: ``transforms_train.json``, ``transforms_val.json``, ``transforms_test.json``. Test frames are the last ones of
the clip, so that they are no neighbours of what was trained on. Each frame names its mesh: same vertices and faces in
all, to bind splats to. A trainer that is tied to FLAME needs its loader changed to read them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nphm_track import read_run
from nphm_track.errors import NphmTrackError
from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions

VALIDATE_EVERY = 20
CAMERA = ("fl_x", "fl_y", "cx", "cy", "w", "h")


def split(transforms: dict[str, Any], test: float) -> dict[str, list[dict[str, Any]]]:
    """Frames of train, val and test, with what trainers for many cameras ask of each frame."""
    camera = {name: transforms[name] for name in CAMERA}
    frames = [
        {**frame, **camera, "timestep_index": index, "camera_index": 0}
        for index, frame in enumerate(transforms["frames"])
    ]
    end = len(frames) - round(test * len(frames))
    return {
        "train": [f for f in frames[:end] if f["timestep_index"] % VALIDATE_EVERY != VALIDATE_EVERY - 1],
        "val": [f for f in frames[:end] if f["timestep_index"] % VALIDATE_EVERY == VALIDATE_EVERY - 1],
        "test": frames[end:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path, help="folder to write")
    parser.add_argument("--test", type=float, default=0.1, help="share of the frames, from the end (0.1)")
    arguments = parser.parse_args()
    try:
        folder = export(read_run(arguments.run), "transforms", arguments.dataset, ExportOptions(images=True))
    except NphmTrackError as error:
        parser.exit(error.exit_code, f"{error}\n")
    transforms = json.loads((folder / "transforms.json").read_text(encoding="utf-8"))
    for name, frames in split(transforms, arguments.test).items():
        path = folder / f"transforms_{name}.json"
        path.write_text(json.dumps({**transforms, "frames": frames}, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main()
