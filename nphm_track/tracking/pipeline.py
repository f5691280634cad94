"""The tracker: video in, run folder out (Pix2NPHM's method section on a whole clip)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track._runtime import flushed_denormals, usable_device
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import CodeMirror
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import Rig, knows_arkit
from nphm_track.heads.rig_file import PersonRig, rig_key, save_rig
from nphm_track.inference import release
from nphm_track.models import resolve, sha256
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.assemble import to_track
from nphm_track.tracking.clip import given_camera, open_input
from nphm_track.tracking.code_fit import fitted_codes, fitted_vote, mean_camera
from nphm_track.tracking.fit import ClipFit, fit_clip, identity_votes, predicted_codes
from nphm_track.tracking.gaze import gaze_of
from nphm_track.tracking.identity import IdentityVotes, code_for
from nphm_track.tracking.kept import keep_observations, kept_observations
from nphm_track.tracking.mesh_store import open_store
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import observation_dtype, observe_clip
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.person_choice import chosen_follower, is_still, somebody_else
from nphm_track.tracking.planning import (
    GEOMETRY,
    expected_frames,
    has_regressor,
    image_regressor,
    models_of,
    plan_line,
)
from nphm_track.tracking.progress import LineProgress, Progress
from nphm_track.tracking.records import InputInfo, InputWatch, MadeBy, Status, Track, replacing
from nphm_track.tracking.refinement import RefinedFit, refine_fit
from nphm_track.tracking.render import Vertices, draw_clip, write_overlay
from nphm_track.tracking.run_folder import Run, RunFolder, default_output
from nphm_track.tracking.surface import RESOLUTION, Surface, arkit_of, find_rig, open_surface, rig_in
from nphm_track.tracking.transforms import write_transforms
from nphm_track.tracking.validate import DRAWN, lacking_files
from nphm_track.tracking.written import WrittenFiles
from nphm_track.video.source import FrameSource

FREE_KEY_FRAMES = 4
"""Key frames of a refinement in which every element of the identity code is free: each takes 0.3 GB for MonoNPHM's."""
FEW_FRAMES = 16
"""Inputs of at most so many frames get test-time augmentation: a clip has other frames to average over instead."""


@flushed_denormals()
def track(
    input: str | Path,
    output: str | Path | None = None,
    *,
    options: TrackOptions | None = None,
    overwrite: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    write_report: Callable[[Run], object] | None = None,
    **overrides: Any,
) -> Run:
    """What :func:`nphm_track.track` does; ``write_report`` writes the page of a run that has all its other files.

    It stands above this room. Without it the run has no report, whatever the options say.
    """
    options = TrackOptions.build(options, **overrides)
    if write_report is None:
        options = options.model_copy(update={"report": False})
    progress = progress or LineProgress()
    with open_job(input, output, options, overwrite, break_lock, progress) as job:
        if job.folder.complete:
            progress.note(f"{job.folder.path} is already done")
            return job.folder.so_far()
        progress.note(plan_line(job.folder.info.input, job.source, options))
        return job.run(write_report)


@flushed_denormals()
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
    with open_job(input, output, options, overwrite, False, progress or LineProgress()) as job:
        if job.folder.complete:
            raise OutputError(f"{job.folder.path} is already done")
        votes = job.votes()
        job.folder.update(state="interrupted")
        return job.folder.info.input, votes


@contextmanager
def open_job(
    input: str | Path,
    output: str | Path | None,
    options: TrackOptions,
    overwrite: bool,
    break_lock: bool,
    progress: Progress,
) -> Iterator[Job]:
    """An input and the run folder that is its own, opened."""
    device = usable_device(options.device)
    watch = InputWatch(input)
    source = open_input(input, options)
    source.read_on = lambda: progress.advance(0)  # reading past frames that are not asked for is work, too
    with source:
        models = {name: sha256(resolve(name)) for name in models_of(options)}
        path = output or default_output(input)
        folder = RunFolder.open(
            path,
            InputInfo.of(input, source.info, path),
            options,
            models=models,
            threads=torch.get_num_threads(),
            overwrite=overwrite,
            break_lock=break_lock,
            whole=is_whole,
            note=progress.note,
        )
        with folder, _threads(folder.info.threads):
            if not folder.complete:
                folder.update(made_by=MadeBy.this_process(options.device))
            yield Job(source, watch, folder, options, device, progress)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Last bits depend on the number of threads: a run that is gone on with keeps that of its beginning."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_whole(run: Run) -> bool:
    """Whether a run that is done has all it should have; what lies in it is not read in full."""
    try:
        return not lacking_files(run, run.track)
    except InputError:
        return False


