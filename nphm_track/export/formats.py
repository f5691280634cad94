"""The formats a run can be exported to, and the one function that does it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nphm_track.errors import InputError, OutputError
from nphm_track.export.manifest import MANIFEST, is_manifest
from nphm_track.files.writing import check_free, placing

if TYPE_CHECKING:
    from nphm_track.export.options import ExportOptions
    from nphm_track.tracking.progress import Progress
    from nphm_track.tracking.run_folder import Run

EXPORTS = "export"
"""Folder of a run that exports go to by default."""


@dataclass(frozen=True)
class Format:
    """One export format; its module has ``write(run, target, options, progress)``."""

    about: str
    module: str
    name: str
    """Of the output, when none is given: the file's with its ending, or the folder's."""
    suffixes: tuple[str, ...] = ()
    """Endings of the file it writes; none for a folder."""
    signature: bytes = b""
    """Bytes at the beginning of such a file that no other program writes (of the file beside it, where it has one)."""
    beside: str = ""
    """Ending, after the file's stem, of a second file beside it, which ``write_beside(run, target)`` writes."""
    spatial: bool = True
    """It has units and axes."""
    images: bool = False
    """It can carry the frames of the clip."""
    meshes: bool = False
    """It needs the mesh of every frame with a head."""
    model: str = ""
    """The option that names the user's model file, which it needs."""
    masks: bool = False
    """With the frames of the clip it carries silhouettes of the head."""


FORMATS = {
    "obj": Format("OBJ sequence, camera-fixed world", "obj", "obj", meshes=True),
    "ply": Format("PLY sequence, camera-fixed world", "ply", "ply", meshes=True),
    "glb": Format(
        "animated glTF with head pose, morph targets and camera", "glb", "head.glb", (".glb",),
        b'"generator":"nphm-track', meshes=True,
    ),
    "usd": Format(
        "USD with time-sampled points, head pose, camera and plate", "usd", "usd", images=True, meshes=True
    ),
    "transforms": Format(
        "nerfstudio / Gaussian avatar transforms.json", "transforms", "transforms", images=True, masks=True
    ),
    "mattes": Format(
        "pictures of where person, hair and the head's mesh are", "mattes", "mattes", spatial=False, meshes=True
    ),
    "texture": Format("colours of the skin from the clip, a picture for each tile", "texture", "texture", meshes=True),
    "flame": Format(
        "FLAME parameters fitted to the heads (--flame-model)", "parametric", "flame.npz", (".npz",),
        b"nphm_track.npy", spatial=False, meshes=True, model="flame_model",
    ),
    "gnm": Format(
        "parameters of Google's GNM Head fitted to the heads (--gnm-model)", "parametric", "gnm.npz", (".npz",),
        b"nphm_track.npy", spatial=False, meshes=True, model="gnm_model",
    ),
    "colmap": Format("COLMAP text model", "colmap", "colmap", images=True),
    "opencv": Format(
        "OpenCV YAML camera with extrinsics per frame", "opencv", "camera.yaml", (".yaml", ".yml"), b"# nphm-track"
    ),
    "chan": Format("Nuke channel files of head and camera", "chan", "chan"),
    "bvh": Format("motion of the head as BVH", "bvh", "head.bvh", (".bvh",), b"ROOT nphm_head"),
    "blendshapes": Format(
        "Live Link Face CSV: ARKit weights, rotation of head and eyes", "blendshapes", "blendshapes.csv", (".csv",),
        b"Timecode,Frame,Seconds,Status", beside="_frames.csv", spatial=False,
    ),
    "landmarks": Format(
        "observed and fitted landmarks, CSV or JSON", "landmarks", "landmarks.csv", (".csv", ".json"), b"nphm-track",
        spatial=False,
    ),
}  # fmt: skip


