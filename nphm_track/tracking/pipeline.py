"""The tracker: video in, run folder out (Pix2NPHM's method section on a whole clip)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nphm_track._runtime import prepare_torch, usable_device
from nphm_track.cameras.intrinsics import Intrinsics, focal_from_exif
from nphm_track.errors import InputError, ModelError, NoFaceError, OutputError
from nphm_track.faces.follower import Choice, FaceFollower
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import CodeMirror
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import CanonicalMesh, extract_canonical
from nphm_track.models import resolve, sha256
from nphm_track.refine.schedule import Settings
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.clip import open_input
from nphm_track.tracking.code_fit import fitted_codes, mean_camera
from nphm_track.tracking.fit import ClipFit, fit_clip, identity_votes, predicted_codes
from nphm_track.tracking.identity import IdentityVotes, load_identity
from nphm_track.tracking.mesh_store import open_store
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import observation_dtype, observe_clip
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import NullProgress, Progress
from nphm_track.tracking.records import InputInfo, Status, Track
from nphm_track.tracking.refinement import RefinedFit, refine_fit
from nphm_track.tracking.render import SurfaceCarrier, Vertices, draw_clip, write_overlay
from nphm_track.tracking.run_folder import Run, RunFolder, default_output
from nphm_track.tracking.transforms import write_transforms
from nphm_track.video.source import FrameSource

REGRESSORS = {"image": ("geometry", "image-regressor"), "landmarks": ("landmark-regressor",)}
"""Models that each choice of ``TrackOptions.codes`` needs beside landmarker and head."""
GEOMETRY = "geometry"
"""The model that ``TrackOptions.refine`` needs."""
FREE_KEY_FRAMES = 4
"""Key frames of a refinement in which every element of the identity code is free: each takes .3 GB for MonoNPHM's."""
LOOKED_AT_AGAIN = 16
"""Inputs of at most so many frames are looked at four times: a clip has other frames to average over instead."""
FIT_SECONDS = 1.0
"""Time that a frame's codes take without a regressor, roughly: MonoNPHM on two CPU cores."""


