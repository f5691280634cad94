"""Write models/index.json: size, SHA-256, licence and recipe of every released model.

python training/index_models.py [models]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nphm_track.models import WEIGHTS_NAME, sha256

ABOUT = {
    "face_landmarker": ("Apache-2.0", "training/convert_face_landmarker.py, training/fit_face_signature.py"),
    "geometry": ("MIT", "training/recipes/faces_small.toml"),
    "image-regressor": ("MIT", "training/recipes/faces_small.toml"),
    "landmark-regressor": ("MIT", "training/recipes/landmark_regressor.toml"),
    "mattes": ("Apache-2.0", "training/convert_mattes.py"),
    "nphm-small": ("MIT", "training/recipes/nphm_small.toml, training/recipes/nphm_small_anny.toml"),
    "template": ("MIT", "training/build_template.py"),
}


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "models")
    index = {}
    for name, (licence, recipe) in ABOUT.items():
        weights = root / name / WEIGHTS_NAME
        index[name] = {"size": weights.stat().st_size, "sha256": sha256(weights), "licence": licence, "recipe": recipe}
    (root / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
