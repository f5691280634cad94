"""The public MonoNPHM checkpoint: its state dict layout, the way into :class:`NphmDecoder`, and what a converted one
knows beside its weights: where 35 landmarks are, and how its codes are spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nphm_track.conventions import ANCHOR_LANDMARKS, IBUG68_FROM_478, N_LANDMARKS
from nphm_track.errors import ModelError
from nphm_track.heads.config import MONONPHM, HeadConfig
from nphm_track.heads.decoder import NphmDecoder

N_ANCHORS = MONONPHM.n_anchors


@dataclass(frozen=True)
class CodeStatistics:
    """Codes of one kind as used in training: ``mean`` [D], ``spread`` [D] (standard deviation), largest norm."""

    mean: Tensor
    spread: Tensor
    norm_bound: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], dim: int) -> CodeStatistics:
        """As ``import_mononphm.code_statistics`` wrote them. Raises ModelError for other than ``dim`` elements."""
        try:
            mean, spread = (torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "spread"))
            bound = float(values["norm_bound"])
        except (KeyError, TypeError, ValueError):
            raise ModelError("the head model's code statistics are damaged") from None
        if not mean.shape == spread.shape == (dim,) or not bound > 0 or not (mean + spread).isfinite().all():
            raise ModelError(f"the head model's code statistics do not describe codes of {dim} elements")
        return cls(mean, spread, bound)


class AnchoredDecoder(NphmDecoder):
    """A head model without landmarks of its own: 35 of MonoNPHM's 65 anchors stand for them.

    Attributes:
        known_landmarks: the 35 among the 478, ascending.
        identity_codes, expression_codes: statistics of the training codes; None when the file has none.

    Its linear identity prior, where the file has one, is that of the training codes: their principal components.
    """

    anchor_of_landmark: Tensor

    def __init__(self, config: HeadConfig, codes: Mapping[str, Any] | None = None) -> None:
        """``codes``: statistics by ``geo`` and ``exp``. Raises ModelError for another number of anchors."""
        super().__init__(config)
        if config.n_anchors != N_ANCHORS:
            raise ModelError(f"{config.name} has {config.n_anchors} anchors, not MonoNPHM's {N_ANCHORS}")
        anchors = {IBUG68_FROM_478[point]: anchor for anchor, point in ANCHOR_LANDMARKS.items()}
        self.known_landmarks = tuple(sorted(anchors))
        self.register_buffer(
            "anchor_of_landmark", torch.tensor([anchors.get(i, 0) for i in range(N_LANDMARKS)]), persistent=False
        )
        self.identity_codes = CodeStatistics.from_dict(codes["geo"], config.identity_dim) if codes else None
        self.expression_codes = CodeStatistics.from_dict(codes["exp"], config.expression_dim) if codes else None

    @property
    def mean_identity(self) -> Tensor:
        """The mean of the training codes [D_id]."""
        known = self.identity_codes
        return super().mean_identity if known is None else known.mean.to(self.mean_anchors)

    @property
    def mean_expression(self) -> Tensor:
        """The mean of the training codes [D_ex]."""
        known = self.expression_codes
        return super().mean_expression if known is None else known.mean.to(self.mean_anchors)

    def landmarks(self, z_id: Tensor) -> Tensor:
        """The landmark set [..., 478, 3]; all but ``known_landmarks`` lie at the first anchor and mean nothing."""
        return self.anchors(z_id)[..., self.anchor_of_landmark, :]


def known_landmarks(model: NphmDecoder) -> tuple[int, ...]:
    """Which of the 478 landmarks a head model places. Raises ModelError when it places none."""
    if isinstance(model, AnchoredDecoder):
        return model.known_landmarks
    if model.config.n_landmarks != N_LANDMARKS:
        raise ModelError(
            f"head model {model.config.name} has neither the {N_LANDMARKS} landmarks nor MonoNPHM's anchors"
        )
    return tuple(range(N_LANDMARKS))


def decoder_from_state(
    id_decoder: Mapping[str, Tensor],
    ex_decoder: Mapping[str, Tensor],
    mean_anchors: Tensor,
    config: HeadConfig = MONONPHM,
) -> NphmDecoder:
    """Build the decoder from MonoNPHM's two state dicts (tensors by name) and its mean anchors [65, 3].

    The widths of the hidden layers are the tensors' own, everything else is ``config``'s.

    Raises ModelError when a tensor is missing, superfluous or of another shape.
    """
    local, deform = id_decoder.get("deepSDFensemble.layers.0.layers.0.weight"), ex_decoder.get("defDeepSDF.lin0.weight")
    config = replace(
        config,
        hidden=config.hidden if local is None else len(local),
        deform_hidden=config.deform_hidden if deform is None else len(deform),
    )
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
