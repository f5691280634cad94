"""One person tracked frame by frame from the past alone."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import BLENDSHAPE_NAMES, IBUG68_FROM_478, N_LANDMARKS
from nphm_track.errors import ModelError
from nphm_track.faces.follower import FaceFollower, FollowResult
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.live.one_euro import OneEuro, Settings
from nphm_track.live.person import Person, anybody, settled
from nphm_track.regressor.image_regressor import Codes
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.tracking.fit import FIT_POINTS, Poses, head_landmarks, in_camera, point_weights, solve_poses
from nphm_track.tracking.gaze import directions, eye_angles
from nphm_track.tracking.observe import observation_dtype
from nphm_track.tracking.records import Status, Track
from nphm_track.video.source import Frame

SETTLE_S = 3.0
"""Seconds in which the face is seen before person and camera are solved for."""
FEWEST = 12
"""Frames that takes at least."""
NEAR_S = 0.2
"""Seconds for which a pose is near the next."""
EXPRESSION = Settings(cutoff=3.0, opening=20.0, speed_cutoff=3.0)
"""Of expression weights. This and the next two were chosen on ten clips: no further from what ``tracking.smoothing``
makes of them, looking ahead, than frames without a filter are."""
POSE = Settings(cutoff=0.5, opening=200.0, speed_cutoff=3.0, together=True)
"""Of the pose, as metres that the face moves."""
GAZE = Settings(cutoff=1.0, opening=20.0, speed_cutoff=3.0, together=True)
"""Of the eyes' angles, radians."""
ARM = 0.1
"""Metres from the middle of the head to the face."""


@dataclass(frozen=True)
class LiveFrame:
    """What became of a frame.

    Attributes:
        track: one row, as of a run; lost where no face was seen.
        weights: [K] of the person's rig; None in a lost frame.
        person: whose rig it is.
    """

    track: Track
    weights: NDArray[np.float32] | None
    person: Person

    @property
    def lost(self) -> bool:
        return self.weights is None

    def vertices(self) -> NDArray[np.float32]:
        """The head [V, 3], metres, head space, of a frame that is not lost."""
        assert self.weights is not None
        return self.person.rig.vertices(self.weights, self.track.gaze[0])


