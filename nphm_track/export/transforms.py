"""A data set for nerfstudio and Gaussian avatars: ``transforms.json`` in the head-fixed world.

Camera-to-world matrices with OpenGL camera axes (y up, looking along -z), OPENCV camera model, pixels of the original
frame with pixel centres at 0.5. Lost frames are left out. With ``images`` the folder is a whole data set, which the
readers of nerfstudio, VHAP and GaussianAvatars take as it is:

- ``images/``; ``head_masks/``: silhouettes of the head's mesh, all that this world holds; ``fg_masks/``: mattes of the
  person; ``meshes/`` in the same world; ``points.ply``: the neutral head;
- ``transforms_train.json``, ``transforms_val.json`` (empty, as VHAP leaves it for a single camera) and
  ``transforms_test.json``, the clip's end, whose frames are no neighbours of those that were trained on;
- ``head_param/``: code, weights of the rig and gaze of each frame. They stand where GaussianAvatars' reader looks for
  FLAME's parameters; a model that is bound to FLAME cannot use them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nphm_track.export.frames import (
    IMAGES,
    canonical,
    frame_names,
    image_name,
    present_rows,
    vertices,
)
from nphm_track.export.manifest import write_manifest
from nphm_track.export.mattes import HEAD, PERSON, write_mattes
from nphm_track.export.options import ExportOptions
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import MESHES, TRANSFORMS_JSON, Run
from nphm_track.tracking.transforms import transforms

TEST_SHARE = 0.1
"""Of the frames, from the end of the clip."""
MASKS = {HEAD: "head_masks", PERSON: "fg_masks"}
POINTS_PLY = "points.ply"
PARAMETERS = "head_param"
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the data set into the folder ``target``."""
    rows = present_rows(run)
    content = _cameras(run, options)
    if options.images:
        write_mattes(run, target, MASKS, progress, images=IMAGES, clip=options.clip)
        _write_heads(run, rows.tolist(), target, options, progress)
        _complete(content)
        if options.up == "z":
            content["orientation_override"] = "none"  # nerfstudio's worlds are z-up, too: the head stays as it is
        steps = [frame["timestep_index"] for frame in content["frames"]]
        content |= {
            "timestep_indices": steps,
            "camera_indices": [0],
        }  # of the whole clip in each part: VHAP counts them
        for name, frames in _splits(content["frames"]).items():
            _write(target / f"transforms_{name}.json", content | {"frames": frames})
    _write(target / TRANSFORMS_JSON, content)
    write_manifest(target, run, "transforms", options, world="head-fixed")


def _cameras(run: Run, options: ExportOptions) -> dict[str, Any]:
    content = transforms(run.track, meshes=0)
    names, rows = frame_names(run.track), {frame: row for row, frame in enumerate(run.track.frame.tolist())}
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3] = options.axes @ matrix[:3]
        matrix[:3, 3] *= options.scale
        frame["transform_matrix"] = matrix.tolist()
        row = rows[frame["frame"]]
        name = names[row]
        frame |= image_name(run.track, row)
        frame["file_path"] = f"{IMAGES}/{name}.png"
        if options.images:
            frame["mesh"] = f"{MESHES}/{name}.ply"
    return content


def _complete(content: dict[str, Any]) -> None:
    """Add what nerfstudio and readers for many cameras ask for."""
    content["ply_file_path"] = POINTS_PLY
    for side, focal, size in (("x", "fl_x", "w"), ("y", "fl_y", "h")):
        content[f"camera_angle_{side}"] = 2 * float(np.arctan(content[size] / (2 * content[focal])))
    for step, frame in enumerate(content["frames"]):
        stem = Path(frame["file_path"]).stem
        frame |= {name: content[name] for name in INTRINSICS}
        frame |= {
            "timestep_index": step,
            "timestep_index_original": frame["frame"],
            "timestep_id": stem,
            "camera_index": 0,
            "camera_id": "0",
            "mask_path": f"{MASKS[HEAD]}/{stem}.png",
            "fg_mask_path": f"{MASKS[PERSON]}/{stem}.png",
            "flame_param_path": f"{PARAMETERS}/{stem}.npz",
        }


def _splits(frames: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    end = len(frames) - round(TEST_SHARE * len(frames))
    return {"train": frames[:end], "val": [], "test": frames[end:]}


def _write_heads(run: Run, rows: list[int], target: Path, options: ExportOptions, progress: Progress) -> None:
    track, (neutral, faces) = run.track, canonical(run)
    write_ply(target / POINTS_PLY, options.points(neutral), faces)
    (target / MESHES).mkdir()
    (target / PARAMETERS).mkdir()
    names = frame_names(track)
    progress.stage(MESHES, len(rows))
    for row, points in vertices(run, np.array(rows)):
        write_ply(target / MESHES / f"{names[row]}.ply", options.points(points), faces)
        gaze = track.gaze[row] if len(track.gaze) else np.zeros((0, 3), np.float32)
        parameters = {"z_id": track.z_id, "z_ex": track.z_ex[row], "blendshapes": track.blendshapes[row], "gaze": gaze}
        if len(track.arkit):
            parameters["arkit"] = track.arkit[row]
        np.savez(target / PARAMETERS / f"{names[row]}.npz", **parameters)
        progress.advance()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
