"""The 478 landmarks on a scan: found on renderings of it, carried to its surface by the rasteriser.

The scan may stand in any orientation. Views along and between the axes are tried; what is found is brought onto the
mean head, which also unmasks a hollow face seen from behind; then the scan is drawn from the front and looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.conventions import IBUG68_FROM_478, N_LANDMARKS, POINTS7_478
from nphm_track.errors import InputError, NoFaceError
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.files.reading import read_json, read_npy, read_text, reading
from nphm_track.heads.registration import robust_similarity
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import Fragments, interpolate, rasterise
from nphm_track.rigid import Similarity
from nphm_track.scans.reading import ScanGeometry, estimated_normals

FloatArray = NDArray[np.float64]

SEARCH_SIZE, FRONT_SIZE = 320, 512
FRONT_VIEWS = ((0, 0), (-20, 0), (20, 0), (0, 15))
"""Degrees of yaw and of looking up from below: what is under the nose is hidden from the front."""
DISTANCE, FRONT_WIDTH = 0.9, 0.3
"""Metres: camera to head, and the width it sees there."""
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Landmarks of the face's outline, which follow the view and not the skin."""
MAX_MISFIT = 8.0
"""Millimetres: median distance between the mean head's landmarks and those found, on the mean head's scale."""
FEWEST = 150
"""Landmarks that must lie on the scan for a face to count."""
OUTLIER = 3.5
"""Times the median misfit: such a landmark lies on the wrong surface, the nose instead of the lip behind it."""
CLOUD_POINTS = 60_000
_FLIP = np.diag([1.0, -1.0, -1.0])  # x right, y up, z to the viewer -> camera


@dataclass(frozen=True)
class ScanLandmarks:
    """Known landmarks of a scan: ``index`` [L] among the 478, ``points`` [L, 3] in the scan's coordinates."""

    index: NDArray[np.int64]
    points: FloatArray


@dataclass(frozen=True)
class _Drawable:
    """Triangles with what their corners look like."""

    vertices: FloatArray
    faces: NDArray[np.int64]
    normals: FloatArray
    colours: NDArray[np.float32] | None  # [V, 3] 0..1
    uv: NDArray[np.float32] | None
    texture: NDArray[np.uint8] | None


class _Drawer:
    """A scan ready to be drawn from many sides; a cloud is thinned and drawn as small squares that face the camera."""

    def __init__(self, scan: ScanGeometry) -> None:
        self.scan = scan
        colours = None if scan.colours is None else (scan.colours / 255).astype(np.float32)
        if scan.faces is not None:
            assert scan.normals is not None
            self.points = scan.vertices[np.unique(scan.faces)]
            self.mesh = _Drawable(scan.vertices, scan.faces, scan.normals, colours, scan.uv, scan.texture)
            return
        count = len(scan.vertices)
        rng = np.random.default_rng(0)
        some = rng.choice(count, CLOUD_POINTS, replace=False) if count > CLOUD_POINTS else np.arange(count)
        self.points = scan.vertices[some]
        self.normals = estimated_normals(self.points) if scan.normals is None else scan.normals[some]
        self.colours: NDArray[np.float32] | None = None if colours is None else np.repeat(colours[some], 4, 0)
        self.spacing = float(np.median(kd_tree(self.points).query(self.points, k=4)[0][:, 3]))

    def seen_from(self, pose: Similarity) -> _Drawable:
        if self.scan.faces is not None:
            return self.mesh
        right, up = pose.R[:, 0] * self.spacing, pose.R[:, 1] * self.spacing
        corners = np.stack([-right - up, right - up, right + up, up - right])
        first = 4 * np.arange(len(self.points))[:, None]
        faces = np.concatenate([first + np.array(part) for part in ((0, 1, 2), (0, 2, 3))])
        # Estimated normals have no sign: here they all look at the viewer.
        facing = np.where((self.normals @ pose.R)[:, 2:] < 0, -self.normals, self.normals)
        squares = (self.points[:, None] + corners).reshape(-1, 3)
        return _Drawable(squares, faces, np.repeat(facing, 4, 0), self.colours, None, None)


