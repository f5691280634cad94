"""nerfstudio's ``transforms.json`` in the head-fixed world, the layout Gaussian avatar trainers read.

Camera-to-world matrices with OpenGL camera axes (y up, looking along -z), OPENCV camera model, pixels of the original
frame with pixel centres at 0.5. Lost frames are left out. With ``images`` the folder is a whole data set: ``images/``,
``masks/`` (white where the head is) and ``meshes/`` in the same world.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nphm_track.export.frames import IMAGES, MASKS, PICTURE, canonical, present_rows, vertices, write_images
from nphm_track.export.manifest import write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import MESH_NAME, MESHES, TRANSFORMS_JSON, Run
from nphm_track.tracking.transforms import transforms


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the data set into the folder ``target``."""
    rows = present_rows(run)
    meshes = options.images
    content = transforms(run.track, meshes=meshes)
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3] = options.axes @ matrix[:3]
        matrix[:3, 3] *= options.scale
        frame["transform_matrix"] = matrix.tolist()
        frame["file_path"] = f"{IMAGES}/{PICTURE.format(frame['frame'])}"
        if meshes:
            frame["mask_path"] = f"{MASKS}/{PICTURE.format(frame['frame'])}"
    if options.images:
        write_images(run, target, progress, masks=meshes, clip=options.clip)
    if meshes:
        faces = canonical(run)[1]
        (target / MESHES).mkdir()
        progress.stage(MESHES, len(rows))
        for row, points in vertices(run, rows):
            write_ply(target / MESHES / MESH_NAME.format(int(run.track.frame[row])), options.points(points), faces)
            progress.advance()
    (target / TRANSFORMS_JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_manifest(target, run, "transforms", options, world="head-fixed")