def track(
    input: str | Path,
    output: str | Path | None = None,
    *,
    options: TrackOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> Run:
    """What :func:`nphm_track.track` does, all but the report: that reads finished runs and stands above this room."""
    options = TrackOptions.build(options, **overrides)
    progress = progress or NullProgress()
    with _job(input, output, options, overwrite, progress) as job:
        if job.folder.complete:
            progress.note(f"{job.folder.path} is already done")
            return Run(job.folder.path, job.folder.info)
        progress.note(plan_line(job.folder.info.input, job.source, options))
        return job.run()


def observe(
    input: str | Path,
    output: str | Path,
    *,
    options: TrackOptions,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[InputInfo, IdentityVotes]:
    """First step of ``track``, which goes on from it: the input, and what its frames say about the identity.

    Raises what ``track`` raises, and OutputError when the run is done already.
    """
    with _job(input, output, options, overwrite, progress or NullProgress()) as job:
        if job.folder.complete:
            raise OutputError(f"{job.folder.path} is already done")
        if not job.feed_forward:
            raise InputError(f"head model {options.head_model} has no regressor, which takes of one person need")
        votes, _ = identity_votes(job.regressor(), job.observe(), job.size)
        job.folder.update(state="interrupted")
        return job.folder.info.input, votes


@contextmanager
def _job(
    input: str | Path, output: str | Path | None, options: TrackOptions, overwrite: bool, progress: Progress
) -> Iterator[_Job]:
    """An input and the run folder that is its own, opened."""
    prepare_torch()
    device = usable_device(options.device)
    with open_input(input, options) as source:
        models = {name: sha256(resolve(name)) for name in models_of(options)}
        path = output or default_output(input)
        info = InputInfo.of(input, source.info, path)
        with RunFolder.open(path, info, options, models=models, overwrite=overwrite) as folder:
            yield _Job(source, folder, options, device, progress)


def models_of(options: TrackOptions) -> tuple[str, ...]:
    """Names of the models a run needs; ``TrackOptions.head`` for the head model."""
    regressors = REGRESSORS[options.codes] if has_regressor(options.head) else ()
    names = ("face_landmarker", *regressors, options.head, *((GEOMETRY,) if options.refine else ()))
    return tuple(dict.fromkeys(names))


def has_regressor(head_model: str) -> bool:
    """Whether the regressors know a head model: they give codes of the released one, by whatever name it goes."""
    if head_model == DEFAULT:
        return True
    weights = resolve(head_model)
    try:
        return sha256(weights) == sha256(resolve(DEFAULT))
    except ModelError:  # a models folder without it
        return False


def plan_line(info: InputInfo, source: FrameSource, options: TrackOptions) -> str:
    """What is about to happen, with a rough estimate for two CPU cores."""
    count = expected_frames(source, options)
    if not count or source.info.kind == "image":
        return str(info)
    per_frame = 0.06 + (0.16 if options.meshes or options.overlay else 0) + (1.2 if options.refine else 0)
    per_frame += 0 if has_regressor(options.head) else FIT_SECONDS
    minutes = (6 + count * per_frame) / 60
    line = f"{info}; about {count} frames"
    return f"{line}, {minutes:.0f} min on 2 CPU cores" if minutes >= 1.5 else line


def expected_frames(source: FrameSource, options: TrackOptions) -> int | None:
    """How many frames the options select, as far as the container tells."""
    count, rate = source.info.frame_count, source.info.frame_rate
    if not count:
        return None
    if rate and (options.start or options.end):
        length = (options.end or source.info.duration or 0) - (options.start or 0)
        count = min(count, round(length * rate))
    return max(1, -(-count // options.every))


class _Job:
    """The stages of one run."""

    def __init__(
        self, source: FrameSource, folder: RunFolder, options: TrackOptions, device: torch.device, progress: Progress
    ) -> None:
        self.source, self.folder, self.options, self.device, self.progress = source, folder, options, device, progress
        self.size = (source.info.width, source.info.height)
        self.timings = dict(folder.info.timings)
        self.feed_forward = has_regressor(options.head)

    def run(self) -> Run:
        # A wrong calibration file and a missing renderer are known before the work begins.
        camera = self.camera
        if self.options.overlay:
            OverlayRenderer(np.empty((0, 3)), np.eye(3), self.size, self.options.style, renderer=self.options.renderer)
        model = load_head_model(self.options.head, device=self.device)
        identity = self._given_identity(model.config.identity_dim)
        log = self.observe()
        with self._timed("fit"):
            fit = self._fit(model, log, camera, identity)
        refined = self._refine(model, log, fit, camera is not None, identity is not None)
        with self._timed("fit"):
            fit = refined.fit if refined else fit
            track = to_track(log, fit, self.size, refined)
            track.save(self.folder.track)
            write_transforms(self.folder.transforms, track, meshes=self.options.ply_every)
        if self.options.meshes or self.options.overlay:
            with self._timed("surface"):
                self.progress.stage("canonical head", 1)
                detail = self.options.mesh_resolution / 192
                mesh = extract_canonical(model, torch.from_numpy(fit.z_id).to(self.device), detail=detail)
                self.progress.advance()
            with self._timed("draw"):
                self._draw(track, mesh, SurfaceCarrier(model, mesh, track))
        quality = track.quality()
        if self.source.warning:
            self.progress.note(self.source.warning)
        return self.folder.finish(quality=quality, timings=self.timings)

    def _fit(
        self, model: NphmDecoder, log: np.ndarray, camera: Intrinsics | None, identity: np.ndarray | None
    ) -> ClipFit:
        """Codes, predicted or fitted, and with them camera and poses."""
        if self.feed_forward:
            codes = predicted_codes(self.regressor(), log, self.size, identity)
        else:
            self.progress.note("codes are fitted to the landmarks: no regressor knows this head model")
            camera = camera or mean_camera(model, log, self.size, self.progress, identity)
            codes = fitted_codes(model, log, camera, self.progress, identity)
        self.progress.stage("fit", int(column(log, "seen").sum()))
        return fit_clip(model, codes, log, self.size, camera, self.options.smooth, self.progress)

    def _refine(
        self, model: NphmDecoder, log: np.ndarray, fit: ClipFit, camera_known: bool, identity_known: bool
    ) -> RefinedFit | None:
        """The refined fit, when it is asked for."""
        if not self.options.refine:
            return None
        with self._timed("refine"):
            landmarker = FaceLandmarker.from_pretrained(device=self.device)
            predictor = GeometryPredictor(
                landmarker, GeometryNet.from_pretrained(GEOMETRY, device=self.device), mirror=True
            )
            known = {"camera_known": camera_known, "identity_known": identity_known}
            settings = Settings(renderer=self.options.refine_renderer)
            if not model.config.identity_basis:
                settings = settings.model_copy(update={"key_frames": FREE_KEY_FRAMES})
            return refine_fit(model, predictor, self.source, log, fit, self.folder, settings, self.progress, **known)

    def observe(self) -> np.ndarray:
        """The log of observations, with those that are missing added. Raises NoFaceError when it shows no face."""
        with self._timed("observe"):
            log = self._observe()
        if not column(log, "seen").any():
            raise NoFaceError(f"no face found in {self.source.info.path} (frames looked at: {len(log)})")
        return log

    def _observe(self) -> np.ndarray:
        landmarker = FaceLandmarker.from_pretrained(device=self.device)
        follower = FaceFollower(landmarker, Choice(index=self.options.face, at=self.options.face_at))
        images = self.feed_forward and self.options.codes == "image"
        focal = None if self.camera is None else float(self.camera.K[0, 0])
        codes = None
        if images:
            few = (expected_frames(self.source, self.options) or np.inf) <= LOOKED_AT_AGAIN
            mirror = CodeMirror(load_head_model(self.options.head, device=self.device)) if few else None
            codes = CodePredictor.from_pretrained(landmarker, device=self.device, focal=focal, mirror=mirror)
        with self.folder.log(observation_dtype(len(follower.state()), codes)) as log:
            self.progress.stage("faces", expected_frames(self.source, self.options))
            observe_clip(self.source, follower, codes, log, self.progress)
            return log.read()

    def regressor(self) -> LandmarkRegressor | None:
        """The regressor that works from the log; None when the codes were predicted from the images."""
        return LandmarkRegressor.from_pretrained(device=self.device) if self.options.codes == "landmarks" else None

    @cached_property
    def camera(self) -> Intrinsics | None:
        """The camera that the options or the image's metadata give."""
        o = self.options
        if o.intrinsics is not None:
            return Intrinsics.from_file(o.intrinsics, self.size)
        if o.focal is not None:
            return Intrinsics.from_focal(o.focal, self.size)
        if o.fov is not None:
            return Intrinsics.from_fov(o.fov, self.size)
        if self.source.info.kind == "image":
            focal = focal_from_exif(self.folder.info.input.path, self.size)
            if focal is not None:
                self.progress.note(f"focal length {focal:.0f} px, from the image's metadata")
                return Intrinsics.from_focal(focal, self.size)
        return None

    def _given_identity(self, dim: int) -> np.ndarray | None:
        """The identity code [dim] of the options."""
        path = self.options.identity
        if path is None:
            return None
        given = load_identity(path)
        if given.model not in (None, self.folder.info.models[self.options.head]) or given.z_id.shape != (dim,):
            raise InputError(f"identity {path}: it belongs to another head model")
        return given.z_id

    def _draw(self, track: Track, mesh: CanonicalMesh, carry: SurfaceCarrier) -> None:
        o = self.options
        if o.meshes:
            write_ply(self.folder.canonical, mesh.vertices, mesh.faces)
        store = open_store(o.mesh_format, self.folder, mesh, track, o.mesh_every) if o.meshes else None

        def vertices_of(row: int) -> Vertices:
            if store is None:
                return carry(row)
            return store.read(row) if row in store else store.write(row, carry(row))

        outputs = [name for name, wanted in (("meshes", o.meshes), ("overlay", o.overlay)) if wanted]
        stage = " and ".join(outputs)
        if not o.overlay:
            self.progress.stage(stage, len(track))
            draw_clip(self.source, track, None, None, vertices_of, self.progress)
        else:
            occlusion = ambient_occlusion(mesh.vertices, mesh.faces)
            renderer = OverlayRenderer(
                mesh.faces, track.K, self.size, o.style, o.opacity, o.side_by_side, 1.0, o.renderer, occlusion
            )
            write_overlay(self.folder.overlay, self.source, track, renderer, vertices_of, self.progress, stage)
        if store is not None:
            store.finish()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the stage's seconds to run.json's timings, also when it is cut short."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[stage] = round(self.timings.get(stage, 0.0) + time.monotonic() - start, 3)
            self.folder.update(timings=dict(self.timings))


def to_track(log: np.ndarray, fit: ClipFit, size: tuple[int, int], refined: RefinedFit | None = None) -> Track:
    """The arrays of track.npz; what lost frames lack becomes NaN."""
    seen = column(log, "seen")
    status = np.where(seen, Status.TRACKED, np.where(fit.filled, Status.FILLED, Status.LOST)).astype(np.uint8)
    lost = status == Status.LOST
    z_ex, R, t = fit.z_ex.copy(), fit.R.copy(), fit.t.copy()
    for array in (z_ex, R, t):
        array[lost] = np.nan
    return Track(
        frame=column(log, "frame"),
        time=column(log, "time"),
        status=status,
        confidence=np.where(seen, column(log, "confidence"), 0).astype(np.float32),
        z_id=fit.z_id,
        z_ex=z_ex,
        R=R,
        t=t,
        K=fit.camera.K,
        image_size=np.array(size, np.int64),
        landmarks=log["landmarks"][..., :2],
        landmarks_fit=fit.landmarks_fit,
        blendshapes=column(log, "blendshapes"),
        landmark_error_px=fit.landmark_error_px,
        normal_error_deg=refined.after[:, 0] if refined else np.full(len(log), np.nan, np.float32),
        distortion=np.zeros(5) if fit.camera.distortion is None else fit.camera.distortion,
        **(refined.report() if refined else {}),
    )
