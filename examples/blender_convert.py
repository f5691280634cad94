"""Turn an exported head into FBX or Alembic with Blender, which needs no screen for it.

    nphm-track export RUN --format glb
    blender --background --python examples/blender_convert.py -- RUN/export/head.glb head.fbx
    blender --background --python examples/blender_convert.py -- RUN/export/head.glb head.abc

FBX has the rig: shapes by name, joints, their animation, the camera; Alembic the moving vertices. One key a frame, at
the clip's own rate. ``pip install bpy`` is Blender, too: then it is ``python examples/blender_convert.py ...``.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any


def facts(glb: Path) -> dict[str, Any]:
    """What an exported GLB says of itself: ``frame_rate``, ``frames`` and more."""
    with open(glb, "rb") as file:
        magic, _, _, length, _ = struct.unpack("<4s4I", file.read(20))
        asset = json.loads(file.read(length))["asset"] if magic == b"glTF" else {}
    if not str(asset.get("generator")).startswith("nphm-track"):
        sys.exit(f"{glb} was not written by nphm-track export --format glb")
    return dict(asset["extras"])


def convert(bpy: Any, glb: Path, target: Path) -> None:
    """Read ``glb`` into an empty scene and write ``target``."""
    known = facts(glb)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = ratio(known["frame_rate"])
    bpy.ops.import_scene.gltf(filepath=str(glb))
    helpers = bpy.data.collections.get("glTF_not_exported")  # what Blender draws bones with
    for shape in list(helpers.objects) if helpers else []:
        bpy.data.objects.remove(shape)
    scene.frame_start, scene.frame_end = 0, known["frames"] - 1
    if target.suffix.lower() == ".abc":
        bpy.ops.wm.alembic_export(filepath=str(target), start=0, end=scene.frame_end, flatten=False)
        return
    bpy.ops.export_scene.fbx(
        filepath=str(target),
        object_types={"ARMATURE", "CAMERA", "EMPTY", "MESH"},
        add_leaf_bones=False,
        bake_anim_use_all_bones=True,
        bake_anim_use_nla_strips=False,
        bake_anim_use_all_actions=False,
        bake_anim_simplify_factor=0.0,
    )


def ratio(rate: float) -> tuple[int, float]:
    """A frame rate as Blender has it: a whole number, divided by what it is too large by."""
    return max(1, round(rate)), max(1, round(rate)) / rate


def main() -> None:
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    if len(arguments) != 2 or Path(arguments[1]).suffix.lower() not in (".fbx", ".abc"):
        sys.exit("usage: blender --background --python blender_convert.py -- head.glb head.fbx (or head.abc)")
    glb, target = (Path(argument).resolve() for argument in arguments)
    if not glb.is_file():
        sys.exit(f"{glb}: no such file")
    try:
        import bpy
    except ImportError:
        sys.exit("this script runs inside Blender, or with pip install bpy")
    convert(bpy, glb, target)


if __name__ == "__main__":
    main()
