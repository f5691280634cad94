"""One person followed through a video, frame by frame, resumable after any frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nphm_track.errors import InputError
from nphm_track.faces.detection import same_face
from nphm_track.faces.landmarker import MIN_PRESENCE, FaceLandmarker, FaceObservation
from nphm_track.faces.roi import ROI_SCALE, roi_from_detection
from nphm_track.landmark_model import eye_distance

SAME_SHOT = 0.85
"""Cosine distance of signatures up to which a face found near the last place is the same person."""

SAME_PERSON = 0.65
"""The same where the place says nothing: after a cut or a long absence."""

SWAPPED = 0.5
"""Distance between consecutive frames from which another person stands in the place: a cut the picture did not show."""

FORGET_PLACE_S = 2.0
MAX_SHIFT = 1.0  # face sizes
SHIFT_PER_S = 2.0  # face sizes a second more for a face out of sight, or seen seldom
USUAL_STEP = 0.1  # s between frames up to which a face does not get farther or change its looks more than it does
MAX_GROWTH = 1.6
MAX_MEMORY = 100.0  # frames the remembered appearance averages
THOROUGH_EVERY = 10  # frames without the person between searches in tiles

MOST_LOOKS = 6  # at a face that was found, until its roi stays
STAYS = np.radians(4)

MIN_EYE_DISTANCE = 6.0  # px, outer corners
MIN_INSIDE = 0.4  # share of the landmarks inside the frame

THUMB = (12, 16)
BLANK = 0.02  # contrast of a picture that shows nothing
FLASH, FLASH_RISE = 0.8, 0.25  # mean brightness of an overexposed picture, and by how much it is a surprise
CUT_CORRELATION = 0.6
CUT_CHANGE = 0.04

CHOOSING, FOLLOWING, NEAR, ANYWHERE = range(4)
"""Nobody chosen yet; roi known; lost in this shot; lost, and the last place means nothing."""

MEMORY = np.dtype(
    [
        ("mode", "f4"),
        ("searches", "f4"),  # frames in a row that were searched
        ("time", "f4"),  # s, when the person was last seen
        ("roi", "f4", 5),
        ("place", "f4", 3),  # centre x, y and size of the face, px
        ("frames", "f4"),  # that the appearance averages
        ("appearance", "f4", 128),
        ("last", "f4", 128),  # signature when last seen
        ("thumb", "f4", THUMB),
    ]
)


@dataclass(frozen=True)
class Choice:
    """Whom to follow, decided in the first frame with faces: the largest face, the ``index``-th from the left
    (from 0), or the one at pixel ``at`` (x, y)."""

    index: int | None = None
    at: tuple[float, float] | None = None

    def pick(self, faces: list[FaceObservation]) -> FaceObservation:
        """One of ``faces`` (from left to right, at least one). Raises InputError when the asked one is not there."""
        if self.index is not None:
            if not 0 <= self.index < len(faces):
                raise InputError(f"no face {self.index}: the first frame with faces has {len(faces)}, counted from 0")
            return faces[self.index]
        if self.at is not None:
            point = np.asarray(self.at, np.float32)
            distance, face = min(((_distance_to_box(point, f.box), f) for f in faces), key=lambda pair: pair[0])
            if distance > _place(face)[2] / 2:
                there = ", ".join(f"{x:.0f},{y:.0f}" for x, y, _ in map(_place, faces))
                asked = f"{point[0]:g},{point[1]:g}"
                raise InputError(f"no face at pixel {asked} of the first frame with faces; faces are at {there}")
            return face
        return max(faces, key=lambda f: float(_place(f)[2]))


@dataclass(frozen=True)
class FollowResult:
    """What became of the person in one frame.

    Attributes:
        status: ``tracked`` (then there is an observation) or ``lost``.
        observation: in pixels of this frame, or None.
        confidence: 0..1; presence, times the share of the landmarks inside the frame, times how much the face looks
            as it did so far (turned, covered or blurred faces do less). 0 when lost.
        cut: the picture changed to another shot.
    """

    status: Literal["tracked", "lost"]
    observation: FaceObservation | None
    confidence: float
    cut: bool


class FaceFollower:
    """Follows one person: the crop of the previous frame while it works, the detector when it does not.

    Within a shot a face is accepted where the person was; after a hard cut, or an absence of more than 2 s, only when
    it looks like the person. That judgement is weak (see ``AppearanceSignature``): about one stranger in twenty passes,
    and the person in another pose or light is refused until the pose comes back.
    """

    def __init__(self, landmarker: FaceLandmarker, choose: Choice | None = None) -> None:
        self.landmarker = landmarker
        self.choose = choose or Choice()
        self._memory = np.zeros((), MEMORY)

    def state(self) -> np.ndarray:
        """All that later frames depend on, float32 [M]."""
        return self._memory.reshape(1).view(np.float32).copy()

    def restore(self, vector: np.ndarray) -> None:
        """Go on after the frame whose ``state`` this is. Raises InputError when it is no such vector."""
        vector = np.array(vector, np.float32).ravel()
        if vector.nbytes != MEMORY.itemsize or not np.isfinite(vector).all():
            raise InputError("the stored state of the face follower is damaged or of another version")
        self._memory = vector.view(MEMORY)[0].copy().reshape(())

    def step(self, image: np.ndarray, time: float) -> FollowResult:
        """The person in the next frame: ``image`` uint8 RGB [H, W, 3], ``time`` in seconds."""
        memory = self._memory
        cut = self._see(image)
        if cut and memory["mode"] != CHOOSING:
            memory["mode"], memory["searches"] = ANYWHERE, 0
        found = self._continue(image, time) if memory["mode"] == FOLLOWING else None
        if found is None:
            found = self._search(image, time)
        if found is None:
            return FollowResult("lost", None, 0.0, cut)
        face, signature = found
        confidence = self._confidence(face, signature, image)
        self._remember(face, signature, time)
        return FollowResult("tracked", face, confidence, cut)

    def _see(self, image: np.ndarray) -> bool:
        """Whether this picture starts another shot, judged against the last one that was not blank or overexposed."""
        thumb, before = _thumbnail(image), self._memory["thumb"].copy()
        new, old = thumb - thumb.mean(), before - before.mean()
        flash = thumb.mean() > FLASH and thumb.mean() - before.mean() > FLASH_RISE and before.any()
        if new.std() < BLANK or flash:
            return False
        self._memory["thumb"] = thumb
        if old.std() < BLANK:
            return False
        correlation = (new * old).mean() / (new.std() * old.std())
        return bool(correlation < CUT_CORRELATION and np.abs(thumb - before).mean() > CUT_CHANGE)

    def look_for(self, image: np.ndarray, time: float) -> bool:
        """Choose in a frame from anywhere in the clip, before the first step: the person is sought by looks from then
        on. False when the frame shows no face. Raises InputError when it lacks the chosen one.
        """
        found = self._first(image, self.faces(image, thorough=True))
        if found is None:
            return False
        self._remember(*found, time)
        self._memory["mode"] = ANYWHERE
        return True

    def _continue(self, image: np.ndarray, time: float) -> tuple[FaceObservation, np.ndarray] | None:
        """The face seen through the roi of the last frame; None, with the mode of the search to come, if it is gone."""
        memory = self._memory
        ((face, signature),) = self._observe(image, memory["roi"][None])
        late = max(float(np.float32(time) - memory["time"]) - USUAL_STEP, 0.0)
        if not _plausible(face, image) or not self._is_near(face, late):
            memory["mode"] = NEAR
            return None
        if cosine_distance(signature, memory["last"]) > SWAPPED + (SAME_PERSON - SWAPPED) * min(late, 1.0):
            memory["mode"] = ANYWHERE
            return None
        return face, signature

    def _search(self, image: np.ndarray, time: float) -> tuple[FaceObservation, np.ndarray] | None:
        """The person among the faces the detector finds, by place or by looks."""
        memory = self._memory
        missing = float(np.float32(time) - memory["time"])
        if memory["mode"] == NEAR and missing > FORGET_PLACE_S:
            memory["mode"] = ANYWHERE
        thorough = memory["searches"] % THOROUGH_EVERY == 0
        memory["searches"] += 1
        faces = self.faces(image, thorough=bool(thorough))
        if memory["mode"] == CHOOSING:
            return self._first(image, faces)
        limit = SAME_SHOT if memory["mode"] == NEAR else SAME_PERSON
        if memory["mode"] == NEAR:
            faces = [found for found in faces if self._is_near(found[0], missing)]
        alike = [(cosine_distance(signature, memory["appearance"]), i) for i, (_, signature) in enumerate(faces)]
        distance, best = min(alike, default=(np.inf, -1))
        return faces[best] if distance < limit else None

    def _first(
        self, image: np.ndarray, faces: list[tuple[FaceObservation, np.ndarray]]
    ) -> tuple[FaceObservation, np.ndarray] | None:
        if not faces:
            return None
        if self.choose != Choice():  # count the small ones, too
            faces = self.faces(image, thorough=True)
        chosen = self.choose.pick([face for face, _ in faces])
        return next(found for found in faces if found[0] is chosen)

    def faces(self, image: np.ndarray, thorough: bool) -> list[tuple[FaceObservation, np.ndarray]]:
        """Faces that detector and landmark network agree on, from left to right, seen through their landmarks' roi."""
        place = self._memory["place"] if self._memory["mode"] == NEAR else None
        detections = self.landmarker.detect(image, thorough=thorough, place=place)
        rois = np.array([roi_from_detection(d.box, d.keypoints) for d in detections], np.float32).reshape(-1, 5)
        rois = self._settled(image, rois)
        found: list[tuple[FaceObservation, np.ndarray]] = []
        for face, signature in self._observe(image, rois.reshape(-1, 5)):
            known = np.array([other.box for other, _ in found]).reshape(-1, 4)
            if _plausible(face, image) and not same_face(face.box, known).any():
                found.append((face, signature))
        return sorted(found, key=lambda pair: float(pair[0].landmarks[:, 0].mean()))

    def _settled(self, image: np.ndarray, rois: np.ndarray) -> np.ndarray:
        """Rois [N, 5] of the faces' own landmarks, from those of the detector, which can be far off in how faces on
        their side are turned: looked through again until they stay.
        """
        for _ in range(MOST_LOOKS):
            before = rois
            faces = self.landmarker.observe(image, rois)
            plausible = np.array([_plausible(face, image) for face in faces], bool)
            rois = np.array([face.next_roi for face in faces], np.float32).reshape(-1, 5)[plausible]
            turned = rois[:, 4] - before[plausible, 4]
            if (np.abs(np.arctan2(np.sin(turned), np.cos(turned))) < STAYS).all():
                break
        return rois

    def _observe(self, image: np.ndarray, rois: np.ndarray) -> list[tuple[FaceObservation, np.ndarray]]:
        if not len(rois):
            return []
        encoded = self.landmarker.encode([image] * len(rois), rois)
        return list(zip(self.landmarker.interpret(encoded, rois), encoded.signature.cpu().numpy(), strict=True))

    def _is_near(self, face: FaceObservation, missing: float) -> bool:
        """Whether the face can be the person, ``missing`` seconds after it was last seen at its place."""
        place, last = _place(face), self._memory["place"]
        shift = np.hypot(*(place[:2] - last[:2])) / last[2]
        growth = max(place[2] / last[2], last[2] / place[2])
        return bool(shift < MAX_SHIFT + SHIFT_PER_S * missing and growth < MAX_GROWTH)

    def _confidence(self, face: FaceObservation, signature: np.ndarray, image: np.ndarray) -> float:
        known = self._memory["appearance"] if self._memory["frames"] else signature
        likeness = 1 - cosine_distance(signature, known) / 2
        return float(np.clip(face.presence * _inside(face, image) * likeness, 0, 1))

    def _remember(self, face: FaceObservation, signature: np.ndarray, time: float) -> None:
        memory = self._memory
        frames = min(float(memory["frames"]) + 1, MAX_MEMORY)
        memory["appearance"] += (signature - memory["appearance"]) / np.float32(frames)
        memory["frames"], memory["last"], memory["time"] = frames, signature, time
        memory["mode"], memory["searches"] = FOLLOWING, 0
        memory["roi"], memory["place"] = face.next_roi, _place(face)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """1 - cos of the angle between two signatures, 0..2."""
    return float(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _place(face: FaceObservation) -> np.ndarray:
    """Centre x, y and size of a face, px."""
    cx, cy, width = face.next_roi[:3]
    return np.array([cx, cy, width / ROI_SCALE], np.float32)


def _inside(face: FaceObservation, image: np.ndarray) -> float:
    """Share of the landmarks inside the frame."""
    points = face.landmarks[:, :2]
    return float(((points >= 0) & (points < [image.shape[1], image.shape[0]])).all(1).mean())


def _plausible(face: FaceObservation, image: np.ndarray) -> bool:
    """Whether the landmarks can be a face: present, of a size, not collapsed, mostly inside the frame."""
    width, height = face.box[2:] - face.box[:2]
    eyes = float(eye_distance(face.landmarks))  # in space: a profile keeps its distance
    return (
        face.presence >= MIN_PRESENCE
        and eyes >= MIN_EYE_DISTANCE
        and 0.3 < width / max(height, 1e-6) < 3
        and _inside(face, image) >= MIN_INSIDE
    )


def _distance_to_box(point: np.ndarray, box: np.ndarray) -> float:
    return float(np.linalg.norm(np.maximum(0, np.maximum(box[:2] - point, point - box[2:]))))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Grey levels 0..1 of the frame in 12 x 16 cells."""
    step = max(1, min(image.shape[:2]) // 96)
    grey = image[::step, ::step].astype(np.float32).mean(-1) / 255
    rows = np.linspace(0, grey.shape[0], THUMB[0], endpoint=False).astype(int)
    columns = np.linspace(0, grey.shape[1], THUMB[1], endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, 0), columns, 1)
    counts = np.outer(np.diff([*rows, grey.shape[0]]), np.diff([*columns, grey.shape[1]]))
    return (sums / np.maximum(counts, 1)).astype(np.float32)
