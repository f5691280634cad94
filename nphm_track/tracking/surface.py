"""The mesh of a tracked head in every frame: the person's rigged template, or the network's own zero level."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.conventions import ARKIT_BLENDSHAPES, MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads import rig_weights
from nphm_track.heads.carry import Carried, MeshCarrier
from nphm_track.heads.correctives import CorrectedFrames, Correctives
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import CanonicalMesh, extract_canonical
from nphm_track.heads.rig import Rig, open_rig
from nphm_track.heads.rig_file import PersonRig, load_rig, rig_key
from nphm_track.heads.template import Template, load_template
from nphm_track.models import resolve, sha256
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import RIG_NPZ, Run

BLOCK = 64
"""Frames carried with warm starts before a cold one: a resumed run repeats a block at most, with the same meshes."""
RESOLUTION = 192
"""Of ``mesh_resolution``, where the density of the zero level's mesh is 1."""
Topology = Literal["template", "isosurface"]
Vertices = NDArray[np.float32]


@dataclass(frozen=True)
class Surface:
    """A person's mesh at rest and in the rows of a track.

    Attributes:
        mesh: the neutral head.
        vertices_of: vertices [V, 3] (metres, head space) of a row, asked for in ascending order.
        template: whose topology the mesh has; None for the zero level's own.
        person: the rig that poses it, where it is not read from meshes.
    """

    mesh: CanonicalMesh
    vertices_of: Callable[[int], Vertices]
    template: Template | None = None
    person: PersonRig | None = None

    def painter(
        self,
        track: Track,
        style: str,
        opacity: float | None,
        side_by_side: bool,
        scale: float = 1.0,
        renderer: str = "numba",
    ) -> OverlayRenderer:
        """What draws it over the frames of ``track``: a template's parts in their own colours, cut at the neck."""
        size = (int(track.image_size[0]), int(track.image_size[1]))
        look = (track.K, size, style, opacity, side_by_side, scale, renderer)
        occlusion = ambient_occlusion(self.mesh.vertices, self.mesh.faces)
        if self.template is None:
            return OverlayRenderer(self.mesh.faces, *look, occlusion)
        t = self.template
        opened = self.mesh.vertices + 0.5 * t.expression[t.expression_names.index("jawOpen")]
        occlusion[t.inside_mouth] = ambient_occlusion(opened, self.mesh.faces)[t.inside_mouth]
        return OverlayRenderer(t.head_faces, *look, occlusion, albedo=t.colours, prepare=t.cut_at_neck)


def find_rig(model: NphmDecoder, z_id: NDArray[np.floating]) -> Rig | None:
    """As ``open_rig``; None where the model's surface is not near the template's, or no landmark says where it is."""
    with suppress(ModelError):
        return open_rig(model, z_id)
    return None


def arkit_of(rig: Rig, model: NphmDecoder, track: Track) -> NDArray[np.float32]:
    """``Track.arkit`` of a track whose person has this rig."""
    out = np.full((len(track), len(ARKIT_BLENDSHAPES)), np.nan, np.float32)
    present = track.status != Status.LOST
    codes, z_id = (
        torch.from_numpy(np.asarray(z, np.float32)).to(model.mean_anchors.device)
        for z in (track.z_ex[present], track.z_id)
    )
    weights = rig_weights.rig_weights(rig, model, z_id, codes, track.gaze[present])
    out[present] = rig.bounded_arkit_weights(weights)
    return out


def open_surface(
    model: NphmDecoder,
    track: Track,
    topology: str,
    detail: float = 1.0,
    known: PersonRig | None = None,
    learn: bool = True,
) -> Surface:
    """The surface of a track; ``detail`` is that of the zero level's mesh (``extract_canonical``).

    ``known`` is a rig of the same person, to which correctives are added for what this track needs, unless ``learn``
    is off: then it is the track's own. A head that the template cannot be wrapped on has its zero level meshed whatever
    ``topology`` says. Raises ModelError when the identity code has no surface.
    """
    rig = None
    if topology == "template":
        rig = known.rig if known else find_rig(model, track.z_id)
    if rig is not None:
        frames = RiggedFrames(model, rig, track, known.correctives if known else None, learn or known is None)
        return Surface(CanonicalMesh(rig.neutral, rig.faces), frames, rig.template, PersonRig(rig, frames.correctives))
    z_id = torch.from_numpy(track.z_id).to(model.mean_anchors.device)
    mesh = extract_canonical(model, z_id, detail=detail)
    return Surface(mesh, CarriedFrames(model, mesh, track))


@lru_cache(maxsize=1)
def surface_of(run: Run) -> Surface:
    """The surface of a finished run: read from its meshes, or made again when it did not write all of them.

    Raises InputError when it has to be made again and the head model has changed.
    """
    options = run.info.options
    if writes_every_mesh(run):
        vertices, faces = run.canonical()
        template = load_template() if has_template(run) else None
        return Surface(CanonicalMesh(vertices, faces), lambda row: run.mesh(row)[0], template)
    detail = int(options.get("mesh_resolution", RESOLUTION)) / RESOLUTION
    topology = str(options.get("topology", "isosurface"))
    return open_surface(model_of(run), run.track, topology, detail, rig_of(run), learn=False)


