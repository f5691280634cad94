"""Faces of an image: boxes, 478 landmarks, blendshape scores (Google's face_landmarker, in torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nphm_track.conventions import N_LANDMARKS
from nphm_track.errors import InputError, ModelError
from nphm_track.faces.detection import (
    INPUT_SIZE,
    FaceDetection,
    decode,
    either_way_up,
    letterbox,
    same_face,
    suppress,
    tiles,
    turned_around,
)  # fmt: skip
from nphm_track.faces.networks import build_networks
from nphm_track.faces.roi import CROP_SIZE, crop_points_to_frame, crop_rois, roi_from_detection, roi_from_landmarks
from nphm_track.inference import Engine
from nphm_track.models import read_weights

MIN_PRESENCE = 0.5
MAX_BATCH = 16
SURELY_UPRIGHT = 0.85
"""Score from which no face stands on its head: those that do score 0.5 to 0.83 where they are seen as upright, and 0.87
to 0.98 in the picture turned by 180 degrees. Faces on their side are found as they are, with their angle."""
PLACE_MARGIN = 3.0  # side of the square searched around a place, in face sizes


@dataclass(frozen=True)
class FaceObservation:
    """What the networks see of one face.

    Attributes:
        landmarks: [478, 3] float32; x, y in pixels of the original frame (pixel centres at 0.5), z in the same scale,
            smaller is nearer (weak perspective, relative to the head's centre).
        blendshapes: [52] float32 in 0..1, in the order of ``conventions.BLENDSHAPE_NAMES``.
        presence: 0..1, that the crop showed a face.
        roi: [5] the region it was seen through (see ``faces.roi``).
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    presence: float
    roi: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """Box [4] of the landmarks, x0, y0, x1, y1."""
        points = self.landmarks[:, :2]
        return np.concatenate([points.min(0), points.max(0)])

    @property
    def next_roi(self) -> np.ndarray:
        """Region [5] to look through in the next frame."""
        return roi_from_landmarks(self.landmarks)


class Encoded(NamedTuple):
    """Raw output of the landmark network for N crops."""

    landmarks: Tensor
    """[N, 478, 3] crop pixels (0..256)."""
    presence: Tensor
    """[N] a logit."""
    signature: Tensor
    """[N, 128] what the face looks like; compare directions (see ``AppearanceSignature``)."""


class FaceLandmarker:
    """Detector, landmark network and blendshape network behind one door; images are uint8 RGB [H, W, 3]."""

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device | str = "cpu") -> None:
        """``networks`` as ``networks.build_networks`` returns them."""
        self.device = torch.device(device)
        detector, self.landmark_net, self.blendshape_net, signature_net = (
            _frozen(networks[key], self.device) for key in ("detector", "landmarks", "blendshapes", "signature")
        )
        picture = torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)
        self._detect = Engine(detector, [torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)])
        self._encode = Engine(_Encoder(self.landmark_net, signature_net), [picture])
        self._blendshapes = Engine(self.blendshape_net, [torch.rand(1, N_LANDMARKS, 2)])

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "face_landmarker", *, device: torch.device | str = "cpu"
    ) -> FaceLandmarker:
        """The released networks. Raises ModelError when the file is missing, damaged or of another architecture."""
        tensors, config = read_weights(name_or_path)
        if config.get("architecture") != "face_landmarker":
            raise ModelError(f"{name_or_path} is not a face_landmarker model")
        try:
            networks = build_networks(config)
        except (KeyError, TypeError):
            raise ModelError(f"{name_or_path}: the configuration does not fit this version") from None
        for key, net in networks.items():
            prefix = key + "."
            try:
                net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            except RuntimeError as error:
                raise ModelError(f"{name_or_path}: {str(error).splitlines()[0]}") from None
        return cls(networks, device)

    @torch.inference_mode()
    def detect(
        self, image: np.ndarray, *, thorough: bool | None = None, place: np.ndarray | None = None
    ) -> list[FaceDetection]:
        """Faces of the image, whichever way up, best score first.

        ``thorough`` also looks at overlapping tiles, which finds small and off-centre faces (about 20 times the work);
        the default does so only when the whole frame shows none. ``place`` (x, y, face size in px) adds one look at the
        surroundings of that place.
        """
        _check_image(image)
        height, width = image.shape[:2]
        squares = [(0, 0, max(width, height))]
        if place is not None:
            side = max(INPUT_SIZE // 2, int(PLACE_MARGIN * place[2]))
            squares.append((max(0, int(place[0] - side / 2)), max(0, int(place[1] - side / 2)), side))
        found = self._detect_squares(image, squares)
        if thorough or (thorough is None and not found):
            found += self._detect_squares(image, tiles(width, height))
        found = suppress(found)
        if any(detection.score >= SURELY_UPRIGHT for detection in found):
            return found
        turned = [(max(0, width - x - side), max(0, height - y - side), side) for x, y, side in squares]
        hanging = suppress(self._detect_squares(image[::-1, ::-1], turned))
        return either_way_up(found, [turned_around(detection, width, height) for detection in hanging])

    def _detect_squares(self, image: np.ndarray, squares: Sequence[tuple[int, int, int]]) -> list[FaceDetection]:
        found = []
        for start in range(0, len(squares), MAX_BATCH):
            inputs, places = [], []
            for x, y, side in squares[start : start + MAX_BATCH]:
                part = image[y : y + side, x : x + side]
                if part.size:
                    pixels, place = letterbox(part, self.device)
                    inputs.append(pixels)
                    places.append(place + np.array([x, y, 0], np.float32))
            batch = torch.cat(inputs).contiguous(memory_format=torch.channels_last)
            boxes, logits = (out.cpu().numpy() for out in self._detect(batch))
            for index, place in enumerate(places):
                found += decode(boxes[index], logits[index], place)
        return found

    def encode(self, images: Sequence[np.ndarray], rois: np.ndarray) -> Encoded:
        """What the landmark network says of each pair of image and roi [N, 5]."""
        return Encoded(*self._encode(crop_rois(images, rois, device=self.device)))

    def interpret(self, encoded: Encoded, rois: np.ndarray) -> list[FaceObservation]:
        """Observations in the original frames from the output of ``encode`` for the same ``rois``."""
        rois = np.asarray(rois, np.float32).reshape(-1, 5)
        points = crop_points_to_frame(encoded.landmarks.cpu().numpy(), rois.astype(np.float64)).astype(np.float32)
        presence = torch.sigmoid(encoded.presence).cpu().numpy()
        # The scores do not depend on the unit; the roi's keeps float32 exact for faces far from the origin.
        (out,) = self._blendshapes(torch.from_numpy(points[..., :2] - rois[:, None, :2]).to(self.device))
        scores = out.cpu().numpy()
        return [FaceObservation(points[i], scores[i], float(presence[i]), rois[i]) for i in range(len(rois))]

    def observe_batch(self, images: Sequence[np.ndarray], rois: np.ndarray) -> list[FaceObservation]:
        """One observation for each pair of image and roi [N, 5]; the caller judges ``presence``."""
        rois = np.asarray(rois, np.float32).reshape(-1, 5)
        for image in images:
            _check_image(image)
        out = []
        for start in range(0, len(rois), MAX_BATCH):
            some = slice(start, start + MAX_BATCH)
            out += self.interpret(self.encode(images[some], rois[some]), rois[some])
        return out

    def observe(self, image: np.ndarray, rois: np.ndarray) -> list[FaceObservation]:
        """One observation for each roi [N, 5] of one image."""
        return self.observe_batch([image] * len(rois), rois)

    def find(self, image: np.ndarray, *, thorough: bool | None = None) -> list[FaceObservation]:
        """Every face that detector and landmark network agree on, from left to right; ``thorough`` as in ``detect``."""
        detections = self.detect(image, thorough=bool(thorough))
        seen = self.observe(image, np.array([roi_from_detection(d.box, d.keypoints) for d in detections]))
        faces: list[FaceObservation] = []
        for face in sorted(seen, key=lambda o: -o.presence):
            known = np.array([f.box for f in faces]).reshape(-1, 4)
            if face.presence >= MIN_PRESENCE and not same_face(face.box, known).any():
                faces.append(face)
        if not faces and thorough is None:
            return self.find(image, thorough=True)
        return sorted(faces, key=lambda o: float(o.landmarks[:, 0].mean()))


class _Encoder(nn.Module):
    """Landmarks, presence and signature in one go."""

    def __init__(self, landmarks: nn.Module, signature: nn.Module) -> None:
        super().__init__()
        self.landmarks, self.signature = landmarks, signature

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.landmarks(crop, True)
        return out["landmarks"], out["presence"], self.signature(out["features_16"])


def _frozen(net: nn.Module, device: torch.device) -> nn.Module:
    net = net.to(device).eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
