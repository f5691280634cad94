"""What is installed, what each optional package enables, and whether the essentials work."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nphm_track.errors import ModelError
from nphm_track.models import ReleasedModel, released_models
from nphm_track.version import __version__

CORE = (
    "torch", "numpy", "scipy", "scikit-image", "numba", "trimesh", "safetensors", "av", "kornia", "pydantic", "typer",
)  # fmt: skip
EXTRAS = {
    "decord": ("decord", "decord", "second video reader (--reader decord)"),
    "face-alignment": (
        "face-alignment",
        "face_alignment",
        "second landmark detector, from Python; fetches its weights",
    ),
    "pyrender": ("pyrender2", "pyrender", "second overlay renderer (--renderer pyrender)"),
    "heic": ("pillow-heif", "pillow_heif", "HEIC photographs"),
    "usd": ("usd-core", "pxr", "nphm-track export --format usd"),
    "viewer": ("viser", "viser", "nphm-track view, a run in the browser"),
    "slurm": ("submitit", "submitit", "nphm-track batch --slurm, as jobs of Slurm"),
    "cluster": ("ray", "ray", "nphm-track batch --ray, on many machines"),
    "train": ("anny", "anny", "head shapes of all ages for training, curves in TensorBoard"),
    "docs": ("mkdocs-material", "material", "building the documentation"),
}
"""Extra to the package that stands for it, the module that brings, and what it enables."""


MAX_ERROR = 5.0
"""Landmark error of the self-test's photograph, % of the distance between the outer eye corners; it should have 2.3."""


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    name: str
    ok: bool
    detail: str


def model_problem(model: ReleasedModel) -> str:
    """Why a model's file is not the released one; empty when it is."""
    from nphm_track.models import resolve, sha256

    try:
        path = resolve(model.name)
    except ModelError as error:
        return str(error)
    if path.stat().st_size != model.size:
        return f"has {path.stat().st_size} bytes instead of {model.size}"
    return "" if sha256(path) == model.sha256 else "has another SHA-256 than the released file"


def check_models() -> list[Check]:
    """One check per released model, or one that says why there is no list."""
    try:
        found = [(model, model_problem(model)) for model in released_models()]
    except ModelError as error:
        return [Check("models", False, str(error))]
    return [
        Check(f"model {m.name}", not problem, problem or f"{m.size / 1e6:.1f} MB, {m.licence}, sha256 {m.sha256[:12]}")
        for m, problem in found
    ]


def report() -> dict[str, Sequence[tuple[str, ...]]]:
    """Title of each section to its rows."""
    system = [
        ("nphm-track", __version__),
        ("python", platform.python_version()),
        ("system", platform.platform()),
        ("processors", str(os.cpu_count())),
        *((f"device {name}", detail) for name, detail in devices()),
        ("models", _models_folder()),
        ("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"),
    ]
    extras = [
        (name, _version(package) if find_spec(module) else "missing", purpose)
        for name, (package, module, purpose) in EXTRAS.items()
    ]
    return {"system": system, "packages": [(name, _version(name)) for name in CORE], "extras": extras}


def _models_folder() -> str:
    from nphm_track.models import models_root

    try:
        return str(models_root())
    except ModelError as error:
        return str(error)


def devices() -> list[tuple[str, str]]:
    """Torch devices of this machine with a few words about each."""
    import torch

    from nphm_track import inference

    found = [
        ("cpu", f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}, {inference.described()}")
    ]
    for i in range(torch.cuda.device_count()):
        found.append((f"cuda:{i}", torch.cuda.get_device_name(i)))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return found


def self_test() -> list[Check]:
    """Try what a run cannot do without, and a run itself on a photograph; some five seconds."""
    return [_attempt(test) for test in (_try_torch, _try_rasteriser, _try_video, _try_tracking)]


def _attempt(test: Callable[[], str]) -> Check:
    name = test.__name__.removeprefix("_try_")
    try:
        return Check(name, True, test())
    except Exception as error:  # whatever it is, the user is told
        return Check(name, False, f"{type(error).__name__}: {error}")


def _try_torch() -> str:
    import torch

    a = torch.arange(12.0).reshape(3, 4)
    for name, _ in devices():
        product = (a.to(name) @ a.to(name).T).cpu()
        if not torch.equal(product, a @ a.T):
            raise ArithmeticError(f"wrong product on {name}")
    return f"products agree on {', '.join(name for name, _ in devices())}"


def _try_rasteriser() -> str:
    from nphm_track.rendering.rasteriser import rasterise

    triangle = np.array([[-1, -1, 2], [1, -1, 2], [0, 1, 2]], np.float32)
    intrinsics = np.array([[16.0, 0, 16], [0, 16, 16], [0, 0, 1]])
    depth = rasterise(triangle, [[0, 2, 1]], intrinsics, (32, 32)).depth
    if abs(float(depth[16, 16]) - 2) > 1e-4:
        raise ArithmeticError(f"depth {depth[16, 16]} instead of 2")
    return "draws a triangle at the right depth"


def _try_video() -> str:
    """Through the doors a run uses: a library whose interface has changed must fail here."""
    from nphm_track.video.reader import open_video
    from nphm_track.video.writer import VideoWriter

    greys = (40, 80, 120, 160, 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.mp4"
        with VideoWriter(path, (64, 64)) as writer:
            for i, grey in enumerate(greys):
                writer.write(np.full((64, 64, 3), grey, np.uint8), i / 25)
        with open_video(path) as source:
            seen = [frame.image for frame in source]
    if len(seen) != len(greys):
        raise ValueError(f"{len(seen)} frames came back of {len(greys)}")
    if any(abs(float(image.mean()) - grey) > 4 for image, grey in zip(seen, greys, strict=True)):
        raise ValueError("the frames came back in other colours")
    return "H.264 written and read"


def _try_tracking() -> str:
    from PIL import Image
    from skimage import data

    from nphm_track import track

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "astronaut.png"
        Image.fromarray(data.astronaut()).save(path)
        run = track(path, Path(folder) / "run", meshes=False, overlay=False)
        error = run.info.quality["landmark_error_percent"]
    if error is None or not error < MAX_ERROR:
        raise ArithmeticError(f"a sample photograph was fitted with a landmark error of {error} %")
    return f"a sample photograph was fitted with a landmark error of {error:.1f} %"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