def writes_every_mesh(run: Run) -> bool:
    """Whether a finished run has a mesh of every frame with a head."""
    return bool(run.info.options.get("meshes", True)) and run.info.options.get("mesh_every", 1) == 1


def has_template(run: Run) -> bool:
    """Whether the meshes of a finished run have the template's topology."""
    if run.info.options.get("topology") != "template":  # runs of earlier versions know of no other but isosurface
        return False
    return len(run.canonical()[0]) == len(load_template().neutral)


def rig_in(folder: Path, z_id: NDArray[np.floating], head_model: str) -> PersonRig | None:
    """The rig in a run's folder, if there is one of this identity code and head model (its SHA-256)."""
    with suppress(InputError):
        return load_rig(folder / RIG_NPZ, load_template(), rig_key(z_id, head_model))
    return None


def rig_of(run: Run) -> PersonRig | None:
    """The rig that a finished run has made of its person, where it has one that is still valid."""
    model = run.info.models.get(str(run.info.options.get("head_model", DEFAULT)))
    return rig_in(run.path, run.track.z_id, str(model))


def person_of(run: Run) -> PersonRig:
    """The rig of a run in the template's topology: what it has made, or made again.

    Raises InputError when it has to be made and the head model has changed.
    """
    made = surface_of(run).person or rig_of(run)
    if made is None:
        made = open_surface(model_of(run), run.track, "template").person
    assert made is not None, "the run's meshes are not the template's"
    return made


def model_of(run: Run) -> NphmDecoder:
    """The head model of a finished run. Raises InputError when it is another one now."""
    name = str(run.info.options.get("head_model", DEFAULT))
    if run.info.models.get(name) != sha256(resolve(name)):
        raise InputError(f"{run.path} was made with another head model than {name} is now")
    return load_head_model(name)


class RiggedFrames:
    """The vertices of a rig in the rows of a track, with the network's own deformation where it is the better witness.

    ``BLOCK`` rows are made at a time, whichever of them is asked for.
    """

    def __init__(
        self,
        model: NphmDecoder,
        rig: Rig,
        track: Track,
        known: Correctives | None = None,
        learn: bool = True,
    ) -> None:
        self.rig = rig
        codes = torch.from_numpy(np.nan_to_num(np.asarray(track.z_ex, np.float32))).to(model.mean_anchors.device)
        self.gaze = track.gaze if len(track.gaze) else None
        z_id = torch.from_numpy(np.asarray(track.z_id, np.float32)).to(codes)
        self.weights = rig_weights.rig_weights(rig, model, z_id, codes, self.gaze)
        self.present = np.flatnonzero(track.status != Status.LOST)
        self._correct = CorrectedFrames(model, rig, z_id, codes, self.weights, known)
        if learn and len(self.present):
            self._correct.learn(self.present)
        self._block, self._rows, self._heads = -1, self.present[:0], np.empty((0, 0, 3), np.float32)

    @property
    def correctives(self) -> Correctives:
        return self._correct.correctives

    def __call__(self, row: int) -> Vertices:
        """Vertices [V, 3] of row ``row`` of the track, metres, head space."""
        if row not in self.present:
            return self._posed(row)
        if row // BLOCK != self._block:
            self._block = row // BLOCK
            self._rows = self.present[self.present // BLOCK == self._block]
            self._heads = self._posed(self._rows)
            self._heads[:, : self.rig.template.skin_size] += self._correct(self._rows)
        return self._heads[int(np.searchsorted(self._rows, row))].copy()

    def _posed(self, rows: int | NDArray[np.int64]) -> Vertices:
        return self.rig.vertices(self.weights[rows], None if self.gaze is None else self.gaze[rows])


class CarriedFrames:
    """The vertices of the zero level's mesh in the rows of a track, carried by inverting the network's deformation."""

    def __init__(self, model: NphmDecoder, mesh: CanonicalMesh, track: Track) -> None:
        self.track = track
        self.device = model.mean_anchors.device
        self._carry = MeshCarrier(model, mesh, torch.from_numpy(track.z_id).to(self.device))
        self._last: Carried | None = None
        self._block = self._row = -1

    def __call__(self, row: int) -> Vertices:
        """Vertices [V, 3] of row ``row`` of the track, metres, head space; quick when rows ascend."""
        if row // BLOCK != self._block or row < self._row:
            self._block, self._last = row // BLOCK, None
        self._row = row
        z_ex = torch.from_numpy(np.asarray(self.track.z_ex[row], np.float32)).to(self.device)
        self._last = self._carry(z_ex, self._last)
        return (self._last.posed.points * MODEL_UNIT).cpu().numpy()
