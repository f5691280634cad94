"""Photo-like training samples with exact geometry: random heads in real skin, light, hair and surroundings."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nphm_track.errors import InputError
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.faces.roi import crop_rois
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.training.ict import IctHeads, sample_expression, sample_identity
from nphm_track.training.paint import View, paint, random_view, render
from nphm_track.training.texture import FloatArray, PhotoTexture, TextureMaker, draw, random_light

MAP_SIZE = 128
"""Pixels of a side of the normal and point maps."""
IMAGE_SIZE = 320
CUT_OUT = 0.35
"""Share of the heads before foreign backgrounds whose face is cut out of the head, as many scans are."""


@dataclass(frozen=True)
class PhotoPool:
    """Fitted photos of one split, read from ``build_photo_fits.py``'s file."""

    folder: Path
    table: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, path: str | Path, folder: str | Path, *, heldout: bool) -> PhotoPool:
        if not Path(path).is_file():
            raise InputError(f"no {path}: it is written by training/build_photo_fits.py")
        data = np.load(path, allow_pickle=False)
        keep = data["heldout"] == heldout
        return cls(Path(folder), {k: data[k][keep] for k in data.files})

    def __len__(self) -> int:
        return len(self.table["w"])

    def image(self, row: int) -> NDArray[np.uint8]:
        return np.asarray(Image.open(self.folder / str(self.table["photo"][row])).convert("RGB"))

    def view(self, row: int) -> View:
        t = self.table
        w, h = t["size"][row].astype(int)
        return View(t["K"][row].astype(float), t["R"][row].astype(float), t["t"][row].astype(float), (int(w), int(h)))