def export(
    run: Run,
    format: str,
    output: str | Path | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a finished run in another format; it appears under its name only when it is whole.

    Args:
        run: a run that is done.
        format: one of ``FORMATS``.
        output: file or folder, by the format; default: in ``export`` of the run.
        options: unit, axes and what goes along; those that the format has no use for must be left alone.
        progress: told of frames.
        overwrite: replace another file too, not only an earlier export of the same format; never a folder that is
            something else, nor the run's clip.

    Returns:
        The file or folder written.

    Raises:
        InputError: the format is unknown, has no use for an option, needs what the run lacks or a missing package.
        OutputError: the output cannot be written.
    """
    from nphm_track.export.frames import check_meshes
    from nphm_track.export.options import ExportOptions
    from nphm_track.tracking.progress import LineProgress
    from nphm_track.tracking.run_folder import writing_into

    options = options or ExportOptions()
    kind = known(format)
    if options.frames != (None, None):
        run = run.between(*options.frames)
    if not kind.spatial and (options.unit, options.up) != ("m", "y"):
        raise InputError(f"format {format} has no units or axes; leave out --unit and --up")
    if options.images and not kind.images:
        able = ", ".join(name for name, other in FORMATS.items() if other.images)
        raise InputError(f"format {format} carries no images; --images goes with {able}")
    if options.textured and format != "glb":
        raise InputError(f"format {format} carries no texture; --textured goes with glb")
    for name in ("flame_model", "gnm_model"):
        given = getattr(options, name) is not None
        if given != (kind.model == name):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"format {format} {'has no use for' if given else 'needs'} {flag}")
    target = _target(run, format, kind, output, overwrite)
    if kind.meshes or (kind.masks and options.images):
        check_meshes(run)
    module = import_module(f"nphm_track.export.{kind.module}")
    try:
        with writing_into(run) if output is None else nullcontext(), placing(target) as place:
            if not kind.suffixes:
                place.mkdir()
            module.write(run, place, options, progress or LineProgress())
            if kind.beside:
                with placing(_beside(target, kind)) as second:
                    module.write_beside(run, second)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error})") from None
    return target


def known(format: str) -> Format:
    """The format of that name. Raises InputError when there is none."""
    if format not in FORMATS:
        raise InputError(f"unknown format '{format}'; choose from {', '.join(FORMATS)}")
    return FORMATS[format]


def _target(run: Run, format: str, kind: Format, output: str | Path | None, overwrite: bool) -> Path:
    """Where the export goes. Raises InputError when the name does not fit, OutputError when what is there must stay."""
    from nphm_track.tracking.clip import check_not_clip

    target = Path(output) if output is not None else run.path / EXPORTS / kind.name
    if kind.suffixes and target.suffix.lower() not in kind.suffixes:
        raise InputError(f"format {format} writes one file; end its name in {' or '.join(kind.suffixes)}")
    if not kind.suffixes and target.suffix:
        raise InputError(f"format {format} writes a folder; '{target.name}' looks like a file")
    files = [target, _beside(target, kind)] if kind.beside else [target]
    if any(map(os.path.lexists, files)) and not _is_ours(target, format, kind):
        if kind.suffixes and overwrite:
            for file in files:
                check_free(file, overwrite)
                check_not_clip(run, file)
        else:
            raise OutputError(f"{target} exists and is not an export in format {format}; choose another with -o")
    return target


def _is_ours(target: Path, format: str, kind: Format) -> bool:
    """An earlier export of the format, or an empty folder where a folder goes."""
    if kind.suffixes:
        signed = _beside(target, kind) if kind.beside else target
        if not (target.is_file() and signed.is_file()):
            return False
        with open(signed, "rb") as file:
            return kind.signature in file.read(4096)
    return target.is_dir() and (is_manifest(target / MANIFEST, format) or not any(target.iterdir()))


def _beside(target: Path, kind: Format) -> Path:
    """The second file of an export to ``target``."""
    return target.with_name(target.stem + kind.beside)
