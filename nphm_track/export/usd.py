"""USD (binary): ``head.usdc`` with the head, its pose, camera and background plate (extra ``usd``).

The world is the camera-fixed one; the stage states its unit and up axis. A run in the template's topology is the
person's rig (``usd_rig``). Of another, ``/World/Head`` carries the pose and ``/World/Head/Mesh`` time-sampled points in
the head-fixed world. ``/World/Camera`` is the lens (36 mm wide film; the principal point is an aperture offset, the
distortion an attribute ``lens:distortion``). Time codes count frames of the clip's nominal rate from its first frame,
fractions included, so that variable rates survive. While the head is lost it is invisible, and pose and points have no
samples. USD has no schema for a background plate: ``plate:file`` of the camera names the clip, from the stage's folder,
or each frame's picture: of a folder of images, and with ``images``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.export.frames import IMAGES, canonical, frame_names, frame_rate, present_rows, vertices, write_images
from nphm_track.export.manifest import GENERATOR, write_manifest
from nphm_track.export.options import METRES_PER_UNIT, ExportOptions
from nphm_track.export.usd_rig import write_rig
from nphm_track.files.names import text_of
from nphm_track.tracking.clip import find_clip
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, relative_path
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import surface_of

if TYPE_CHECKING:
    from pxr import Usd

STAGE = "head.usdc"
FILM_WIDTH = 0.036
"""Metres."""
NEAR, FAR = 0.01, 100.0
"""Clipping distances of the camera, metres."""
FLUSH = 256
"""Frames after which what was written goes to the file: memory does not grow with the clip."""


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the stage, and ``images/`` on request, into the folder ``target``."""
    try:
        from pxr import Usd, UsdGeom
    except ImportError as error:
        raise InputError(f"usd-core is not usable ({error}); pip install 'nphm-track[usd]'") from None
    track, rate = run.track, frame_rate(run)
    codes = (track.time - track.time[0]) * rate
    stage = Usd.Stage.CreateNew(str(target / STAGE))
    stage.SetMetadata("comment", GENERATOR)
    UsdGeom.SetStageMetersPerUnit(stage, METRES_PER_UNIT[options.unit])
    UsdGeom.SetStageUpAxis(stage, options.up.upper())
    stage.SetTimeCodesPerSecond(rate)
    stage.SetFramesPerSecond(rate)
    stage.SetStartTimeCode(float(codes[0]))
    stage.SetEndTimeCode(float(codes[-1]))
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    _camera(stage, run, target, options, codes)
    if surface_of(run).template is not None:
        write_rig(stage, run, options, codes, progress)
    else:
        _head(stage, run, options, codes, progress)
    _hide_while_lost(stage, run, codes)
    stage.Save()
    if options.images:
        write_images(run, target, progress, lost=True, clip=options.clip)
    write_manifest(target, run, "usd", options, world="camera-fixed")


def _head(stage: Usd.Stage, run: Run, options: ExportOptions, codes: NDArray[np.float64], progress: Progress) -> None:
    from pxr import Gf, UsdGeom, Vt

    track, rows = run.track, present_rows(run)
    base, faces = canonical(run)
    head = UsdGeom.Xform.Define(stage, "/World/Head")
    mesh = UsdGeom.Mesh.Define(stage, "/World/Head/Mesh")
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(faces.ravel(), np.int32)))
    mesh.CreateDoubleSidedAttr(True)
    mesh.CreatePointsAttr(_points(options.points(base)))
    pose, points, extent = head.AddTransformOp(), mesh.GetPointsAttr(), mesh.CreateExtentAttr()
    progress.stage("usd", len(rows))
    for i, (row, vertices_head) in enumerate(vertices(run, rows), start=1):
        R, t = options.head_pose(track.R[row], track.t[row])
        matrix = np.eye(4)  # USD's vectors are rows
        matrix[:3, :3], matrix[3, :3] = R.T, t
        code = float(codes[row])
        pose.Set(Gf.Matrix4d(matrix.tolist()), code)
        moved = options.points(vertices_head)
        points.Set(_points(moved), code)
        extent.Set(_points(np.stack([moved.min(0), moved.max(0)])), code)
        if i % FLUSH == 0:
            stage.Save()
        progress.advance()


def _hide_while_lost(stage: Usd.Stage, run: Run, codes: NDArray[np.float64]) -> None:
    from pxr import UsdGeom

    visible = UsdGeom.Imageable.Get(stage, "/World/Head").CreateVisibilityAttr()
    lost = run.track.status == Status.LOST
    if lost.any():
        for row in np.flatnonzero(np.diff(lost, prepend=not lost[0])).tolist():
            visible.Set(UsdGeom.Tokens.invisible if lost[row] else UsdGeom.Tokens.inherited, float(codes[row]))


def _points(values: NDArray[np.float64]) -> object:
    from pxr import Vt

    return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values, np.float32))


def _camera(stage: Usd.Stage, run: Run, folder: Path, options: ExportOptions, codes: NDArray[np.float64]) -> None:
    from pxr import Gf, Sdf, UsdGeom

    track = run.track
    (width, height), K = track.image_size.tolist(), track.K
    camera = UsdGeom.Camera.Define(stage, "/World/Camera")
    matrix = np.eye(4)
    matrix[:3, :3] = options.axes.T
    camera.AddTransformOp().Set(Gf.Matrix4d(matrix.tolist()))
    film_width = 10 * options.scale * FILM_WIDTH  # a lens is in tenths of the stage's unit
    focal = K[0, 0] * film_width / width
    film_height = height * focal / K[1, 1]
    camera.CreateProjectionAttr(UsdGeom.Tokens.perspective)
    camera.CreateFocalLengthAttr(focal)
    camera.CreateHorizontalApertureAttr(film_width)
    camera.CreateVerticalApertureAttr(film_height)
    camera.CreateHorizontalApertureOffsetAttr((width / 2 - K[0, 2]) * film_width / width)
    camera.CreateVerticalApertureOffsetAttr((K[1, 2] - height / 2) * film_height / height)
    camera.CreateClippingRangeAttr(Gf.Vec2f(NEAR * options.scale, FAR * options.scale))
    prim = camera.GetPrim()
    prim.CreateAttribute("lens:distortion", Sdf.ValueTypeNames.DoubleArray).Set(track.distortion.tolist())
    plate = prim.CreateAttribute("plate:file", Sdf.ValueTypeNames.Asset)
    if options.images:
        pictures = [f"./{IMAGES}/{name}.png" for name in frame_names(track)]
    else:
        clip = _clip(run, options)
        sequence = track.image.tolist() if run.info.input.kind == "folder" else []
        pictures = [relative_path(clip / name, folder) or str(clip / name) for name in sequence]
        if not pictures:
            plate.Set(Sdf.AssetPath(relative_path(clip, folder) or text_of(clip)))
    for picture, code in zip(pictures, codes.tolist(), strict=False):
        plate.Set(Sdf.AssetPath(picture), code)


def _clip(run: Run, options: ExportOptions) -> Path:
    """Where the clip of the run is, or was when it was tracked if it is nowhere now."""
    try:
        return find_clip(run, options.clip)
    except InputError:
        return run.info.input.place
