"""Opening head models: our own safetensors and converted MonoNPHM ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nphm_track.heads.config import HeadConfig
from nphm_track.heads.controlled import ControlledDecoder
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mononphm import N_ANCHORS, AnchoredDecoder
from nphm_track.models import load_network

DEFAULT = "nphm-small"


def load_head_model(name_or_path: str | Path = DEFAULT, *, device: torch.device | str = "cpu") -> NphmDecoder:
    """A head model ready for inference; one with MonoNPHM's anchors and no landmarks is an :class:`AnchoredDecoder`.

    Args:
        name_or_path: of a released model, or a folder or file of one.
        device: of its tensors.

    Raises:
        ModelError: it is missing, damaged or of another kind.
    """
    return load_network(name_or_path, "nphm", "a head model", _build, device)


def _build(config: dict[str, Any], _: dict[str, torch.Tensor]) -> NphmDecoder:
    head = HeadConfig.from_dict(config["head"])
    if head.n_landmarks == 0 and head.n_anchors == N_ANCHORS:
        return AnchoredDecoder(head, config.get("codes"))
    return ControlledDecoder(head) if head.control_points else NphmDecoder(head)