class Job:
    """The stages of one run."""

    def __init__(
        self,
        source: FrameSource,
        watch: InputWatch,
        folder: RunFolder,
        options: TrackOptions,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.source, self.watch, self.folder = source, watch, folder
        self.options, self.device, self.progress = options, device, progress
        self.size = (source.info.width, source.info.height)
        self.timings, self.cpu_seconds = dict(folder.info.timings), dict(folder.info.cpu_seconds)
        self.feed_forward = has_regressor(options)

    def run(self, write_report: Callable[[Run], object] | None) -> Run:
        """Everything that is not there yet, in order; only what has all its files is marked done."""
        o = self.options
        # A wrong calibration file and a missing renderer are known before the work begins.
        camera = self.camera
        if o.overlay:
            OverlayRenderer(np.empty((0, 3)), np.eye(3), self.size, o.style, renderer=o.renderer)
        model = load_head_model(o.head, device=self.device)
        track = self._known_track()
        was_done = self.folder.was_done and track is not None
        track = track or self._track(model, camera)

        # A run that was done before lacks single files; in one that was not, no mesh is believed without its checksum.
        if (o.meshes or o.overlay) and not (was_done and not lacking_files(self.folder.so_far(), track) & DRAWN):
            self._draw(model, track)
        write_transforms(self.folder.transforms, track, meshes=o.ply_every)
        if self.source.warning:
            self.progress.note(self.source.warning)

        self.watch.check(self.folder.info.input.sha256, at_once=True)
        self.folder.update(quality=track.quality())
        if write_report is not None and o.report:
            write_report(self.folder.so_far())
        return self.folder.finish(timings=self.timings)

    def _known_track(self) -> Track | None:
        """The track that an earlier, unfinished run left, if it is whole: from there on nothing else is needed."""
        try:
            return self.folder.so_far().track
        except InputError:
            return None

    def _track(self, model: NphmDecoder, camera: Intrinsics | None) -> Track:
        """Observe the clip, fit the head to what was seen, and save the result."""
        identity = self._given_identity(model.config.identity_dim)
        log = self.observe()
        if not self.options.refine:
            keep_observations(self.folder.observations, log)
        with self._timed("fit"):
            fit = self._fit(model, log, camera, identity)
        refined = self._refine(model, log, fit, camera is not None, identity is not None)
        with self._timed("fit"):
            track = to_track(log, refined.fit if refined else fit, self.size, refined, self.feed_forward)
            if self.source.names:
                track.image = np.array([self.source.names[frame] for frame in track.frame.tolist()])
            if not (track.status == Status.TRACKED).any():
                raise NoFaceError(
                    f"no head fits in {self.source.info.path}: the landmarks of its {int(track.misfit.sum())} frames "
                    "with a face are not those of one; is it a face, and is the camera that was given its own?"
                )
            rig = self._rig(model, track.z_id)
            if rig is not None:
                track.gaze = gaze_of(rig.eyes, track, self.options.smooth, column(log, "shot"))
                track.arkit = arkit_of(rig, model, track)
            track.save(self.folder.track)
        if refined:
            self.folder.observations.unlink(missing_ok=True)
        return track

    def _fit(
        self, model: NphmDecoder, log: np.ndarray, camera: Intrinsics | None, identity: np.ndarray | None
    ) -> ClipFit:
        """Codes, predicted or fitted, and with them camera and poses."""
        if self.feed_forward:
            codes = predicted_codes(self.regressor(), log, self.size, identity)
        else:
            self.progress.note("codes are fitted to the landmarks: no regressor of this head model is used")
            camera = camera or mean_camera(model, log, self.size, self.progress, identity)
            codes = fitted_codes(model, log, camera, self.progress, identity)
        self.progress.stage("fit", int(column(log, "seen").sum()))
        rig = self._rig(model, codes.z_id) if knows_arkit(model) else None
        return fit_clip(model, codes, log, self.size, camera, self.options.smooth, self.progress, rig)

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
            config = self.options.refinement()
            if not model.config.identity_basis:
                config = config.model_copy(update={"key_frames": min(config.key_frames, FREE_KEY_FRAMES)})
            return refine_fit(model, predictor, self.source, log, fit, self.folder, config, self.progress, **known)

    def votes(self) -> IdentityVotes:
        """What the clip says about the identity: each frame by the regressor or, without one, a fit to all of them."""
        log = self.observe()
        if self.feed_forward:
            return identity_votes(self.regressor(), log, self.size)[0]
        return fitted_vote(
            load_head_model(self.options.head, device=self.device), log, self.camera, self.size, self.progress
        )

    def observe(self) -> np.ndarray:
        """The log of observations, with those that are missing added. Raises NoFaceError when it shows no face."""
        with self._timed("observe"):
            log = self._observe()
            release()  # what comes next needs the memory
        if not column(log, "seen").any():
            raise NoFaceError(f"no face found in {self.source.info.path} (frames looked at: {len(log)})")
        return log

    def _observe(self) -> np.ndarray:
        kept = kept_observations(self.folder.observations, self.folder.earlier_track)
        if kept is not None:
            self.progress.note("the clip was observed before: going on from there")
            return kept
        landmarker = FaceLandmarker.from_pretrained(device=self.device)
        clip = self.source.info.path
        follower = chosen_follower(landmarker, clip, self.options)
        codes = self.code_predictor(landmarker)
        with self.folder.log(observation_dtype(len(follower.state()), codes)) as log:
            self.progress.stage("faces", expected_frames(self.source, self.options))
            observe_clip(self.source, [(follower, log)], codes, self.progress, self.check_input)
            self.check_input()
            chosen = (self.options.face, self.options.face_at, self.options.face_time) != (None, None, None)
            if self.source.info.kind == "video" and not chosen and is_still(log.read()):
                other = somebody_else(landmarker, clip, self.options, log.read(), self.progress)
                if other is not None:
                    log.truncate(0)
                    observe_clip(self.source, [(other, log)], codes, self.progress, self.check_input)
                    self.check_input()
            return log.read()

    def code_predictor(self, landmarker: FaceLandmarker) -> CodePredictor | None:
        """What predicts codes from the images; None when the options take them from landmarks."""
        regressor = image_regressor(self.options)
        if regressor is None:
            return None
        focal = None if self.camera is None else float(self.camera.K[0, 0])
        few = (expected_frames(self.source, self.options) or np.inf) <= FEW_FRAMES
        model = load_head_model(self.options.head, device=self.device) if few else None
        mirror = CodeMirror(model) if model is not None and knows_arkit(model) else None
        return CodePredictor.from_pretrained(landmarker, regressor, device=self.device, focal=focal, mirror=mirror)

    def check_input(self) -> None:
        """Raises InputChangedError: what is read by now must be of the clip that the run is of."""
        self.watch.check(self.folder.info.input.sha256)

    def regressor(self) -> LandmarkRegressor | None:
        """The regressor that works from the log; None when the codes were predicted from the images."""
        return LandmarkRegressor.from_pretrained(device=self.device) if self.options.codes == "landmarks" else None

    @cached_property
    def camera(self) -> Intrinsics | None:
        """The camera that the options or the image's metadata give."""
        return given_camera(self.source, self.options, self.progress.note)

    def _given_identity(self, dim: int) -> np.ndarray | None:
        """The identity code [dim] of the options."""
        path = self.options.identity
        return None if path is None else code_for(path, self.folder.info.models[self.options.head], dim)

    def _draw(self, model: NphmDecoder, track: Track) -> None:
        """The surface in every frame: meshes and overlay."""
        o = self.options
        with self._timed("surface"):
            self.progress.stage("canonical head", 1)
            head_model = self.folder.info.models[o.head]
            own = rig_in(self.folder.path, track.z_id, head_model)
            known = own or self._known_rig(track.z_id)
            surface = open_surface(model, track, o.topology, o.mesh_resolution / RESOLUTION, known, learn=own is None)
            if surface.person is not None and own is None:
                with replacing(self.folder.rig) as partial:
                    save_rig(partial, surface.person, rig_key(track.z_id, head_model))
            if surface.template is None and o.topology == "template":
                self.progress.note(
                    "the template cannot be wrapped on this head, which keeps the network's own topology"
                )
            self.progress.advance()
        with self._timed("draw"), self.folder.written() as written:
            self._draw_with(surface, track, written)

    def _rig(self, model: NphmDecoder, z_id: NDArray[np.float32]) -> Rig | None:
        """The person's rig; None where the template cannot be wrapped on the head."""
        known = self._known_rig(z_id)
        return known.rig if known else find_rig(model, z_id)

    def _known_rig(self, z_id: NDArray[np.float32]) -> PersonRig | None:
        """The person's rig of the run that gave the identity, where one did."""
        given = self.options.identity
        return None if given is None else rig_in(Path(given), z_id, self.folder.info.models[self.options.head])

    def _draw_with(self, surface: Surface, track: Track, written: WrittenFiles) -> None:
        mesh, carry = surface.mesh, surface.vertices_of
        o = self.options
        if o.meshes:
            write_ply(self.folder.canonical, mesh.vertices, mesh.faces)
        store = open_store(o.mesh_format, self.folder, mesh, track, o.mesh_every, written) if o.meshes else None

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
            renderer = surface.painter(track, o.style, o.opacity, o.side_by_side, renderer=o.renderer)
            write_overlay(self.folder.overlay, self.source, track, renderer, vertices_of, self.progress, stage)
        if store is not None:
            store.finish()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the stage's seconds, and those of the CPUs, to run.json, also when it is cut short."""
        start = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            spent = time.monotonic() - start[0], time.process_time() - start[1]
            for known, seconds in zip((self.timings, self.cpu_seconds), spent, strict=True):
                known[stage] = round(known.get(stage, 0.0) + seconds, 3)
            self.folder.update(timings=dict(self.timings), cpu_seconds=dict(self.cpu_seconds))
