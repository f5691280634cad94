from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.geometry.networks import DETAIL, DETAIL_POINTS, TRUNK, GeometryConfig, GeometryNet
from nphm_track.models import write_weights


def inputs(batch: int = 2) -> tuple[torch.Tensor, dict[int, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = {s: torch.randn(batch, c, s, s, generator=generator) for s, c in TRUNK.items()}
    maps = torch.randn(batch, 7, 128, 128, generator=generator)
    maps[:, 6] = 1
    return torch.rand(batch, 3, 256, 256, generator=generator), features, maps


@pytest.mark.parametrize("trunk", [True, False])
@pytest.mark.parametrize("landmark_mesh", [True, False])
def test_shapes_and_unit_normals_of_every_variant(trunk: bool, landmark_mesh: bool) -> None:
    net = GeometryNet(GeometryConfig(width=32, layers=1, trunk=trunk, landmark_mesh=landmark_mesh), 10)
    out = net(*inputs())
    assert out["normals"].shape == out["points"].shape == (2, 3, 128, 128)
    assert out["normal_logit"].shape == out["point_logit"].shape == (2, 128, 128)
    assert out["tokens_n"].shape == out["tokens_p"].shape == (2, 256, 32)
    assert torch.allclose(out["normals"].norm(dim=1), torch.ones(2, 128, 128), atol=1e-5)


def test_an_untrained_network_repeats_the_landmark_mesh() -> None:
    net = GeometryNet(GeometryConfig(width=32, layers=1), 10)
    crop, features, maps = inputs()
    out = net(crop, features, maps)
    assert torch.allclose(out["points"], maps[:, :3] / 10)


def test_details_are_the_finest_maps_under_their_landmarks() -> None:
    net = GeometryNet(GeometryConfig(width=16, layers=1), 10)
    _, features, _ = inputs()
    for size in (64, 32):
        pixel = (torch.arange(size) + 0.5) * 256 / size  # each cell holds the crop pixel of its middle
        features[size] = pixel.view(1, 1, 1, size).expand(2, TRUNK[size], size, size)
    landmarks = 10 + 230 * torch.rand(2, 478, 3, generator=torch.Generator().manual_seed(1))
    found = net.details(features, landmarks)
    assert found.shape == (2, len(DETAIL_POINTS), DETAIL)
    torch.testing.assert_close(found, landmarks[:, DETAIL_POINTS, :1].expand_as(found))


SMALL_STEM = {"width": 16, "layers": 1, "decoder": (8, 4), "stem": (8, 16), "stem_blocks": (1, 1)}


@pytest.mark.parametrize(("trunk", "landmark_mesh"), [(True, True), (False, True), (True, False)])
def test_a_stem_looks_at_the_crop_and_starts_from_the_landmark_mesh(trunk: bool, landmark_mesh: bool) -> None:
    net = GeometryNet(GeometryConfig(**SMALL_STEM, trunk=trunk, landmark_mesh=landmark_mesh), 10).eval()
    crop, features, maps = inputs(1)
    out = net(crop, features, maps)
    assert out["normals"].shape == out["points"].shape == (1, 3, 128, 128)
    assert out["normal_logit"].shape == out["point_logit"].shape == (1, 128, 128)
    assert out["tokens_n"].shape == out["tokens_p"].shape == (1, 256, 16)
    torch.testing.assert_close(out["normals"], torch.nn.functional.normalize(maps[:, 3:6], dim=1))
    torch.testing.assert_close(out["points"], maps[:, :3] / 10)
    assert torch.equal(net.encode(crop, features, maps)[1], out["tokens_p"])
    assert not torch.allclose(net.encode(crop.flip(2), features, maps)[0], out["tokens_n"])
    blind = torch.allclose(net.encode(crop, features, maps.flip(2))[0], out["tokens_n"])
    assert blind == (not landmark_mesh)


def test_every_weight_of_a_stem_network_is_reached_by_the_loss() -> None:
    torch.manual_seed(0)
    net = GeometryNet(GeometryConfig(**SMALL_STEM), 10)
    for p in net.parameters():  # what starts at zero lets no gradient through
        torch.nn.init.normal_(p, std=0.05)
    out = net(*inputs(1))
    sum(out[k].square().mean() for k in ("normal_logit", "point_logit")).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    for layer in net.normal_decoder.merge:  # every map that joins
        assert layer.weight.grad.abs().sum((0, 2, 3)).min() > 0


@pytest.mark.parametrize("changes", [{}, SMALL_STEM])
def test_a_configuration_survives_json(changes: dict) -> None:
    config = GeometryConfig(**changes)
    assert GeometryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configurations_of_before_the_stem_are_read() -> None:
    old = {"width": 32, "layers": 1, "heads": 4, "trunk": True, "landmark_mesh": True, "decoder": [48, 24]}
    config = GeometryConfig.from_dict(old)
    assert config.stem == () and config.decoder == (48, 24)
    assert not any("stem" in name or "learnt" in name for name in GeometryNet(config, 10).state_dict())


def test_encode_gives_the_tokens_of_forward() -> None:
    net = GeometryNet(GeometryConfig(width=32, layers=1), 10)
    n, p = net.encode(*inputs())
    out = net(*inputs())
    assert torch.equal(n, out["tokens_n"])
    assert torch.equal(p, out["tokens_p"])


def test_weights_of_another_kind_are_refused(tmp_path) -> None:
    write_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"kind": "nphm"})
    with pytest.raises(ModelError, match="not a geometry network"):
        GeometryNet.from_pretrained(str(tmp_path / "model.safetensors"))


def test_a_written_network_is_read_back(tmp_path) -> None:
    net = GeometryNet(GeometryConfig(width=32, layers=1), 10)
    path = tmp_path / "model.safetensors"
    write_weights(path, net.state_dict(), {"kind": "geometry", "geometry": net.config.to_dict()})
    again = GeometryNet.from_pretrained(str(path))
    assert np.allclose(again(*inputs())["normals"].detach(), net(*inputs())["normals"].detach(), atol=1e-6)


def test_a_written_network_with_a_stem_is_read_back(tmp_path) -> None:
    net = GeometryNet(GeometryConfig(**SMALL_STEM), 10)
    path = tmp_path / "model.safetensors"
    write_weights(path, net.state_dict(), {"kind": "geometry", "geometry": net.config.to_dict()})
    again = GeometryNet.from_pretrained(str(path))
    assert again.config == net.config
    assert torch.allclose(again.encode(*inputs(1))[0], net.encode(*inputs(1))[0])
