"""Show a run in Blender: the moving head before the clip's own camera, the clip behind it.

    blender --python examples/blender_run.py -- clip_run

Needs nothing but Blender and a run made with --mesh-format ply, the default. Poses become keyframes; vertices are read
from the run's files whenever the frame changes, so a long clip costs no memory, and a scene opened from a .blend file
needs this script again. For a scene that stands alone: nphm-track export RUN --format usd, or glb. Scene frame N shows
frame N - 1 of the clip; where the clip's frame rate varies, so does its speed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

LOST = 2
SENSOR = 36.0  # mm, any width will do
WORLD_FROM_CAMERA = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""OpenCV camera axes (y down, z forward) to Blender's world (z up) with the camera at its origin, looking along +y."""


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] (metres, head space) and faces [F, 3] of a binary PLY as runs have it."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    counts = {
        words[1]: int(words[2]) for line in header.splitlines() if (words := line.decode().split())[0] == "element"
    }
    vertices = np.frombuffer(body, "<f4", 3 * counts["vertex"]).reshape(-1, 3)
    corner = np.dtype([("count", "u1"), ("index", "<i4", 3)])
    return vertices, np.frombuffer(body, corner, counts["face"], vertices.nbytes)["index"]


def head_matrix(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[4, 4] of a head pose (x_cam = R x_head + t) in Blender's world, metres."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = WORLD_FROM_CAMERA @ R, WORLD_FROM_CAMERA @ t
    return matrix


def lens(K: np.ndarray, size: np.ndarray) -> dict[str, float]:
    """Blender's focal length (mm on a sensor ``SENSOR`` wide) and shifts of a pinhole camera K [3, 3]."""
    width, height = (float(n) for n in size)
    shift_x, shift_y = (width / 2 - K[0, 2]) / width, (K[1, 2] - height / 2) / width
    return {"lens": SENSOR * K[0, 0] / width, "shift_x": shift_x, "shift_y": shift_y}


def build(bpy: Any, folder: Path) -> None:
    """Head, camera and background in the current scene."""
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    track = dict(np.load(folder / "track.npz", allow_pickle=False))
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = (int(n) for n in track["image_size"])
    scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = 1.0, float(track["K"][0, 0] / track["K"][1, 1])
    scene.render.fps = max(1, round(info["input"]["fps"] or 25))
    scene.frame_start, scene.frame_end = int(track["frame"][0]) + 1, int(track["frame"][-1]) + 1

    data = bpy.data.cameras.new("camera")
    data.sensor_fit, data.sensor_width = "HORIZONTAL", SENSOR
    for name, value in lens(track["K"], track["image_size"]).items():
        setattr(data, name, value)
    camera = bpy.data.objects.new("camera", data)
    camera.rotation_euler = (np.pi / 2, 0, 0)  # a Blender camera looks along its -z, here the world's +y
    scene.collection.objects.link(camera)
    scene.camera = camera
    if info["input"]["kind"] == "video" and Path(info["input"]["path"]).exists():
        background = data.background_images.new()
        background.source, background.clip = "MOVIE_CLIP", bpy.data.movieclips.load(info["input"]["path"])
        data.show_background_images = True

    mesh = bpy.data.meshes.new("head")
    vertices, faces = read_ply(folder / "canonical.ply")
    mesh.from_pydata(vertices.tolist(), [], faces.tolist())
    mesh.polygons.foreach_set("use_smooth", [True] * len(faces))
    head = bpy.data.objects.new("head", mesh)
    head.rotation_mode = "QUATERNION"
    scene.collection.objects.link(head)
    animate(head, track)
    follow(bpy, mesh, folder)


def animate(head: Any, track: dict[str, np.ndarray]) -> None:
    """Keyframes of the head's pose, and of being hidden while it is lost."""
    from mathutils import Matrix

    for row, index in enumerate(track["frame"].tolist()):
        lost = bool(track["status"][row] == LOST)
        head.hide_viewport = head.hide_render = lost
        names = ["hide_viewport", "hide_render"]
        if not lost:
            head.matrix_world = Matrix(head_matrix(track["R"][row], track["t"][row]).tolist())
            names += ["location", "rotation_quaternion"]
        for name in names:
            head.keyframe_insert(name, frame=index + 1)


def follow(bpy: Any, mesh: Any, folder: Path) -> None:
    """Give the mesh the vertices of the current frame whenever it changes; frames without a file keep the last."""

    def update(scene: Any, *_: Any) -> None:
        path = folder / "meshes" / f"{scene.frame_current - 1:06d}.ply"
        if path.exists():
            mesh.vertices.foreach_set("co", read_ply(path)[0].ravel())
            mesh.update()

    bpy.app.handlers.frame_change_pre.append(update)
    update(bpy.context.scene)


def main() -> None:
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    if len(arguments) != 1:
        sys.exit("usage: blender --python blender_run.py -- RUN")
    folder = Path(arguments[0]).resolve()
    missing = [name for name in ("run.json", "track.npz", "canonical.ply", "meshes") if not (folder / name).exists()]
    if missing:
        sys.exit(f"{folder} has no {missing[0]}: give it the folder of a finished run made with --mesh-format ply")
    try:
        import bpy
    except ImportError:
        sys.exit("this script runs inside Blender: blender --python blender_run.py -- RUN")
    build(bpy, folder)


if __name__ == "__main__":
    main()