class SampleMaker:
    """Draws one sample after the other; the same generator state gives the same sample."""

    def __init__(
        self, heads: IctHeads, landmark_points: FloatArray, landmarks68: NDArray[np.int64], pool: PhotoPool
    ) -> None:
        """``landmark_points`` [1 + 100 + E, 478, 3]: mean and modes of the landmarks."""
        self.heads, self.pool, self.landmarks68 = heads, pool, landmarks68
        self.landmark_points = landmark_points
        self.textures = TextureMaker(heads, landmark_points[0])
        self.landmarker = FaceLandmarker.from_pretrained()
        v = heads.neutral
        face = (v[:, 2] > -0.03) & (v[:, 1] > -0.105) & (v[:, 1] < 0.085) & (np.abs(v[:, 0]) < 0.082) & ~heads.is_pocket
        self.in_face = face.astype(np.float32)

    def landmarks(self, w: FloatArray, e: FloatArray) -> FloatArray:
        """Landmarks [478, 3] of a head, metres."""
        return self.landmark_points[0] + np.tensordot(np.concatenate([w, e]), self.landmark_points[1:], 1)

    def draw(self, rng: np.random.Generator) -> dict[str, Any] | None:
        """One sample (see :meth:`_finish`), or None when the landmark network sees no face in it."""
        pool, heads = self.pool, self.heads
        row = int(rng.integers(len(pool)))
        w, e = self._codes(rng, row)
        vertices = heads.vertices(w, e)
        kind = rng.choice(["follow", "free", "painted"], p=[0.5, 0.38, 0.12])
        if kind == "painted":
            view = random_view(rng, size=IMAGE_SIZE, yaw=50, pitch=25, roll=15)
            colour = paint(heads, self.landmarks68, rng)
            if rng.random() < 0.35:  # clay
                colour = np.full_like(colour, rng.uniform(0.4, 0.9)) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
            painted, _ = render(heads, vertices, colour, view, rng)
            image: FloatArray = painted / 255.0
        else:
            texture = self.textures.close_lids(self._texture(row), pool.table["e"][row], e, rng)
            view = self._view(rng, texture, kind)
            light = None if rng.random() < 0.4 else random_light(rng)
            background = None if kind == "follow" else self._background(rng)
            image, fragments, _ = draw(heads, texture, vertices, view, light, background)
            if background is not None and rng.random() < CUT_OUT:
                face = interpolate(fragments, heads.faces, self._inside_cut(rng, vertices)[:, None])
                image = np.where(face > 0, image, background)
        camera = (vertices @ view.R.T + view.t).astype(np.float32)
        occluded = np.zeros(image.shape[:2], bool)
        if rng.random() < 0.12:
            image, occluded = self._occlude(rng, image)
        if rng.random() < 0.1 and kind != "painted":
            image = self._glasses(rng, image, view, self.landmarks(w, e))
        picture = degrade(rng, image)
        seen = self._observe(rng, picture, view, camera)
        return None if seen is None else self._finish(rng, picture, seen, w, e, vertices, view, occluded)

    def _inside_cut(self, rng: np.random.Generator, vertices: FloatArray) -> NDArray[np.float32]:
        """Signed distance [V] (metres) to the outline of a face cut out as scans are: a tilted rounded box."""
        tilt = rng.normal() * 0.12
        x, y = vertices[:, 0] + tilt * vertices[:, 1], vertices[:, 1] - tilt * vertices[:, 0]
        top, bottom, side = rng.uniform(0.055, 0.1), rng.uniform(0.075, 0.12), rng.uniform(0.058, 0.085)
        back = rng.uniform(-0.03, 0.03)
        power = rng.uniform(2.5, 8)
        box = (np.abs(x / side) ** power + np.abs(y / np.where(y > 0, top, bottom)) ** power) ** (1 / power)
        return np.minimum(side * (1 - box), vertices[:, 2] - back).astype(np.float32)

    def _codes(self, rng: np.random.Generator, row: int) -> tuple[FloatArray, FloatArray]:
        own_w, own_e = self.pool.table["w"][row], np.clip(self.pool.table["e"][row], 0, 1)
        w = sample_identity(rng, 1)[0]
        choice = rng.random()
        if choice < 0.3:
            w = own_w + 0.8 * w
        elif choice < 0.45:
            w = own_w + 0.3 * w
        e = sample_expression(rng, 1, self.heads.expression_names)[0]
        choice = rng.random()
        if choice < 0.2:
            e = own_e
        elif choice < 0.4:
            e = np.clip(own_e * rng.uniform(0, 1) + e * rng.uniform(0, 1), 0, 1)
        return w.astype(np.float32), e.astype(np.float32)

    def _texture(self, row: int) -> PhotoTexture:
        t, view = self.pool.table, self.pool.view(row)
        own = self.landmarks(t["w"][row], t["e"][row]) @ view.R.T + view.t
        fitted = own[:, :2] / own[:, 2:] * view.K[0, 0] + view.K[:2, 2]
        return self.textures.make(
            self.pool.image(row), t["w"][row], t["e"][row], view, t["landmarks"][row, :, :2], fitted
        )

    def _view(self, rng: np.random.Generator, texture: PhotoTexture, kind: str) -> View:
        if kind == "free":
            wide = rng.random() < 0.5
            return random_view(rng, size=IMAGE_SIZE, yaw=60 if wide else 30, pitch=30 if wide else 15, roll=12)
        turn = random_view(rng, size=IMAGE_SIZE, yaw=14, pitch=10, roll=8)
        R = turn.R @ np.diag([1.0, -1.0, -1.0]) @ texture.view.R  # a small turn after the photo's own pose
        return View(turn.K, R, turn.t, turn.size)

    def _background(self, rng: np.random.Generator) -> FloatArray:
        choice = rng.random()
        if choice < 0.15:
            return np.clip(rng.uniform(0, 1, 3) + rng.normal(size=(IMAGE_SIZE, IMAGE_SIZE, 3)) * 0.05, 0, 1)
        if choice < 0.25:
            coarse = (rng.uniform(0, 1, (int(rng.integers(2, 24)),) * 2 + (3,)) * 255).astype(np.uint8)
            smooth = Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            return np.asarray(smooth, np.float32) / 255
        image = self.pool.image(int(rng.integers(len(self.pool))))
        side = int(rng.uniform(0.2, 0.5) * min(image.shape[:2]))
        y, x = (rng.integers(n - side) for n in image.shape[:2])
        part = Image.fromarray(image[y : y + side, x : x + side]).resize(
            (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
        )
        return np.asarray(part, np.float32) / 255

    def _occlude(self, rng: np.random.Generator, image: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """A blob in the colours of another picture (a hand, a sheet, a microphone) over some of the face."""
        y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] - IMAGE_SIZE / 2
        angle, place = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.35) * IMAGE_SIZE
        dx, dy = x - place * np.cos(angle), y - place * np.sin(angle)
        turn = rng.uniform(0, np.pi)
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        a, b = rng.uniform(0.05, 0.2, 2) * IMAGE_SIZE
        wobble = gaussian_filter(rng.normal(size=image.shape[:2]), 12) * 6
        blob = (u / a) ** 2 + (v / b) ** 2 + wobble < 1
        soft = gaussian_filter(blob.astype(np.float32), 1)[..., None]
        return image * (1 - soft) + self._background(rng) * soft, blob

    def _glasses(self, rng: np.random.Generator, image: FloatArray, view: View, landmarks: FloatArray) -> FloatArray:
        """Dark rims and a faint reflection around the eyes; the geometry below stays the target."""
        out = image.copy()
        y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5
        colour = rng.uniform(0, 0.35, 3) * rng.uniform(0.5, 1)
        width, tint, power = rng.uniform(0.08, 0.2), rng.uniform(0, 0.3) ** 2, rng.uniform(2, 5)
        for corners in ((33, 133), (362, 263)):
            eye = landmarks[list(corners)].mean(0) + np.array([0, -0.004, 0.012])
            rim = eye + np.array([[0, 0, 0], [0.026, 0, -0.004 * np.sign(eye[0])], [0, 0.019, 0]])
            p = rim @ view.R.T + view.t
            p = p[:, :2] / p[:, 2:] * view.K[0, 0] + view.K[:2, 2]
            basis = np.linalg.pinv(np.stack([p[1] - p[0], p[2] - p[0]], 1))
            local = np.stack([x - p[0, 0], y - p[0, 1]], -1) @ basis.T
            radius = (np.abs(local) ** power).sum(-1) ** (1 / power)
            ring = gaussian_filter((np.abs(radius - 1) < width).astype(np.float32), 0.7)[..., None]
            glass = tint * (radius < 1)[..., None]
            out = out * (1 - glass) + glass * rng.uniform(0, 1)
            out = out * (1 - ring) + colour * ring
        return out

    def _observe(
        self, rng: np.random.Generator, picture: NDArray[np.uint8], view: View, camera: FloatArray
    ) -> FaceObservation | None:
        """The landmark network's view, found from a jittered guess and looked at once more, as the follower does."""
        pixels = camera[self.landmarks68]
        pixels = pixels[:, :2] / pixels[:, 2:] * view.K[0, 0] + view.K[:2, 2]
        centre, side = (pixels.min(0) + pixels.max(0)) / 2, np.ptp(pixels, axis=0).max() * rng.uniform(1.5, 1.7)
        eyes = pixels[45] - pixels[36]
        angle = np.arctan2(eyes[1], eyes[0]) + rng.normal() * 0.05
        centre = centre + rng.normal(size=2) * 0.02 * side
        seen = self.landmarker.observe(picture, np.array([[*centre, side, side, angle]], np.float32))[0]
        error = np.linalg.norm(seen.landmarks[[33, 263, 152], :2] - pixels[[36, 45, 8]], axis=1).max()
        return seen if seen.presence > 0.7 and error < 0.12 * side else None

    def _finish(
        self,
        rng: np.random.Generator,
        picture: NDArray[np.uint8],
        seen: FaceObservation,
        w: FloatArray,
        e: FloatArray,
        vertices: FloatArray,
        view: View,
        occluded: NDArray[np.bool_],
    ) -> dict[str, Any]:
        """The 256 px crop as JPEG bytes, maps [128, 128, .] in the head frame, observation, codes and camera."""
        roi = seen.next_roi
        roi[2:4] *= 1 + rng.normal() * 0.03
        roi[:2] += rng.normal(size=2) * 0.012 * roi[2]
        roi[4] += rng.normal() * 0.03
        crop = (crop_rois([picture], roi[None])[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(crop).save(stream, "JPEG", quality=93)
        maps = head_maps(self.heads, vertices, view, roi, self.in_face)
        cover = crop_rois([occluded.astype(np.uint8)[..., None].repeat(3, 2) * 255], roi[None], MAP_SIZE)[0, 0].numpy()
        mask = maps[..., 6] * (cover < 0.3)
        return {
            "jpeg": np.frombuffer(stream.getvalue(), np.uint8),
            "points": maps[..., :3].astype(np.float16),
            "normals": np.round(maps[..., 3:6] * 127).astype(np.int8),
            "mask": mask > 0.5,
            "w": w,
            "e": e,
            "K": view.K.astype(np.float32),
            "R": view.R.astype(np.float32),
            "t": view.t.astype(np.float32),
            "size": np.array(view.size, np.float32),
            "roi": roi.astype(np.float32),
            "landmarks": seen.landmarks,
            "blendshapes": seen.blendshapes,
        }


def roi_camera(view: View, roi: FloatArray, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intrinsics and image-plane roll [3, 3]: ``K (roll x_cam)`` are pixels of the roi's ``size`` x ``size`` map."""
    cos, sin = np.cos(roi[4]), np.sin(roi[4])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    scale = size / roi[2]
    centre = turn[:2, :2] @ (view.K[:2, 2] - roi[:2]) * scale + size / 2
    return np.array([[view.K[0, 0] * scale, 0, centre[0]], [0, view.K[1, 1] * scale, centre[1]], [0, 0, 1]]), turn


def head_maps(
    heads: IctHeads, vertices: FloatArray, view: View, roi: FloatArray, in_face: FloatArray, size: int = MAP_SIZE
) -> FloatArray:
    """Points (3, metres), unit normals (3) and face mask (1) [size, size, 7] in head space, seen through ``roi``."""
    K, turn = roi_camera(view, roi, size)
    camera = (vertices @ (turn @ view.R).T + turn @ view.t).astype(np.float32)
    fragments = rasterise(camera, heads.faces, K, (size, size))
    normals = vertex_normals(vertices.astype(np.float32), heads.faces)
    attributes = np.concatenate([vertices, normals, in_face[:, None]], 1).astype(np.float32)
    maps = interpolate(fragments, heads.faces, attributes)
    length = np.linalg.norm(maps[..., 3:6], axis=-1, keepdims=True)
    maps[..., 3:6] /= np.maximum(length, 1e-6)
    return maps


def degrade(rng: np.random.Generator, image: FloatArray) -> NDArray[np.uint8]:
    """What cameras and codecs do: exposure, white balance, blur, low resolution, noise, grey, JPEG; uint8 [H, W, 3]."""
    out = np.clip(image, 0, 1) ** rng.uniform(0.75, 1.3) * rng.uniform(0.7, 1.2) * rng.uniform(0.92, 1.08, 3)
    if rng.random() < 0.3:
        out = gaussian_filter(out, (*[rng.uniform(0.4, 1.6)] * 2, 0))
    if rng.random() < 0.4:
        out = out + rng.normal(size=out.shape) * rng.uniform(0.005, 0.05)
    if rng.random() < 0.12:
        out = np.repeat(out.mean(-1, keepdims=True), 3, -1)
    picture = Image.fromarray((np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.3:
        small = int(IMAGE_SIZE * rng.uniform(0.3, 0.8))
        picture = picture.resize((small, small), Image.Resampling.BILINEAR).resize(
            (IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC
        )
    if rng.random() < 0.5:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=int(rng.integers(35, 92)))
        picture = Image.open(stream)
    return np.asarray(picture.convert("RGB"))
