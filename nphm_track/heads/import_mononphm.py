"""The public MonoNPHM folder -> our safetensors.

The checkpoint is an untrusted pickle, read only by torch's restricted unpickler (``weights_only``), which builds
tensors and plain containers and calls nothing else. Layout of the folder::

    {name}/configs.yaml
    {name}/checkpoints/checkpoint_epoch_2500.tar
    anchors_65.npy              inside, beside, in ``assets/`` of either, or given
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nphm_track.errors import ModelError, OutputError
from nphm_track.files.reading import read_npy, read_text, reading
from nphm_track.heads.config import MONONPHM, HeadConfig
from nphm_track.heads.mononphm import decoder_from_state
from nphm_track.models import WEIGHTS_NAME, models_root, write_weights

NAME = "mononphm"
ANCHORS_NAME = "anchors_65.npy"
CODE_NORM_BOUND = 1.0
"""The code tables were trained as embeddings with ``max_norm`` 1: a longer row was never used at that length."""
MOST_COMPONENTS = 100
"""Of the identity prior; nphm-small has as many of scanned heads."""
LARGEST_ANCHOR = 1.0
"""Model units; a coordinate beyond it means anchors in another unit (the head ends at 0.95)."""


def import_mononphm(folder: str | Path, out: str | Path | None = None, anchors: str | Path | None = None) -> Path:
    """Convert the public folder to ``out/model.safetensors``, which ``load_head_model`` opens; returns that path.

    ``out`` defaults to ``mononphm`` among the released models, where ``--head-model mononphm`` finds it. The file's
    configuration carries the statistics of the training codes (:func:`code_statistics`) under ``codes``, by ``geo``,
    ``app`` and ``exp``; their principal components (:func:`code_components`) are the linear identity prior.

    Raises ModelError for a missing, truncated, foreign or code-carrying file, OutputError when ``out`` cannot be
    written.
    """
    folder = Path(folder)
    config = _read_config(folder)
    checkpoint_path = _find_checkpoint(folder)
    mean_anchors = _read_anchors(_find_anchors(folder) if anchors is None else Path(anchors), config)
    checkpoint = read_checkpoint(checkpoint_path)
    parts = {key: _tensors(checkpoint, key, checkpoint_path) for key in ("id_decoder", "ex_decoder", "latent_codes")}
    model = decoder_from_state(parts["id_decoder"], parts["ex_decoder"], mean_anchors, config)
    codes = {
        kind: code_statistics(_code_table(parts["latent_codes"], kind, dim))
        for kind, dim in (("geo", config.identity_dim), ("app", config.identity_dim), ("exp", config.expression_dim))
    }
    basis = code_components(_code_table(parts["latent_codes"], "geo", config.identity_dim))
    head = replace(model.config, identity_basis=basis.shape[1])
    tensors = model.state_dict() | ({"identity_basis": basis} if basis.shape[1] else {})
    stored = {"kind": "nphm", "head": head.to_dict(), "codes": codes, "source": checkpoint_path.name}
    out = Path(out) if out is not None else models_root() / NAME
    try:
        write_weights(out / WEIGHTS_NAME, tensors, stored)
    except OSError as error:
        raise OutputError(f"cannot write {out / WEIGHTS_NAME} ({error.strerror})") from None
    return out / WEIGHTS_NAME


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Top level of a torch checkpoint. Raises ModelError for another file, a truncated one, one that would run code."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch muses about pickle versions before it fails
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ModelError(
                f"{path} is refused: it holds more than weights; loading it would run foreign code"
            ) from None
        raise ModelError(f"{path} is truncated or not a torch checkpoint") from None
    except Exception:  # the reader meets arbitrary bytes, and each kind of damage has its own exception
        raise ModelError(f"{path} is truncated or not a torch checkpoint") from None
    if not isinstance(checkpoint, Mapping):
        raise ModelError(f"{path} is not a MonoNPHM checkpoint: it holds a {type(checkpoint).__name__}, not a table")
    return checkpoint


def code_statistics(table: Tensor) -> dict[str, Any]:
    """``mean`` [D], ``spread`` [D] (standard deviation), ``norm_bound``, ``count`` of codes [N, D] as used."""
    used = _used(table)
    return {
        "mean": _rounded(used.mean(0)),
        "spread": _rounded(used.std(0, correction=0)),
        "norm_bound": CODE_NORM_BOUND,
        "count": len(used),
    }


def code_components(table: Tensor) -> Tensor:
    """Principal components [D, K] of codes [N, D] as used, for weights N(0, 1); at most ``MOST_COMPONENTS``."""
    used = _used(table)
    _, sizes, directions = torch.linalg.svd(used - used.mean(0), full_matrices=False)
    count = min(MOST_COMPONENTS, int((sizes > 1e-6 * sizes[:1]).sum()))
    return (directions[:count].T * sizes[:count] / len(used) ** 0.5).float()


def _used(table: Tensor) -> Tensor:
    table = table.double()
    return table * (CODE_NORM_BOUND / table.norm(dim=1, keepdim=True).clamp_min(CODE_NORM_BOUND))


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.7g}") for v in values.tolist()]


def _read_config(folder: Path) -> HeadConfig:
    """MONONPHM with the two numbers that tensor shapes do not tell, if ``configs.yaml`` states them."""
    path = folder / "configs.yaml"
    if not path.exists():
        raise ModelError(f"{folder} is not a MonoNPHM folder: no configs.yaml in it")
    with reading(path, "a MonoNPHM configuration", ModelError):
        found = dict(re.findall(r"^[ \t]*(nneigh|blend_std):[ \t]*([\d.]+)", read_text(path, 1 << 20), re.MULTILINE))
        config = replace(
            MONONPHM,
            nearest=int(found.get("nneigh", MONONPHM.nearest)),
            sigma_divisor=float(found.get("blend_std", MONONPHM.sigma_divisor)),
        )
    if not config.sigma_rank <= config.nearest <= config.n_anchors or config.sigma_divisor <= 0:
        raise ModelError(f"{path}: nneigh {config.nearest}, blend_std {config.sigma_divisor} fit no MonoNPHM model")
    return config


def _find_checkpoint(folder: Path) -> Path:
    """The newest ``checkpoint_epoch_*.tar``."""
    epochs = {
        int(match[1]): path
        for path in (folder / "checkpoints").glob("checkpoint_epoch_*.tar")
        if (match := re.fullmatch(r"checkpoint_epoch_(\d+)\.tar", path.name))
    }
    if not epochs:
        raise ModelError(f"{folder} is not a MonoNPHM folder: no checkpoints/checkpoint_epoch_*.tar in it")
    return epochs[max(epochs)]


def _find_anchors(folder: Path) -> Path:
    places = [folder, folder / "assets", folder.resolve().parent, folder.resolve().parent / "assets"]
    for place in places:
        if (place / ANCHORS_NAME).is_file():
            return place / ANCHORS_NAME
    raise ModelError(
        f"no {ANCHORS_NAME} in {folder} or beside it: give the public repository's assets/{ANCHORS_NAME} with --anchors"
    )


def _read_anchors(path: Path, config: HeadConfig) -> Tensor:
    with reading(path, "a readable anchors file", ModelError):
        anchors = torch.from_numpy(np.asarray(read_npy(path), dtype=np.float32))
    if anchors.shape != (config.n_anchors, 3):
        raise ModelError(f"{path} holds shape {list(anchors.shape)} instead of anchors [{config.n_anchors}, 3]")
    if not anchors.isfinite().all() or anchors.abs().max() > LARGEST_ANCHOR:
        raise ModelError(f"{path} does not hold anchors in model units")
    return anchors


def _tensors(checkpoint: Mapping[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    part = checkpoint.get(key)
    if not isinstance(part, Mapping) or not all(isinstance(v, Tensor) for v in part.values()):
        raise ModelError(f"{path} is not a MonoNPHM checkpoint: no table of tensors '{key}'")
    if bad := [k for k, v in part.items() if not v.isfinite().all()]:
        raise ModelError(f"{path} is damaged: tensor '{key}.{bad[0]}' holds numbers that are not finite")
    return dict(part)


def _code_table(latent_codes: Mapping[str, Tensor], kind: str, dim: int) -> Tensor:
    name = f"codebook.{kind}.embedding.weight"
    table = latent_codes.get(name)
    if table is None:
        raise ModelError(f"not a MonoNPHM checkpoint: tensor '{name}' is missing")
    if table.ndim != 2 or table.shape[1] != dim or len(table) == 0:
        raise ModelError(f"not a MonoNPHM checkpoint: '{name}' has shape {list(table.shape)} instead of [codes, {dim}]")
    return table
