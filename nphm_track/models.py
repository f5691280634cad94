"""Where released models live and how their files are opened.

A model is a folder of ``models/`` with ``model.safetensors`` (the weights; its configuration is JSON in the file's
metadata under ``config``), ``README.md`` (model card) and ``LICENSE``. ``models/index.json`` lists size, SHA-256,
licence and recipe. The same lookup serves a wheel (``nphm_track/_models``), an editable install and a bare checkout
(``models/`` beside the package).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from nphm_track.errors import ModelError, OutputError
from nphm_track.files.reading import open_regular, parse_json, read_json, reading

WEIGHTS_NAME = "model.safetensors"
INDEX = "index.json"
LARGEST = 8 << 30
"""Bytes of a model."""
Network = TypeVar("Network", bound=torch.nn.Module)


def models_root() -> Path:
    """Folder of the released models; ``NPHM_TRACK_MODELS`` overrides it. Raises ModelError when there is none."""
    override = os.environ.get("NPHM_TRACK_MODELS")
    package = Path(__file__).resolve().parent
    candidates = [Path(override)] if override else [package / "_models", package.parent / "models"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ModelError(f"no models folder at {' or '.join(map(str, candidates))}")


@dataclass(frozen=True)
class ReleasedModel:
    """A line of ``models/index.json``."""

    name: str
    size: int  # bytes of model.safetensors
    sha256: str
    licence: str
    recipe: str


def released_models() -> list[ReleasedModel]:
    """The models that ``models/index.json`` lists, by name. Raises ModelError when the index is missing or damaged."""
    path = models_root() / INDEX
    with reading(path, "a list of models", ModelError):
        return [
            ReleasedModel(name, int(e["size"]), str(e["sha256"]), str(e["licence"]), str(e.get("recipe", "")))
            for name, e in sorted(read_json(path).items())
        ]


def resolve(name_or_path: str | Path) -> Path:
    """Path of a weights file: a released model's name, a model folder, or a safetensors file itself.

    The name comes first: a folder of yours that is called "geometry" is meant when it is written "./geometry".
    """
    path = Path(name_or_path)
    released = models_root() / path
    if str(name_or_path) == path.name and (released / WEIGHTS_NAME).is_file():
        return released / WEIGHTS_NAME
    if path.is_file():
        return path
    folder = path if path.is_dir() else released
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise ModelError(f"model '{name_or_path}' not found: no {WEIGHTS_NAME} in {folder}")
    return weights


def read_weights(name_or_path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors (floating point ones as float32, CPU) and the configuration of a model file.

    Raises ModelError when the file is missing, truncated, not safetensors, or carries no configuration.
    """
    path = resolve(name_or_path)
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        config = _config(file, path)
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    if bad := [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ModelError(f"{path} is damaged: tensor '{bad[0]}' holds numbers that are not finite")
    return tensors, config


def read_config(name_or_path: str | Path) -> dict[str, Any]:
    """The configuration of a model file, without its tensors. Raises as :func:`read_weights`."""
    path = resolve(name_or_path)
    with _opened(path) as file:
        return _config(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A model file by safetensors, checked to be the released one where it is among these."""
    from safetensors import safe_open

    with reading(path, "a readable safetensors file", ModelError):
        open_regular(path, LARGEST).close()
        _check_released(path)
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file


def _config(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ModelError(f"{path} carries no configuration")
    with reading(path, "a model with a whole configuration", ModelError):
        config = parse_json(metadata["config"])
    if not isinstance(config, dict):
        raise ModelError(f"{path} carries a damaged configuration")
    return config


def _check_released(path: Path) -> None:
    """Raises ModelError when a file of the released models is not the one that was released."""
    root = models_root()
    if not path.resolve().is_relative_to(root.resolve()) or not (root / INDEX).exists():
        return
    listed = next((model for model in released_models() if model.name == path.resolve().parent.name), None)
    if listed is not None and sha256(path) != listed.sha256:
        raise ModelError(f"{path} is damaged: it is not the file that was released (its SHA-256 differs)")


def load_network(
    name_or_path: str | Path,
    kind: str,
    what: str,
    build: Callable[[dict[str, Any], dict[str, torch.Tensor]], Network],
    device: torch.device | str = "cpu",
) -> Network:
    """A released network, frozen and ready for inference.

    ``build`` makes the module from the file's configuration and tensors. Raises ModelError when the file is missing,
    damaged, not of this ``kind`` ("... is not ``what``"), or does not fit its own configuration.
    """
    tensors, config = read_weights(name_or_path)
    if config.get("kind") != kind:
        raise ModelError(f"{name_or_path} is not {what}")
    try:
        network = build(config, tensors)
        network.load_state_dict(tensors)
    except Exception as error:  # a configuration that is none fails in every way there is
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ModelError(f"{name_or_path} does not fit its architecture: {reason}") from None
    return network.to(device).eval().requires_grad_(False)


def write_weights(
    path: str | Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], *, half: bool = False
) -> None:
    """Write a model file atomically.

    Args:
        path: ``model.safetensors`` of a model's folder.
        tensors: by name.
        config: the kind of the model and the sizes it is built from; stored in the file as JSON.
        half: store floating point tensors as float16.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        k: (v.half() if half and v.is_floating_point() else v).detach().cpu().contiguous() for k, v in tensors.items()
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(stored, str(partial), metadata={"config": json.dumps(config, sort_keys=True)})
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written ({error})") from None
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, path)


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
