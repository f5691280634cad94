"""Animated binary glTF 2.0: head with morph targets, joints or a node for its pose, camera.

A run in the template's topology is the person's rig (``export.rig``): ARKit's shapes by name, correctives, a skin with
joints for head, jaw and eyes, a material for each tile of texture coordinates. Otherwise the mesh of node ``head`` has
morph targets that were found in its motion (``morphs.fit_morphs``): at the mesh's own weights it is the neutral head.

The world is the camera-fixed one. glTF itself is in metres and y up; another ``unit`` or ``up`` is written as asked and
stated in ``asset.extras``, as are the errors of the morph targets. Time is that of the clip, counted from the first
frame. While the head is lost its node has scale 0, since glTF animates no visibility; pose and weights have no keys
there. A glTF camera is a centred pinhole: principal point and distortion it cannot hold are in ``asset.extras`` too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nphm_track.export.frames import frame_rate, present_rows
from nphm_track.export.glb_file import INDEX_DATA, VERTEX_DATA, Buffer, write_chunks
from nphm_track.export.manifest import GENERATOR, camera
from nphm_track.export.morphs import SHARE, Morphs, fit_morphs, pixels_per_metre
from nphm_track.export.options import ExportOptions
from nphm_track.export.rig import GROUPS, JOINTS, RiggedTake, rigged_take
from nphm_track.export.texture import png, skin_pictures, template_of
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import surface_of

NEAR, FAR = 0.01, 100.0
"""Clipping distances of the camera, metres."""
SKIN_COLOUR = (0.8, 0.72, 0.66, 1.0)
NORMAL_TURN = 0.01
"""Changes of normals under a morph target that are smaller are left out: half a degree."""
Array = NDArray[np.floating]


@dataclass
class _Head:
    """What shows the head; the first node carries its pose."""

    nodes: list[dict[str, Any]]
    roots: list[int]
    mesh: dict[str, Any]
    materials: list[dict[str, Any]]
    errors_px: tuple[float, float]
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    """Of the first materials; vertices of these have no colours."""
    skins: list[dict[str, Any]] = field(default_factory=list)


class _Animation:
    """Channels of nodes, whose values are those of the rows with a head."""

    def __init__(self, buffer: Buffer, time: NDArray[np.float64]) -> None:
        self.buffer, self.times = buffer, buffer.add(time, "SCALAR", bounds=True)
        self.samplers: list[dict[str, Any]] = []
        self.channels: list[dict[str, Any]] = []

    def add(self, node: int, path: str, values: ArrayLike, times: int | None = None, steps: bool = False) -> None:
        """Animate ``path`` of a node; quaternions are made to take the short way."""
        array = np.asarray(values)
        kind = {"rotation": "VEC4", "weights": "SCALAR"}.get(path, "VEC3")
        self.channels.append({"sampler": len(self.samplers), "target": {"node": node, "path": path}})
        self.samplers.append(
            {
                "input": self.times if times is None else times,
                "output": self.buffer.add(_continuous(array) if path == "rotation" else array, kind),
                "interpolation": "STEP" if steps else "LINEAR",
            }
        )


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track, rows = run.track, present_rows(run)
    buffer, clock = Buffer(), track.time - track.time[0]
    animation = _Animation(buffer, clock[rows])
    if options.textured:
        template_of(run)
    if surface_of(run).template is not None:
        head = _rigged(run, rows, buffer, animation, options, progress)
    else:
        head = _found(run, rows, buffer, animation, options, progress)

    R, t = options.head_pose(track.R[rows], track.t[rows])
    rotations = Rotation.from_matrix(R).as_quat()
    head.nodes[0] |= {"rotation": rotations[0].tolist(), "translation": t[0].tolist()}
    animation.add(0, "rotation", rotations)
    animation.add(0, "translation", t)
    if len(rows) < len(track):
        seen = np.repeat((track.status != Status.LOST).astype(np.float32)[:, None], 3, 1)
        animation.add(0, "scale", seen, buffer.add(clock, "SCALAR", bounds=True), steps=True)

    tilt = Rotation.from_matrix(options.axes).as_quat()
    content = {
        "asset": {"generator": GENERATOR, "version": "2.0", "extras": _extras(run, head, options)},
        "scene": 0,
        "scenes": [{"nodes": [*head.roots, len(head.nodes)]}],
        "nodes": [*head.nodes, {"name": "camera", "camera": 0, "rotation": tilt.tolist()}],
        "cameras": [_camera(track, options)],
        "materials": head.materials,
        **_textures(buffer, head.pictures),
        "meshes": [head.mesh],
        "animations": [{"name": "performance", "samplers": animation.samplers, "channels": animation.channels}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.length}],
    }
    if head.skins:
        content["skins"] = head.skins
    write_chunks(target, content, buffer)

    K, (width, height) = track.K, track.image_size
    shift = float(np.hypot(K[0, 2] - width / 2, K[1, 2] - height / 2))
    if shift > 0.05 or track.distortion.any():
        progress.note(f"glTF cameras are centred and free of distortion: this one is {shift:.1f} px off centre")
    count, share = len(head.mesh["primitives"][0].get("targets", ())), f"{100 * SHARE:g} % of the vertices"
    progress.note(f"{count} morph targets: {share} within {head.errors_px[0]:.3f} px, all {head.errors_px[1]:.3f} px")


def _found(
    run: Run, rows: NDArray[np.int64], buffer: Buffer, animation: _Animation, options: ExportOptions, progress: Progress
) -> _Head:
    """A mesh whose morph targets are found in the motion."""
    morphs = fit_morphs(run, rows, progress)
    node = {"name": "head", "mesh": 0}
    if morphs.weights.shape[1]:
        animation.add(0, "weights", morphs.weights.ravel())
    errors = (morphs.error_px, morphs.largest_error_px)
    return _Head([node], [0], _mesh(buffer, morphs, options), [_material("skin", SKIN_COLOUR)], errors)


def _mesh(buffer: Buffer, morphs: Morphs, options: ExportOptions) -> dict[str, Any]:
    normals = _normals(morphs.neutral, morphs.faces)
    base = options.points(morphs.base)
    primitive: dict[str, Any] = {
        "attributes": {
            "POSITION": buffer.add(base, "VEC3", target=VERTEX_DATA, bounds=True),
            "NORMAL": buffer.add(normals @ options.axes.T, "VEC3", target=VERTEX_DATA),
        },
        "indices": buffer.add(morphs.faces.ravel(), "SCALAR", target=INDEX_DATA),
        "material": 0,
    }
    mesh: dict[str, Any] = {"name": "head", "primitives": [primitive]}
    if len(morphs.targets):
        primitive["targets"] = [{"POSITION": buffer.displacements(options.points(target))} for target in morphs.targets]
        mesh["weights"] = morphs.rest.tolist()
        mesh["extras"] = {"targetNames": [f"motion_{k:02d}" for k in range(len(morphs.targets))]}
    return mesh


def _rigged(
    run: Run, rows: NDArray[np.int64], buffer: Buffer, animation: _Animation, options: ExportOptions, progress: Progress
) -> _Head:
    """The person's rig: a skinned mesh, whose joints are the first nodes."""
    take = rigged_take(run, rows, progress)
    axes, mesh_node = options.axes, len(JOINTS)
    places = options.points(take.places)
    nodes = [{"name": name, "translation": place.tolist()} for name, place in zip(JOINTS, places, strict=True)]
    nodes[0]["children"] = list(range(1, len(JOINTS)))  # type: ignore[assignment]
    for j in range(1, len(JOINTS)):
        turned = axes @ take.turns[:, j].astype(np.float64) @ axes.T
        animation.add(j, "rotation", Rotation.from_matrix(turned).as_quat())
        if take.shifts[:, j].any():
            animation.add(j, "translation", places[j] + options.points(take.shifts[:, j]))
    animation.add(mesh_node, "weights", take.weights.ravel())
    nodes.append({"name": "head_mesh", "mesh": 0, "skin": 0})  # type: ignore[dict-item]

    unbound = np.tile(np.eye(4), (len(JOINTS), 1, 1))
    unbound[:, 3, :3] = -places  # glTF's matrices are stored by columns
    skin = {
        "joints": list(range(len(JOINTS))),
        "skeleton": 0,
        "inverseBindMatrices": buffer.add(unbound.reshape(-1, 16), "MAT4"),
    }
    pixels = pixels_per_metre(run, rows).max()
    errors = (take.error[0] * pixels, take.error[1] * pixels)
    materials = [_material(name, (1.0, 1.0, 1.0, 1.0)) for name in GROUPS]  # vertices have the colours
    pictures = skin_pictures(run, options, progress) if options.textured else []
    mesh = _skinned(buffer, take, options)
    for tile in range(len(pictures)):
        materials[tile]["pbrMetallicRoughness"]["baseColorTexture"] = {"index": tile}
        del mesh["primitives"][tile]["attributes"]["COLOR_0"]
    return _Head(nodes, [0, mesh_node], mesh, materials, errors, pictures, [skin])