def detect_landmarks(scan: ScanGeometry, mean_landmarks: FloatArray, landmarker: FaceLandmarker) -> ScanLandmarks:
    """Landmarks of the face of a scan; ``mean_landmarks`` [478, 3] of a mean head, metres, head space.

    Raises NoFaceError when no view shows a face.
    """
    drawer = _Drawer(scan)
    pose = _search(drawer, mean_landmarks, landmarker)
    if pose is None:
        raise NoFaceError("no face found on the scan; give its landmarks with --landmarks")
    merged = np.empty((0, 3))
    for _ in range(2):
        seen = [_look(drawer, pose, np.deg2rad(view), landmarker) for view in FRONT_VIEWS]
        views = np.array([points for points in seen if points is not None])
        if len(views) == 0:
            raise NoFaceError("no face found on the scan; give its landmarks with --landmarks")
        merged = _median(views)
        pose = _pose_of(merged, mean_landmarks)
    error = np.linalg.norm(pose.inverse(merged) - mean_landmarks, axis=1)
    index = np.flatnonzero(error < OUTLIER * np.nanmedian(error))  # NaN fails it
    return ScanLandmarks(index, merged[index])


def _pose_of(points: FloatArray, mean: FloatArray) -> Similarity:
    known = np.isfinite(points).all(1)
    return robust_similarity(mean[known], points[known])


def _search(scan: _Drawer, mean: FloatArray, landmarker: FaceLandmarker) -> Similarity | None:
    """Pose (head to scan) from the best of many views."""
    centre = np.median(scan.points, axis=0)
    radius = float(np.quantile(np.linalg.norm(scan.points - centre, axis=1), 0.98))
    for directions, thorough in ((_axes(1), False), (_axes(2, 3), False), (_axes(1), True)):
        best: tuple[float, Similarity] | None = None
        for view in directions:
            found = _candidates(scan, Similarity(radius, view.T, centre), SEARCH_SIZE, 2.1, 4.0, landmarker, thorough)
            for points in found:
                pose = _pose_of(points, mean)
                misfit = 1e3 * float(np.nanmedian(np.linalg.norm(pose.inverse(points) - mean, axis=1)))
                if misfit < MAX_MISFIT and (best is None or misfit < best[0]):
                    best = misfit, pose
        if best is not None:
            return best[1]
    return None


def _look(scan: _Drawer, pose: Similarity, view: FloatArray, landmarker: FaceLandmarker) -> FloatArray | None:
    """Landmarks [478, 3] on the scan seen from the head's front, turned by ``view`` (yaw and pitch, radians)."""
    turn = Rotation.from_euler("yx", view).as_matrix()
    turned = Similarity(pose.scale, pose.R @ turn, pose.t)
    found = _candidates(scan, turned, FRONT_SIZE, FRONT_WIDTH, DISTANCE, landmarker, None)
    distance = [float(np.nanmedian(np.linalg.norm(pose.inverse(p) - [0, 0, 0.06], axis=1))) for p in found]
    return found[int(np.argmin(distance))] if found else None


def _candidates(
    scan: _Drawer,
    pose: Similarity,
    size: int,
    width: float,
    distance: float,
    landmarker: FaceLandmarker,
    thorough: bool | None,
) -> list[FloatArray]:
    """Landmarks on the scan, [478, 3] for each face seen by a camera ``distance`` in front of ``pose``."""
    drawn = scan.seen_from(pose)
    focal = size * distance / width
    K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    camera = pose.inverse(drawn.vertices) @ _FLIP + [0, 0, distance]
    fragments = rasterise(camera, drawn.faces, K, (size, size))
    if (fragments.face_id >= 0).mean() < 0.01:
        return []
    image = _picture(fragments, drawn, pose)
    faces = landmarker.find(image, thorough=thorough)
    lifted = [_lifted(face, fragments, drawn, pose, width / size) for face in faces]
    return [points for points in lifted if np.isfinite(points).all(1).sum() >= FEWEST]


