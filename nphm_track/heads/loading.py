"""Opening head models: our own safetensors and converted MonoNPHM ones."""

from __future__ import annotations

from pathlib import Path

import torch

from nphm_track.heads.config import HeadConfig
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.models import load_network

DEFAULT = "nphm-small"


def load_head_model(name_or_path: str | Path = DEFAULT, *, device: torch.device | str = "cpu") -> NphmDecoder:
    """A head model ready for inference. Raises ModelError when it is missing, damaged or of another kind."""
    return load_network(
        name_or_path,
        "nphm",
        "a head model",
        lambda config, _: NphmDecoder(HeadConfig.from_dict(config["head"])),
        device,
    )