def _skinned(buffer: Buffer, take: RiggedTake, options: ExportOptions) -> dict[str, Any]:
    """The mesh, a primitive for each group of parts; vertices on seams of the texture coordinates are there twice."""
    template, faces = take.template, take.template.faces
    normals = _normals(take.neutral, faces)
    changes = [_normals(take.neutral + target, faces) - normals for target in take.targets]
    colours = template.colours_on(SKIN_COLOUR[:3])
    joint, (group, in_tile) = take.joint_of_vertex, take.tiles(faces, template.face_uv)

    def turned(vectors: Array) -> Array:
        return vectors @ options.axes.T

    primitives = []
    for g in range(len(GROUPS)):
        corners = np.stack([faces[group == g], template.face_uv[group == g]], -1).reshape(-1, 2)
        own, first, indices = np.unique(corners, axis=0, return_index=True, return_inverse=True)
        v, uv = own[:, 0], in_tile[group == g].reshape(-1, 2)[first]
        uv[:, 1] = 1 - uv[:, 1]  # glTF counts from the top
        skinned = np.zeros((2, len(v), 4), np.uint8)
        skinned[0, :, 0], skinned[1, :, 0] = joint[v], 255
        points, shaded = options.points(take.neutral[v]), turned(normals[v])
        weights = buffer.add(skinned[1], "VEC4", target=VERTEX_DATA)
        buffer.accessors[weights]["normalized"] = True
        targets = []
        for target, change in zip(take.targets, changes, strict=True):
            bent = np.where(np.abs(change[v]).max(1, keepdims=True) > NORMAL_TURN, change[v], 0)
            targets.append(
                {
                    "POSITION": buffer.displacements(options.points(target[v])),
                    "NORMAL": buffer.displacements(turned(bent)),
                }
            )
        primitives.append(
            {
                "attributes": {
                    "POSITION": buffer.add(points, "VEC3", target=VERTEX_DATA, bounds=True),
                    "NORMAL": buffer.add(shaded, "VEC3", target=VERTEX_DATA),
                    "TEXCOORD_0": buffer.add(uv, "VEC2", target=VERTEX_DATA),
                    "COLOR_0": buffer.add(colours[v], "VEC3", target=VERTEX_DATA),
                    "JOINTS_0": buffer.add(skinned[0], "VEC4", target=VERTEX_DATA),
                    "WEIGHTS_0": weights,
                },
                "indices": buffer.add(indices.ravel(), "SCALAR", target=INDEX_DATA),
                "material": g,
                "targets": targets,
            }
        )
    rest, names = [0.0] * len(take.names), list(take.names)
    return {"name": "head", "primitives": primitives, "weights": rest, "extras": {"targetNames": names}}