def _lifted(
    face: FaceObservation, fragments: Fragments, drawn: _Drawable, pose: Similarity, pixel: float
) -> FloatArray:
    """The observed points on the scan's surface; NaN off the scan, near an outline, or where it is seen edge-on."""
    size = len(fragments.depth)
    column, row = np.floor(face.landmarks[:, :2].T).astype(int)
    inside = (column >= 1) & (column < size - 1) & (row >= 1) & (row < size - 1)
    column, row = column.clip(1, size - 2), row.clip(1, size - 2)
    around = np.stack([fragments.depth[row + dy, column + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    steep = (around.max(0) - around.min(0)) > 8 * pixel
    good = inside & (around > 0).all(0) & ~steep
    corners = drawn.vertices[drawn.faces[fragments.face_id[row, column]]]  # [478, 3, 3]
    points = (corners * fragments.bary[row, column][:, :, None]).sum(1)
    good[list(OVAL)] = False
    points[~good] = np.nan
    return np.asarray(points)


def _picture(fragments: Fragments, drawn: _Drawable, pose: Similarity) -> NDArray[np.uint8]:
    """The scan lit from beside the camera, in its own colours where it has some; winding does not matter."""
    normals = interpolate(fragments, drawn.faces, drawn.normals @ pose.R)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    normals = normals / np.maximum(length, 1e-6)
    normals = np.where(normals[..., 2:] < 0, -normals, normals)
    lit = np.clip(normals @ np.array([-0.35, 0.5, 0.79], np.float32), 0, 1)[..., None]
    colour: Any = np.array([0.86, 0.70, 0.60], np.float32)
    ambient = 0.15
    if drawn.texture is not None and drawn.uv is not None:
        uv = interpolate(fragments, drawn.faces, drawn.uv) % 1.0
        height, width = drawn.texture.shape[:2]
        row, column = ((1 - uv[..., 1]) * (height - 1)).astype(int), (uv[..., 0] * (width - 1)).astype(int)
        colour, ambient = drawn.texture[row, column] / np.float32(255), 0.55
    elif drawn.colours is not None:
        colour, ambient = interpolate(fragments, drawn.faces, drawn.colours), 0.55
    image = np.where(fragments.face_id[..., None] >= 0, colour * (ambient + (1 - ambient) * lit), np.float32(0.25))
    return np.asarray((image.clip(0, 1) * 255).astype(np.uint8))


def _axes(*ones: int) -> Iterator[FloatArray]:
    """Views [3, 3] (rows: right, up, to the viewer) from directions with so many non-zero signs, at four rolls."""
    for signs in product((0, 1, -1), repeat=3):
        if np.count_nonzero(signs) not in ones:
            continue
        ahead = np.array(signs) / np.linalg.norm(signs)
        up = np.array([0.0, 1, 0]) if abs(ahead[1]) < 0.9 else np.array([0.0, 0, 1])
        right = np.cross(up, ahead)
        right /= np.linalg.norm(right)
        up = np.cross(ahead, right)
        for roll in range(4):
            c, s = np.cos(roll * np.pi / 2), np.sin(roll * np.pi / 2)
            yield np.stack([c * right + s * up, c * up - s * right, ahead])


def _median(views: FloatArray) -> FloatArray:
    """Median [478, 3] over views [V, 478, 3] of each point, of those that saw it."""
    merged = np.full(views.shape[1:], np.nan)
    seen = np.isfinite(views).all(2).any(0)
    merged[seen] = np.nanmedian(views[:, seen], axis=0)
    return merged


def read_landmarks(path: str | Path) -> ScanLandmarks:
    """Landmarks from a file: JSON {name: [x, y, z]} with names of ``POINTS7_478``, or 68 (iBUG) or 478 rows of three
    numbers as .json, .npy or .txt; rows of NaN are unknown points. Raises InputError when it is something else.
    """
    path = Path(path)
    with reading(path, "a file of landmarks"):
        if path.suffix == ".npy":
            data: Any = read_npy(path)
        elif path.suffix == ".json":
            data = read_json(path, finite=False)
        else:
            text = read_text(path)
            data = np.loadtxt(text.splitlines(), delimiter="," if "," in text else None, ndmin=2)
        if isinstance(data, dict):
            unknown = sorted(set(data) - set(POINTS7_478))
            if unknown:
                raise InputError(f"{path.name}: unknown landmark '{unknown[0]}'; known are {', '.join(POINTS7_478)}")
            index = np.array([POINTS7_478[name] for name in data], np.int64)
            points = np.array(list(data.values()), np.float64)
        else:
            points = np.asarray(data, np.float64)
            tables = {68: np.array(IBUG68_FROM_478), N_LANDMARKS: np.arange(N_LANDMARKS)}
            index = tables.get(len(points), np.empty(0, np.int64))
    if points.shape != (len(index), 3) or len(index) == 0:
        raise InputError(f"{path.name}: 68 or {N_LANDMARKS} rows of three numbers are needed, not {list(points.shape)}")
    known = np.isfinite(points).all(1)
    if known.sum() < 4:
        raise InputError(f"{path.name}: at least 4 known landmarks are needed, not {int(known.sum())}")
    return ScanLandmarks(index[known], points[known])
