"""A head model of ours with MonoNPHM's layers comes back from the public layout as the same function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.heads.config import MONONPHM, NPHM_SMALL
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.import_mononphm import import_mononphm
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mononphm import AnchoredDecoder
from nphm_track.training.head_task import HeadData, architecture
from nphm_track.training.mononphm_layout import folded, write_public

PEOPLE = 7


@pytest.fixture(scope="module")
def trained() -> NphmDecoder:
    """With factors and linear maps, as the recipe trains it; random weights."""
    data = {"ict": "", "shards": "", "heldout": "", "architecture": "mononphm", "hidden": 12, "deform_hidden": 20}
    torch.manual_seed(0)
    config = replace(architecture(HeadData.model_validate(data)), identity_basis=5, expression_names=("jawOpen",))
    model = NphmDecoder(config).eval().requires_grad_(False)
    model.mean_anchors.copy_(torch.randn(65, 3) * 0.3)
    return model


@pytest.fixture(scope="module")
def codes(trained: NphmDecoder) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(PEOPLE, 5, generator=generator) @ trained.identity_basis.T,
        torch.randn(9, trained.config.expression_dim, generator=generator),
    )


@pytest.fixture(scope="module")
def imported(
    trained: NphmDecoder, codes: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> AnchoredDecoder:
    folder = tmp_path_factory.mktemp("public")
    write_public(trained, *codes, folder)
    model = load_head_model(import_mononphm(folder, tmp_path_factory.mktemp("imported")))
    assert isinstance(model, AnchoredDecoder)
    return model


def test_sizes_are_mononphms_but_for_the_widths(imported: AnchoredDecoder) -> None:
    config = replace(imported.config, hidden=MONONPHM.hidden, deform_hidden=MONONPHM.deform_hidden, identity_basis=0)
    assert config == MONONPHM
    assert imported.config.identity_dim == 2176


@torch.no_grad()
def test_the_function_is_the_same(
    trained: NphmDecoder, imported: AnchoredDecoder, codes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x = torch.randn(1, 60, 3, generator=torch.Generator().manual_seed(2)) * 0.3
    units = [z.norm(dim=1).max() for z in codes]
    for person in range(3):
        z_id, z_ex = codes[0][person : person + 1], codes[1][person : person + 1]
        own = imported.sdf(x, z_id / units[0], z_ex / units[1])
        torch.testing.assert_close(own, trained.sdf(x, z_id, z_ex), rtol=1e-4, atol=1e-6)
        anchors = imported.anchors(z_id / units[0])
        torch.testing.assert_close(anchors, trained.anchors(z_id), rtol=1e-4, atol=1e-6)


def test_the_prior_holds_the_training_codes(
    imported: AnchoredDecoder, codes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    seen = codes[0] / codes[0].norm(dim=1).max()
    assert imported.identity_basis.shape == (2176, 5)
    torch.testing.assert_close(imported.mean_identity, seen.mean(0), rtol=1e-4, atol=1e-6)
    weights = (seen - seen.mean(0)) @ torch.linalg.pinv(imported.identity_basis).T
    torch.testing.assert_close(weights @ imported.identity_basis.T + seen.mean(0), seen, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights.square().mean(0), torch.ones(5), rtol=1e-3, atol=1e-3)


def test_float16_halves_the_file(
    trained: NphmDecoder, codes: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    sizes = [write_public(trained, *codes, tmp_path / str(half), half=half).stat().st_size for half in (False, True)]
    assert sizes[1] < 0.7 * sizes[0]


def test_other_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="not MonoNPHM's layers"):
        folded(NphmDecoder(replace(NPHM_SMALL, n_landmarks=0)))
