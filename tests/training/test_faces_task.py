"""What the faces task adds to its parts: renders trained on again, and networks that grow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nphm_track.geometry.landmark_mesh import MAP_CHANNELS
from nphm_track.geometry.networks import DENSE, TRUNK, GeometryConfig, GeometryNet
from nphm_track.training.face_batch import FaceBatch
from nphm_track.training.faces_task import Faces, Replay, grown
from nphm_track.training.rng import Rng


def batch_of(first: int, count: int) -> FaceBatch:
    """Renders numbered from ``first`` on; the number is in every column."""
    number = torch.arange(first, first + count).float()
    columns = {name: number[:, None] for name in FaceBatch.__dataclass_fields__ if name != "features"}
    return FaceBatch(**columns, features={8: number[:, None]})  # type: ignore[arg-type]


def test_kept_renders_join_fresh_ones_whole() -> None:
    replay = Replay(6)
    first = replay.mix(batch_of(0, 4), 8, Rng(0))
    assert first.w[:, 0].tolist() == [0, 1, 2, 3]  # nothing is kept yet
    for k in range(1, 5):
        mixed = replay.mix(batch_of(4 * k, 4), 8, Rng(k))
        assert mixed.w[:4, 0].tolist() == list(range(4 * k, 4 * k + 4))
        again = mixed.w[4:, 0]
        assert len(again) == 4
        assert (again < 4 * k).all()
        assert (again >= 4 * k - 6).all()  # the oldest ones are gone
        for column in (*mixed.columns().values(), mixed.features[8]):
            assert torch.equal(column, mixed.w)  # one render's columns stay together
    assert replay.columns["crop"].dtype == torch.half
    assert replay.columns["w"].dtype == torch.float32


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, dict[int, Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    features = {s: torch.randn(2, c, s, s, generator=g) for s, c in TRUNK.items()}
    return torch.rand(2, 3, 256, 256, generator=g), features, torch.randn(2, MAP_CHANNELS, DENSE, DENSE, generator=g)


@torch.no_grad()
def test_a_grown_network_computes_the_same_and_learns_in_its_new_parts(
    inputs: tuple[Tensor, dict[int, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 1, "heads": 2, "decoder": (8, 4)}
    small = Faces(GeometryNet(GeometryConfig(**sizes), 5), torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    for decoder in (small.geometry.normal_decoder, small.geometry.point_decoder):
        torch.nn.init.normal_(decoder.head.weight)
    large = Faces(GeometryNet(GeometryConfig(**sizes, stem=(6, 8)), 5), torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    large.load_state_dict(grown(large, small.state_dict()))
    one, other = (m.geometry(*inputs) for m in (small, large))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)
    with torch.enable_grad():
        out = large.geometry(*inputs)
        (out["normals"][:, 0].mean() + out["points"].mean()).backward()
    assert large.geometry.normal_encoder.learnt.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_weights_of_the_same_sizes_pass_through() -> None:
    net = Faces(GeometryNet(GeometryConfig(width=32, layers=1, heads=2, stem=(6, 8)), 5), torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    state = net.state_dict()
    same = grown(net, state)
    assert same.keys() == state.keys()
    assert all(torch.equal(same[k], state[k]) for k in state)


def test_landmarks_of_the_mean_head_are_the_head_models() -> None:
    net, other = (
        Faces(GeometryNet(GeometryConfig(width=32, layers=1, heads=2), 5), torch.nn.Linear(2, 2)) for _ in "ab"
    )
    net.geometry.mean_landmarks += 1.0
    assert torch.equal(grown(net, other.state_dict())["geometry.mean_landmarks"], net.geometry.mean_landmarks)
