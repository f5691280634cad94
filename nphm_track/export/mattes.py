"""Mattes: a grey picture a frame of person and hair (networks) and of the head (silhouette of its mesh).

``<name>/<frame>.png`` [H, W], 255 inside, in the pixels of the clip. Of lost frames there is the person alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.frames import clip_frames, silhouette, write_picture
from nphm_track.export.manifest import write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run

if TYPE_CHECKING:
    from nphm_track.faces.mattes import MatteNetworks

PERSON, HAIR, HEAD = "person", "hair", "head"


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the mattes into the folder ``target``."""
    write_mattes(run, target, {name: name for name in (PERSON, HAIR, HEAD)}, progress, lost=True, clip=options.clip)
    write_manifest(target, run, "mattes", options)


def write_mattes(
    run: Run, target: Path, folders: Mapping[str, str], progress: Progress, *, lost: bool = False,
    images: str | None = None, clip: Path | None = None,
) -> None:  # fmt: skip
    """Write some of the mattes of each frame with a head, in one pass through the clip.

    Args:
        run: a run with meshes or codes.
        target: folder that exists.
        folders: name of the new folder in it for each matte that is wanted.
        progress: told of frames.
        lost: write the person of lost frames too.
        images: name of a folder for the frames themselves.
        clip: where the run's clip is, if it is not where it was.

    Raises ModelError when the networks are missing.
    """
    from nphm_track.faces.mattes import MatteNetworks

    networks = MatteNetworks.from_pretrained()
    for folder in [*folders.values(), *([images] if images else [])]:
        (target / folder).mkdir()
    progress.stage("mattes", len(run.track))
    for row, stem, image in clip_frames(run, clip):
        has_head = run.track.status[row] != Status.LOST
        if has_head or lost:
            head = silhouette(run, row) if has_head else None
            for name, matte in _mattes(networks, image, head, HAIR in folders).items():
                if name in folders:
                    write_picture(target / folders[name] / f"{stem}.png", np.rint(255 * matte).astype(np.uint8))
            if images:
                write_picture(target / images / f"{stem}.png", image)
        progress.advance()


def _mattes(
    networks: MatteNetworks, image: NDArray[np.uint8], head: NDArray[np.bool_] | None, hair: bool
) -> dict[str, NDArray[np.float32]]:
    """[H, W] in 0..1 by name."""
    mattes = {PERSON: networks.person(image, head)}
    if head is not None:
        mattes[HEAD] = head.astype(np.float32)
        if hair:
            mattes[HAIR] = networks.hair(image, head, mattes[PERSON])
    return mattes
