from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.geometry.networks import TRUNK, GeometryConfig, GeometryNet
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
