"""Video of a face in, an NPHM head out: per-frame meshes, cameras, parameters and an overlay video.

>>> from nphm_track import track
>>> run = track("clip.mp4")
>>> vertices, faces = run.mesh(0)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nphm_track.version import __version__

# Spinning OpenMP threads cost several times the work itself on a shared machine; only effective before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from nphm_track.tracker import track, track_people
    from nphm_track.tracking.options import TrackOptions
    from nphm_track.tracking.run_folder import Run, read_run

__all__ = ["Run", "TrackOptions", "__version__", "read_run", "track", "track_people"]

_HOME = {
    "Run": "nphm_track.tracking.run_folder",
    "TrackOptions": "nphm_track.tracking.options",
    "read_run": "nphm_track.tracking.run_folder",
    "track": "nphm_track.tracker",
    "track_people": "nphm_track.tracker",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
