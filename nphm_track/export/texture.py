"""Colours of the skin in the template's texture coordinates, gathered from frames of the clip.

A texel has what frames say in which it is seen, the more the straighter and closer; what disagrees with the others,
such as a hand or a strand of hair, counts little. The clip's light, as far as second-order spherical harmonics over
the normals tell it from the skin's mean colour, is divided out; shadows and gloss stay. Ears and neck are believed
where they have the face's colour: they are where hair, collars and what is behind are taken for skin. What was seen
badly or never has the colours of its mirror image and, where those are missing too, colours that run on smoothly along
the mesh, over the seams too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.sparse import coo_matrix, diags
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import spsolve

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.errors import InputError
from nphm_track.export.frames import canonical, clip_frames
from nphm_track.export.manifest import write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.faces.mattes import MatteNetworks
from nphm_track.heads.template import GAMMA, Template
from nphm_track.heads.texels import TILES, Texels, skin_triangles, texels
from nphm_track.rendering.rasteriser import rasterise, vertex_normals
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import surface_of

SIZE = 1024
"""Pixels of a side of a tile."""
FRAMES, BIN = 16, 10.0
"""Frames that are looked at, and degrees of yaw in one bin of those that are told apart."""
BEHIND = 0.004
"""Metres behind what the camera sees first that still count as seen."""
GRAZING = 0.1
"""Cosine of the angle between normal and view below which skin is not looked at."""
ENOUGH = 0.15
"""Weight of one straight look from which a texel has its own colour alone."""
DISAGREE = 0.06
"""Difference of a colour (0..1, linear) from the others' that halves its pull."""
STRANGE = 0.5
"""Difference of a colour from the face's, of its brightness, that quarters what an ear's or a neck's counts."""
EARS, BLEND = ((0.062, 0.11), (-0.045, 0.06), (-0.08, 0.0)), 0.015
"""Metres of the template's head space, |x|, y and z; and how far inside ears and neck are fully that."""
CHIN = 152
CLEAR = 0.9
"""Matte of the person up to which a pixel may be of what is behind."""
FEWEST = 100
"""Texels that have to be seen for the light to be told."""
LIGHT = (0.5, 1.6)
"""Bounds of the light that is divided out, of its mean."""
FILES = tuple(f"skin.{1001 + tile}.png" for tile in range(TILES))
Array = NDArray[np.float32]


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the folder ``target``: a picture for each tile and the neutral head with texture coordinates."""
    for name, picture in zip(FILES, skin_pictures(run, options, progress), strict=True):
        Image.fromarray(picture).save(target / name)
    _write_obj(target / "head.obj", template_of(run), options.points(canonical(run)[0]))
    write_manifest(target, run, "texture", options, world="head-fixed", tiles=list(FILES))


def template_of(run: Run) -> Template:
    """The template whose topology a run's meshes have. Raises InputError when they have their own."""
    template = surface_of(run).template
    if template is None:
        raise InputError(f"{run.path} has meshes of its own topology, which have no texture coordinates")
    return template


def skin_pictures(run: Run, options: ExportOptions, progress: Progress) -> list[NDArray[np.uint8]]:
    """The skin's tiles [S, S, 3], as a screen shows them. Raises InputError for a run without the template."""
    template = template_of(run)
    tiles = [texels(template, tile, SIZE) for tile in range(TILES)]
    looks = list(_looks(run, template, tiles, options, progress))
    gathered = [
        _combine([look.colours[k] for look in looks], [look.weights[k] for look in looks]) for k in range(TILES)
    ]
    gathered = _plausible(template, tiles, gathered)
    gathered = [_mirrored(tile, *seen) for tile, seen in zip(tiles, gathered, strict=True)]
    base = _everywhere(template, tiles, gathered)
    pictures = []
    for tile, (colour, weight) in zip(tiles, gathered, strict=True):
        own = _enough(weight)[:, None] * tile.interpolate(_believed(template))
        pictures.append(_picture(tile, own * colour + (1 - own) * tile.interpolate(base)))
    return pictures


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture [H, W, 3] as a file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class _Look:
    """What one frame shows of each tile: linear colours [N, 3] and weights [N]."""

    colours: list[Array]
    weights: list[Array]


def chosen_rows(track: Track) -> list[int]:
    """The rows that are looked at: of each range of yaw those that were tracked best."""
    rows = np.flatnonzero(track.status == Status.TRACKED)
    forward = track.R[rows, :, 2]
    bins = np.round(np.degrees(np.arctan2(forward[:, 0], -forward[:, 2])) / BIN).astype(int)
    order = rows[np.argsort(np.nan_to_num(track.landmark_error_px[rows], nan=np.inf), kind="stable")]
    place = dict(zip(rows.tolist(), bins.tolist(), strict=True))
    each: dict[int, list[int]] = {}
    for row in order.tolist():
        each.setdefault(place[row], []).append(row)
    rounds = (row for turn in range(len(rows)) for row in (own[turn] for own in each.values() if turn < len(own)))
    return sorted(row for row, _ in zip(rounds, range(FRAMES), strict=False))


