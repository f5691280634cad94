"""What a refinement is given: the feed-forward result of a clip, and the evidence of some of its frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import MODEL_UNIT
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mesh import CanonicalMesh, compact, extract_canonical
from nphm_track.landmark_model import eye_distance
from nphm_track.refine.codes import State
from nphm_track.refine.landmarks import POINTS
from nphm_track.refine.pixels import Targets, mesh_depth, sample_targets
from nphm_track.refine.solver import Evidence

DETAIL = 0.4
"""Density of the mesh that start depths are read from; Newton steps along the rays make up for it."""
FRONT = -0.01
"""Metres along z; what lies behind is never seen in a face crop's confident pixels."""


class MapSource(Protocol):
    """Gives the geometry maps of frames; called with ascending rows of the clip, key frames first, then window by
    window. Frames in which no face was seen have confidence 0."""

    def __call__(self, rows: NDArray[np.int64]) -> GeometryMaps: ...


class Landmarks478(Protocol):
    """An array [T, 478, 2 or 3], or what reads rows of one from disk."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class PersonViews:
    """T views of one person with their feed-forward result.

    Attributes:
        start: codes, poses and camera; poses float64.
        camera: the same camera, with its distortion.
        camera_known: the focal length was given and stays.
        identity_known: the identity was given (another run's) and stays.
        times: [T] s, ascending. segments: [T] int; views of different ones are not neighbours in time.
        confidence: [T] 0..1, 0 where the face was not seen.
    """

    start: State
    camera: Intrinsics
    camera_known: bool
    identity_known: bool
    times: NDArray[np.float64]
    segments: NDArray[np.int64]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.times)

    def evidence(
        self, rows: NDArray[np.int64], maps: GeometryMaps, pixels: int, *, independent: bool = False
    ) -> Evidence:
        """What is observed of the views ``rows``, at most ``pixels`` pixels each; ``independent``: no sequence."""
        raise NotImplementedError


@dataclass(frozen=True)
class Clip(PersonViews):
    """The frames of a clip that have a head.

    Attributes:
        landmarks: px of the original frame, NaN where not seen.
    """

    landmarks: Landmarks478

    def evidence(
        self, rows: NDArray[np.int64], maps: GeometryMaps, pixels: int, *, independent: bool = False
    ) -> Evidence:
        landmarks = np.asarray(self.landmarks[rows][:, :, :2], np.float64)
        eyes = eye_distance(landmarks)
        points = landmarks[:, list(POINTS)]
        known = np.isfinite(points)
        points = np.where(known, self.camera.undistort(np.where(known, points, 0.0)), np.nan)
        segments = np.arange(len(rows)) if independent else self.segments[rows]
        device = self.start.z_id.device
        return Evidence(
            targets=sample_targets(maps, pixels, self.camera).to(device),
            landmarks=torch.from_numpy(points).to(device),
            confidence=torch.from_numpy(np.asarray(self.confidence[rows], np.float64)).to(device),
            eyes=torch.from_numpy(np.where(np.isfinite(eyes), eyes, 1.0)).to(device),
            times=torch.from_numpy(self.times[rows]).to(device),
            segments=torch.from_numpy(np.asarray(segments, np.int64)).to(device),
            start=self.start.rows(torch.from_numpy(rows).to(device)),
        )


class Head:
    """One person's front surface, coarse, to read from where rays start."""

    def __init__(self, model: NphmDecoder, z_id: Tensor) -> None:
        mesh = extract_canonical(model, z_id, detail=DETAIL)
        front = mesh.faces[(mesh.vertices[mesh.faces][..., 2] > FRONT).any(1)]
        both = mesh.vertices if mesh.open_vertices is None else np.concatenate([mesh.vertices, mesh.open_vertices], 1)
        kept, faces = compact(both, front)
        opened = None if mesh.open_vertices is None else kept[:, 3:]
        self.mesh = CanonicalMesh(kept[:, :3], faces.astype(np.int32), opened)
        self._carry = MeshCarrier(model, self.mesh, z_id)

    def posed(self, z_ex: Tensor) -> list[NDArray[np.float32]]:
        """Vertices [V, 3] (metres, head space) for each of z_ex [B, D_ex]; expressions that follow are cheapest."""
        out, last = [], None
        for code in z_ex:
            last = self._carry(code, last)
            out.append((last.posed.points * MODEL_UNIT).cpu().numpy())
        return out

    def depths(
        self, vertices: list[NDArray[np.float32]], state: State, targets: Targets, rois: Tensor, n: int
    ) -> tuple[Tensor, Tensor]:
        """Camera depth [B, N] of posed vertices at the pixels of ``targets``, and where they were hit; n is the size of
        the crops."""
        depth = torch.zeros(targets.cells.shape, dtype=torch.float32)
        K, R, t = (v.cpu().numpy() for v in (state.K, state.R, state.t))
        for b, points in enumerate(vertices):
            image = mesh_depth(points, self.mesh.faces, R[b], t[b], K, rois[b].cpu().numpy(), n)
            depth[b] = torch.from_numpy(image)[targets.cells[b].cpu()]
        hit = (depth > 0).to(state.z_ex.device)
        return torch.where(hit, depth.to(state.z_ex.device), 1.0), hit


def hidden(evidence: Evidence, hit: Tensor) -> Evidence:
    """The evidence without the pixels [B, N] at which there is no head."""
    targets = evidence.targets
    targets = replace(targets, normal_weight=targets.normal_weight * hit, point_weight=targets.point_weight * hit)
    return replace(evidence, targets=targets)
