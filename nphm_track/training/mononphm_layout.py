"""A head model with MonoNPHM's architecture, written in the layout of the public checkpoint.

The inverse of ``heads.import_mononphm``: what a laboratory trains with this toolkit opens in MonoNPHM's own code, and a
small stand-in goes through the importer as the public weights do. Factors that MonoNPHM does not have (``local_scale``
and the like) and the length of the codes go into the weights; the function stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.import_mononphm import ANCHORS_NAME, CODE_NORM_BOUND

State = dict[str, Tensor]


def folded(model: NphmDecoder, identity_unit: float = 1.0, expression_unit: float = 1.0) -> NphmDecoder:
    """The same head model without scale factors, for codes divided by ``identity_unit`` and ``expression_unit``.

    Its linear maps of codes and its landmarks are left out, as MonoNPHM has none.

    Raises ModelError for a model with layers that MonoNPHM lacks.
    """
    c = model.config
    if c.bilinear or c.control_points or c.activation != "softplus" or not c.appearance:
        raise ModelError(f"head model '{c.name}' has not MonoNPHM's layers")
    plain = replace(
        c, local_scale=1.0, deform_scale=1.0, sdf_scale=1.0, offset_scale=1.0,
        identity_basis=0, expression_names=(), n_landmarks=0, landmark_rank=0,
    )  # fmt: skip
    out = NphmDecoder(plain)
    known = out.state_dict().keys()
    out.load_state_dict({name: value for name, value in model.state_dict().items() if name in known})
    identity, x, expression = c.global_dim + c.local_dim, 3, c.expression_dim
    with torch.no_grad():
        for mlps, scale in ((out.ensemble, c.local_scale), (out.appearance, 1.0)):
            first = mlps.weights[0]
            first[:, :, :identity] *= identity_unit
            first[:, :, identity:] *= scale
        for part in (out.ensemble.weights[-1], out.ensemble.biases[-1]):
            part.mul_(c.sdf_scale)
        cast("nn.Linear", out.anchor_mlp[0]).weight.mul_(identity_unit)
        out.compressor.weight[:, : c.identity_dim] *= identity_unit
        layers = cast("list[nn.Linear]", list(out.deformation))
        takes_input = [layers[0]] + ([] if c.deform_skip is None else [layers[c.deform_skip]])
        for layer in takes_input:
            own = layer.weight[:, -(x + c.compressed_dim + expression) :]
            own[:, :x] *= c.deform_scale
            own[:, -expression:] *= expression_unit
        for part in (layers[-1].weight, layers[-1].bias):
            part.mul_(c.offset_scale)
    return out.eval()


def public_state(model: NphmDecoder) -> tuple[State, State]:
    """``id_decoder`` and ``ex_decoder`` of the public checkpoint, for a model that :func:`folded` returned."""
    identity: State = {}
    for mlps, prefix in ((model.ensemble, "deepSDFensemble"), (model.appearance, "aggr_app")):
        for kind, layers in (("weight", mlps.weights), ("bias", mlps.biases)):
            for k, values in enumerate(cast("list[Tensor]", list(layers))):
                identity |= {f"{prefix}.layers.{g}.layers.{2 * k}.{kind}": v for g, v in enumerate(values)}
    expression: State = {}
    plain = [(identity, f"mlp_pos.{2 * k}", layer) for k, layer in enumerate(model.anchor_mlp)]
    plain += [(identity, f"communcation_bottleneck{k + 1}", layer) for k, layer in enumerate(model.bottleneck)]
    plain += [(expression, f"defDeepSDF.lin{k}", layer) for k, layer in enumerate(model.deformation)]
    plain += [(expression, "compressor.0", model.compressor)]
    for state, name, layer in plain:
        state |= {f"{name}.{kind}": getattr(layer, kind) for kind in ("weight", "bias")}
    return _contiguous(identity), _contiguous(expression)


def write_public(
    model: NphmDecoder,
    identities: Tensor,
    expressions: Tensor,
    folder: str | Path,
    *,
    epoch: int = 2500,
    half: bool = False,
) -> Path:
    """Write ``configs.yaml``, ``anchors_65.npy`` and ``checkpoints/checkpoint_epoch_{epoch}.tar``; returns the latter.

    Args:
        model: with MonoNPHM's layers, of any width.
        identities, expressions: [N, D_id], [M, D_ex] codes of the training heads. They are made as long as MonoNPHM's,
            at most ``CODE_NORM_BOUND``.
        folder: to write; its files are replaced.
        half: keep weights and codes as float16.

    Raises:
        ModelError: the model has other layers than MonoNPHM.
    """
    units = [float(codes.norm(dim=1).max() / CODE_NORM_BOUND) for codes in (identities, expressions)]
    plain = folded(model, *units)
    identity, expression = public_state(plain)
    geometry = identities.detach() / units[0]
    # No colours are trained: the table of appearance codes is the shapes' own, and takes no space.
    tables = {"geo": geometry, "app": geometry, "exp": expressions.detach() / units[1]}
    codes = {f"codebook.{kind}.embedding.weight": table for kind, table in tables.items()}

    def stored(state: Mapping[str, Tensor]) -> State:
        kept = {id(v): v.half() if half else v.float() for v in state.values()}
        return {name: kept[id(value)] for name, value in state.items()}

    folder = Path(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    c = plain.config
    (folder / "configs.yaml").write_text(
        f"decoder:\n  id:\n    nneigh: {c.nearest}\n    nloc: {c.n_anchors}\n    blend_std: {c.sigma_divisor}\n"
        f"  ex:\n    nhyper: {c.hyper_dim}\n"
    )
    np.save(folder / ANCHORS_NAME, plain.mean_anchors.numpy())
    path = folder / "checkpoints" / f"checkpoint_epoch_{epoch}.tar"
    content = {"id_decoder": stored(identity), "ex_decoder": stored(expression), "latent_codes": stored(codes)}
    torch.save({"epoch": epoch, **content}, path)
    return path


def _contiguous(state: State) -> State:
    """Tensors with a storage of their own: a slice would be saved with all it was cut from."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