def _looks(
    run: Run, template: Template, tiles: list[Texels], options: ExportOptions, progress: Progress
) -> Iterator[_Look]:
    track, surface, chosen = run.track, surface_of(run), chosen_rows(run.track)
    if not chosen:
        raise InputError(f"{run.path} has no frame that was tracked")
    mattes = MatteNetworks.from_pretrained()
    size = (int(track.image_size[0]), int(track.image_size[1]))
    lens = Intrinsics(track.K, size, track.distortion)
    progress.stage("texture", len(chosen))
    for row, _, image in clip_frames(run, options.clip):
        if row not in chosen:
            continue
        x = surface.vertices_of(row) @ track.R[row].T + track.t[row]
        normals = vertex_normals(x, template.faces)
        depth = rasterise(x, template.faces, track.K, size).depth
        person = np.clip((mattes.person(image, depth > 0) - CLEAR) / (1 - CLEAR), 0, 1)
        linear = (image.astype(np.float32) / 255) ** GAMMA
        colours, weights, turned = [], [], []
        for tile in tiles:
            points, n = tile.interpolate(x), tile.interpolate(normals)
            n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)
            at = lens.project(points).T[::-1] - 0.5  # pixel centres at 0.5
            weights.append(_weights(points, n, depth, track, size) * map_coordinates(person, at, order=1))
            colours.append(
                np.stack([map_coordinates(linear[..., c], at, order=1, mode="nearest") for c in range(3)], 1)
            )
            turned.append(n)
        light = _light(np.concatenate(colours), np.concatenate(weights), np.concatenate(turned))
        ends = np.cumsum([len(n) for n in turned])[:-1]
        even = [(c / s[:, None]).astype(np.float32) for c, s in zip(colours, np.split(light, ends), strict=True)]
        yield _Look(even, weights)
        progress.advance()


def _weights(points: Array, normals: Array, depth: Array, track: Track, size: tuple[int, int]) -> Array:
    """How well each point [N, 3] (camera, metres) is seen: 0 behind something, on the edge, or outside the frame."""
    at = points[:, :2] / points[:, 2:] * track.K[[0, 1], [0, 1]] + track.K[[0, 1], 2]
    column, row = (np.clip(np.floor(at[:, k]).astype(int), 0, size[k] - 1) for k in range(2))
    inside = ((at >= 1) & (at < np.array(size) - 1)).all(1) & (points[:, 2] > 0)
    seen = inside & (depth[row, column] > 0) & (points[:, 2] < depth[row, column] + BEHIND)
    facing = -(normals * points).sum(1) / np.linalg.norm(points, axis=1)
    return (seen * np.clip((facing - GRAZING) / (1 - GRAZING), 0, 1) ** 2).astype(np.float32)