def _normals(vertices: Array, faces: NDArray[np.integer]) -> Array:
    """Unit normals [V, 3]; glTF wants some of unused vertices too."""
    normals = vertex_normals(vertices, faces)
    normals[~normals.any(1)] = (0, 0, 1)
    return normals


def _material(name: str, colour: tuple[float, ...]) -> dict[str, Any]:
    return {
        "name": name,
        "doubleSided": True,
        "pbrMetallicRoughness": {"baseColorFactor": list(colour), "metallicFactor": 0.0, "roughnessFactor": 0.6},
    }


def _textures(buffer: Buffer, pictures: list[NDArray[np.uint8]]) -> dict[str, Any]:
    if not pictures:
        return {}
    images = [{"bufferView": buffer.add_file(png(picture)), "mimeType": "image/png"} for picture in pictures]
    return {"images": images, "textures": [{"source": index} for index in range(len(images))]}


def _camera(track: Track, options: ExportOptions) -> dict[str, Any]:
    (width, height), K = track.image_size, track.K
    return {
        "name": "camera",
        "type": "perspective",
        "perspective": {
            "yfov": float(2 * np.arctan(height / (2 * K[1, 1]))),
            "aspectRatio": float(width / K[0, 0] / (height / K[1, 1])),
            "znear": NEAR * options.scale,
            "zfar": FAR * options.scale,
        },
    }


def _extras(run: Run, head: _Head, options: ExportOptions) -> dict[str, Any]:
    track, rate = run.track, frame_rate(run)
    return {
        **options.described(),
        "frame_rate": rate,
        "frames": round(float(track.time[-1] - track.time[0]) * rate) + 1,
        "camera": camera(track),
        "start_time": float(track.time[0]),
        **({"images": track.image.tolist()} if len(track.image) else {}),
        "morph_error_px": round(head.errors_px[0], 4),
        "morph_largest_error_px": round(head.errors_px[1], 4),
    }


def _continuous(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternions [N, 4] with signs such that neighbours are on the same half of the sphere, for interpolation."""
    flips = np.sign((quaternions[1:] * quaternions[:-1]).sum(1))
    flips[flips == 0] = 1
    return quaternions * np.cumprod(np.r_[1.0, flips])[:, None]
