"""The public MonoNPHM checkpoint: its state dict layout and the way into :class:`NphmDecoder`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nphm_track.errors import ModelError
from nphm_track.heads.config import MONONPHM, HeadConfig
from nphm_track.heads.decoder import NphmDecoder


def decoder_from_state(
    id_decoder: Mapping[str, Tensor],
    ex_decoder: Mapping[str, Tensor],
    mean_anchors: Tensor,
    config: HeadConfig = MONONPHM,
) -> NphmDecoder:
    """Build the decoder from MonoNPHM's two state dicts (tensors by name) and its mean anchors [65, 3].

    Raises ModelError when a tensor is missing, superfluous or of another shape.
    """
    model = NphmDecoder(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    state: dict[str, Tensor] = {"mean_anchors": torch.as_tensor(mean_anchors, dtype=torch.float32)}
    identity, expression = dict(id_decoder), dict(ex_decoder)
    if state["mean_anchors"].shape != shapes["mean_anchors"]:
        wrong, right = list(state["mean_anchors"].shape), list(shapes["mean_anchors"])
        raise ModelError(f"mean anchors have shape {wrong} instead of {right}")

    def take(source: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
        if name not in source:
            raise ModelError(f"not a MonoNPHM checkpoint: tensor '{name}' is missing")
        tensor = source.pop(name)
        if tensor.shape != shape:
            found = f"'{name}' has shape {list(tensor.shape)} instead of {list(shape)}"
            raise ModelError(f"not a MonoNPHM checkpoint: {found}")
        return tensor.float()

    for target, prefix in (("ensemble", "deepSDFensemble"), ("appearance", "aggr_app")):
        for layer in range(config.hidden_layers + 1):
            for ours, theirs in (("weights", "weight"), ("biases", "bias")):
                name = f"{target}.{ours}.{layer}"
                members = (f"{prefix}.layers.{g}.layers.{2 * layer}.{theirs}" for g in range(config.n_mlps))
                state[name] = torch.stack([take(identity, member, shapes[name][1:]) for member in members])

    plain = [(f"anchor_mlp.{k}", identity, f"mlp_pos.{2 * k}") for k in range(3)]
    plain += [(f"bottleneck.{k}", identity, f"communcation_bottleneck{k + 1}") for k in range(2)]
    plain += [(f"deformation.{k}", expression, f"defDeepSDF.lin{k}") for k in range(config.deform_layers + 1)]
    plain += [("compressor", expression, "compressor.0")]
    for target, source, theirs in plain:
        for kind in ("weight", "bias"):
            name = f"{target}.{kind}"
            state[name] = take(source, f"{theirs}.{kind}", shapes[name])

    if left := sorted(identity) + sorted(expression):
        raise ModelError(f"not a MonoNPHM checkpoint: unknown tensor '{left[0]}'")
    model.load_state_dict(state)
    return model.eval()