def _light(colours: Array, weights: Array, normals: Array) -> Array:
    """[N] of the light on points with these colours [N, 3] and normals [N, 3], of its mean."""
    every = slice(None, None, max(1, len(colours) // 20000))
    seen = weights[every] > 0
    A, brightness, looked = _harmonics(normals[every][seen]), colours[every][seen].mean(1), weights[every][seen]
    if len(looked) < FEWEST:
        return np.ones(len(colours), np.float32)
    w, tame = looked, 0.02 * np.diag([0.0] + 8 * [1.0])
    for _ in range(5):  # hair, brows and lips are no skin in light
        found = np.linalg.solve(A.T @ (w[:, None] * A) + w.sum() * tame, A.T @ (w * brightness))
        off = (brightness - A @ found) / (0.2 * np.median(brightness) + 1e-6)
        w = looked / (1 + off**2) ** 2
    return np.clip(_harmonics(normals) @ found / np.average(A @ found, weights=w), *LIGHT).astype(np.float32)


def _harmonics(n: Array) -> Array:
    """Spherical harmonics [N, 9] up to the second order, unscaled."""
    x, y, z = n.T
    return np.stack([np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], 1)


def _combine(colours: list[Array], weights: list[Array]) -> tuple[Array, Array]:
    """Colours [N, 3] that most looks agree on, and the weight of those that do [N]."""
    c, w = np.stack(colours), np.stack(weights)
    mean = _mean(c, w)
    for _ in range(4):
        off = np.abs(c - mean).mean(-1) / DISAGREE
        agreeing = w / (1 + off**2) ** 2
        mean = _mean(c, agreeing)
    return mean, w.max(0)


def _mean(c: Array, w: Array) -> Array:
    return np.asarray((w[..., None] * c).sum(0) / np.maximum(w.sum(0), 1e-6)[:, None])


def _enough(weight: Array) -> Array:
    """How far texels of these weights [N] have their own colour, 0..1."""
    return np.asarray(np.clip(weight / ENOUGH, 0, 1), np.float32)


def _plausible(
    template: Template, tiles: list[Texels], gathered: list[tuple[Array, Array]]
) -> list[tuple[Array, Array]]:
    """The same with less weight of what on ears and neck has not the face's colour."""
    x, y, z = template.neutral.T
    depths = [np.minimum(c - low, high - c) for c, (low, high) in zip((np.abs(x), y, z), EARS, strict=True)]
    depth = np.maximum(np.min(depths, 0), template.landmarks(template.neutral)[CHIN, 1] - y)
    bare = np.clip(depth / BLEND, 0, 1)[:, None]
    bare[template.parts["head"][1] :] = 0
    colour, weight = (np.concatenate([seen[k] for seen in gathered]) for k in range(2))
    on_face = np.concatenate([(tile.corners < template.parts["face"][1]).all(1) for tile in tiles])
    known = on_face & (weight >= ENOUGH)
    if not known.any():
        return gathered
    skin = np.median(colour[known], axis=0)
    out = []
    for tile, (c, w) in zip(tiles, gathered, strict=True):
        off = np.abs(c - skin).mean(1) / skin.mean()
        doubt = tile.interpolate(bare)[:, 0] * (1 - 1 / (1 + (off / STRANGE) ** 2) ** 2)
        out.append((c, w * (1 - doubt)))
    return out


def _mirrored(tile: Texels, colour: Array, weight: Array) -> tuple[Array, Array]:
    """The same with the other side's colours where a side was seen badly: the skin's tiles are symmetric."""
    place = np.full((SIZE, SIZE), -1)
    place[tile.row, tile.column] = np.arange(len(weight))
    other = place[tile.row, SIZE - 1 - tile.column]
    lent = np.where(other >= 0, weight[other], 0) * (1 - _enough(weight))
    share = _enough(weight)
    share = share / np.maximum(share + _enough(lent), 1e-6)
    mixed = share[:, None] * colour + (1 - share)[:, None] * colour[other]
    return np.where((lent > 0)[:, None], mixed, colour), np.maximum(weight, lent)


def _everywhere(template: Template, tiles: list[Texels], gathered: list[tuple[Array, Array]]) -> Array:
    """Linear colours [V, 3] of all vertices of the skin: seen ones their own, the others what runs on to them."""
    n = len(template.neutral)
    colour, weight = np.zeros((n, 3)), np.full(n, 1e-9)
    for tile, (c, w) in zip(tiles, gathered, strict=True):
        for k in range(3):
            share = w * tile.shares[:, k]
            np.add.at(weight, tile.corners[:, k], share)
            np.add.at(colour, tile.corners[:, k], share[:, None] * c)
    colour /= weight[:, None]
    trust = np.clip(weight / np.quantile(weight, 0.9), 0, 1)
    trust = np.maximum(trust * _believed(template)[:, 0], 1e-9)
    hidden = np.zeros(n, bool)
    for name in ("mouth", "socket_left", "socket_right"):
        hidden[template.part(name)] = True
    colour[hidden], trust[hidden] = template.colours[hidden], 10.0
    edges = template.edges[(template.edges < template.skin_size).all(1)]
    size = template.skin_size
    graph = coo_matrix((np.ones(len(edges)), edges.T), (size, size))
    held = diags(trust[:size])
    smooth = spsolve((laplacian(graph + graph.T) + held).tocsc(), held @ colour[:size])
    out = np.zeros((n, 3), np.float32)
    out[:size] = smooth
    return out


def _believed(template: Template) -> Array:
    """[V, 1]: 1 where looks are believed; 0 inside mouth and sockets, and on the bust, which is not the person's."""
    believed = np.zeros((len(template.neutral), 1), np.float32)
    believed[: template.parts["head"][1]] = 1
    believed[~np.isin(np.arange(len(believed)), template.head_faces)] = 0
    return believed


def _picture(tile: Texels, colours: Array) -> NDArray[np.uint8]:
    """[S, S, 3] with the colours [N, 3]; around the charts their edges run on, for readers that blur."""
    picture, known = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), bool)
    picture[tile.row, tile.column] = np.rint(255 * np.clip(colours, 0, 1) ** (1 / GAMMA))
    known[tile.row, tile.column] = True
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(picture[tuple(nearest)])


def _write_obj(path: Path, template: Template, points: NDArray[np.floating]) -> None:
    """The skin as OBJ with a material for each tile; tiles repeat, so that coordinates may keep their UDIM."""
    faces, places, tile = skin_triangles(template)
    path.with_suffix(".mtl").write_text(
        "".join(f"newmtl skin{k}\nKd 1 1 1\nmap_Kd {name}\n" for k, name in enumerate(FILES)), encoding="utf-8"
    )
    lines = [f"mtllib {path.with_suffix('.mtl').name}\n"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in points[: template.skin_size]]
    lines += [f"vt {u:.6f} {v:.6f}\n" for u, v in template.uv]
    for k in range(TILES):
        lines.append(f"usemtl skin{k}\n")
        own = np.stack([faces[tile == k], places[tile == k]], -1) + 1
        lines += ["f " + " ".join(f"{v}/{t}" for v, t in triangle) + "\n" for triangle in own.tolist()]
    path.write_text("".join(lines), encoding="utf-8")
