"""``export.json``: what an exported folder says of itself, and how it is told from a folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nphm_track.files.reading import read_json
from nphm_track.version import __version__

if TYPE_CHECKING:
    from nphm_track.export.options import ExportOptions
    from nphm_track.tracking.records import Track
    from nphm_track.tracking.run_folder import Run

MANIFEST = "export.json"
GENERATOR = f"nphm-track {__version__}"


def camera(track: Track) -> dict[str, Any]:
    """The camera as JSON values: pixels of the original frame, pixel centres at 0.5, OpenCV distortion."""
    return {
        "K": track.K.tolist(),
        "image_size": [int(n) for n in track.image_size],
        "distortion": track.distortion.tolist(),
    }


def write_manifest(folder: Path, run: Run, format: str, options: ExportOptions, **values: Any) -> None:
    """Write ``export.json`` of a folder; ``values`` are the format's own."""
    content = {
        "generator": GENERATOR,
        "format": format,
        "input_sha256": run.info.input.sha256,
        **options.described(),
        "camera": camera(run.track),
        **values,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_manifest(path: Path, format: str) -> bool:
    """The file was written by ``write_manifest`` for that format."""
    try:
        content = read_json(path)
        return str(content["generator"]).startswith("nphm-track ") and content["format"] == format
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