class LiveTracker:
    """Follows one person; a context manager, whose end waits for what runs in the background.

    At first the head is the mean one. When the face was seen for ``SETTLE_S``, identity, focal length and rest
    expression are solved for and a rig is made in a thread beside, and the person's own head takes its place.

    Args:
        model: the head model that ``codes`` knows.
        landmarker, codes: the networks.
        size: (width, height) of the pictures, pixels.
        camera: intrinsics, where they are known.
        z_id: [D_id] the person's identity code, where it is known.
        smooth: strength of the smoothing over time, 0 to 1.
    """

    def __init__(
        self,
        model: NphmDecoder,
        landmarker: FaceLandmarker,
        codes: CodePredictor,
        size: tuple[int, int],
        *,
        camera: Intrinsics | None = None,
        z_id: NDArray[np.float32] | None = None,
        smooth: float = 1.0,
    ) -> None:
        self.model, self.codes, self.size = model, codes, size
        self.follower = FaceFollower(landmarker)
        self.person = anybody(model, size, z_id, camera)
        self.settled_at: float | None = None
        """Time of the frame from which on the head is the person's own."""
        self._settle = partial(settled, model, size=size, z_id=z_id, camera=camera)
        self._log: list[np.ndarray] = []
        self._future: Future[Person] | None = None
        self._beside = ThreadPoolExecutor(1, "settle", initializer=torch.set_flush_denormal, initargs=(True,))
        self._filters = tuple(OneEuro(settings, smooth) for settings in (EXPRESSION, POSE, GAZE))
        self._basis = model.expression_basis.detach().cpu().numpy()
        self._inverse = np.linalg.pinv(self._basis).T
        self._last: tuple[float, Poses] | None = None
        self._quaternion = np.zeros(4)
        self._angles = np.zeros((2, 2))

    def __enter__(self) -> LiveTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def warm_up(self, image: NDArray[np.uint8]) -> None:
        """Do once what is slow the first time, on any picture: networks are compiled, which takes seconds."""
        landmarker, (width, height) = self.follower.landmarker, self.size
        landmarker.detect(image)
        seen = landmarker.observe(image, np.array([[width / 2, height / 2, height / 2, height / 2, 0]], np.float32))[0]
        self._fitted(Frame(0, 0.0, image), 0.0, seen, self.codes([image], [seen]).z_ex.cpu().numpy())
        self._forget()

    @torch.inference_mode()
    def step(self, frame: Frame) -> LiveFrame:
        """The next frame, whatever lies between it and the last."""
        result = self.follower.step(frame.image, frame.time)
        if result.cut:
            self._forget()
        seen = result.observation
        if seen is None:
            self._forget()
            self._take_settled(frame.time)
            return LiveFrame(self._row(frame), None, self.person)
        codes = self.codes([frame.image], [seen])
        self._observe(frame, result, seen, codes)
        self._take_settled(frame.time)
        return self._fitted(frame, result.confidence, seen, codes.z_ex.cpu().numpy())

    def _fitted(self, frame: Frame, confidence: float, seen: FaceObservation, z_ex: NDArray[np.float32]) -> LiveFrame:
        """Expression, pose and gaze of a frame with the predicted code z_ex [1, D_ex]."""
        person, (smooth_expression, smooth_pose, smooth_gaze) = self.person, self._filters
        landmarks = seen.landmarks[None, :, :2]
        near = self._last[1] if self._last is not None and frame.time - self._last[0] < NEAR_S else None
        z_ex = z_ex + person.rest
        weights = z_ex.astype(np.float64) @ self._inverse
        if person.expressions is not None:
            weights += person.expressions(z_ex, landmarks, person.shared, near)
        z_ex = (smooth_expression(weights[0], frame.time) @ self._basis.T).astype(np.float32)[None]

        points, index = head_landmarks(person.carry, z_ex), list(FIT_POINTS)
        pixels = person.camera.undistort(landmarks[:, index].astype(np.float64))
        pose = solve_poses(points, pixels, person.camera, point_weights(), near)
        self._last = frame.time, pose
        R, t = self._smooth_pose(pose, frame.time, smooth_pose)
        fit = person.camera.project(in_camera(points[:, : len(IBUG68_FROM_478)], R, t)).astype(np.float32)
        row = self._row(frame)
        row.status[:], row.confidence[:] = Status.TRACKED, confidence
        row.z_ex, row.R, row.t, row.landmarks, row.landmarks_fit = z_ex, R, t, landmarks, fit
        row.blendshapes = seen.blendshapes[None]
        row.landmark_error_px = np.linalg.norm(fit - landmarks[:, IBUG68_FROM_478], axis=-1).mean(1)
        angles = eye_angles(person.rig.eyes, row)[0]
        if np.isfinite(angles).all():  # closed eyes look where they did
            self._angles = smooth_gaze(angles.ravel(), frame.time).reshape(2, 2)
        row.gaze = directions(self._angles)[None]
        moved = person.rig.weights(self.model, torch.from_numpy(z_ex), row.gaze)
        row.arkit = person.rig.bounded_arkit_weights(moved)
        return LiveFrame(row, moved[0], person)

    def _smooth_pose(self, pose: Poses, time: float, smooth: OneEuro) -> Poses:
        """One filter for turn and place, so that errors of both which cancel in the picture still do."""
        quaternion = Rotation.from_matrix(pose[0][0]).as_quat()
        if quaternion @ self._quaternion < 0:  # q and -q are one rotation
            quaternion = -quaternion
        self._quaternion = quaternion
        joined = smooth(np.concatenate([2 * ARM * quaternion, pose[1][0]]), time)
        return Rotation.from_quat(joined[:4]).as_matrix()[None], joined[None, 4:]

    def _row(self, frame: Frame) -> Track:
        """A row of the track in which nothing was seen."""
        person = self.person
        return Track(
            frame=np.array([frame.index]),
            time=np.array([frame.time]),
            status=np.array([Status.LOST], np.uint8),
            confidence=np.zeros(1, np.float32),
            z_id=person.z_id,
            z_ex=np.full((1, len(person.rest)), np.nan, np.float32),
            R=np.full((1, 3, 3), np.nan),
            t=np.full((1, 3), np.nan),
            K=person.camera.K,
            image_size=np.array(self.size),
            landmarks=np.full((1, N_LANDMARKS, 2), np.nan, np.float32),
            landmarks_fit=np.full((1, len(IBUG68_FROM_478), 2), np.nan, np.float32),
            blendshapes=np.full((1, len(BLENDSHAPE_NAMES)), np.nan, np.float32),
            landmark_error_px=np.full(1, np.nan, np.float32),
            normal_error_deg=np.full(1, np.nan, np.float32),
            distortion=np.zeros(5) if person.camera.distortion is None else person.camera.distortion,
        )

    def _observe(self, frame: Frame, result: FollowResult, seen: FaceObservation, codes: Codes) -> None:
        """Keep what was seen until it is enough to settle on a person, which then begins."""
        if self._future is not None:
            return
        record = np.zeros(1, observation_dtype(0, self.codes))
        record["frame"], record["time"], record["seen"] = frame.index, frame.time, True
        record["confidence"], record["landmarks"], record["blendshapes"] = (
            result.confidence, seen.landmarks, seen.blendshapes,
        )  # fmt: skip
        for name in ("z_id", "z_ex", "log_variance"):
            record[name] = getattr(codes, name).cpu().numpy()
        self._log.append(record)
        if len(self._log) >= FEWEST and frame.time - float(self._log[0]["time"][0]) >= SETTLE_S:
            self._future = self._beside.submit(self._settle, np.concatenate(self._log))
            self._log = []

    def _take_settled(self, time: float) -> None:
        """From now on the person's own head, if it is ready."""
        if self.settled_at is not None or self._future is None or not self._future.done():
            return
        self.settled_at = time
        try:
            self.person = self._future.result()
        except ModelError as error:
            logging.getLogger(__name__).warning("the mean head stays: %s", error)
        self._forget()

    def _forget(self) -> None:
        """What comes next has nothing to do with what was."""
        self._last = None
        for smooth in self._filters:
            smooth.reset()
