"""Opening head models: our own safetensors and converted MonoNPHM ones."""

from __future__ import annotations

from pathlib import Path

import torch

from nphm_track.errors import ModelError
from nphm_track.heads.config import HeadConfig
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.models import read_weights

DEFAULT = "nphm-small"


def load_head_model(name_or_path: str | Path = DEFAULT, *, device: torch.device | str = "cpu") -> NphmDecoder:
    """A head model ready for inference. Raises ModelError when it is missing, damaged or of another kind."""
    tensors, config = read_weights(name_or_path)
    if config.get("kind") != "nphm":
        raise ModelError(f"{name_or_path} is not a head model")
    try:
        model = NphmDecoder(HeadConfig.from_dict(config["head"]))
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{name_or_path} does not fit its architecture: {reason}") from None
    return model.to(device).eval().requires_grad_(False)
