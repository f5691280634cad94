from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nphm_track.training.muon import Muon, orthogonalise

SHAPES = ((12, 30), (30, 12), (12, 30), (16, 16), (1, 40))


def matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator) for s in SHAPES]


def walk(optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for p, g in zip(optimiser.param_groups[0]["params"], gradients(step), strict=True):
            p.grad = g
        optimiser.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_steps_are_those_of_torch(weight_decay: float) -> None:
    start, ours, theirs = matrices(), matrices(), matrices()
    walk(Muon(ours, lr=0.02, weight_decay=weight_decay), range(5))
    walk(torch.optim.Muon(theirs, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"), range(5))
    for s, a, b in zip(start, ours, theirs, strict=True):
        assert (a - b).norm() < 0.035 * (b - s).norm()  # sums in another order round differently in bfloat16


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 8, 64), (2, 64, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    out = orthogonalise(x).float()
    values = torch.linalg.svdvals(out)
    assert out.shape == shape
    assert values.max() < 1.3
    if shape[1] != shape[2]:  # a square matrix may have values too small to be lifted in five steps
        assert values.min() > 0.6
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert (u.mT @ out @ vh.mT).diagonal(dim1=1, dim2=2).mean() > 0.8


def test_a_matrix_does_not_depend_on_its_batch() -> None:
    x = torch.randn(3, 10, 24, generator=torch.Generator().manual_seed(0))
    x[1] *= 1e4
    alone = torch.cat([orthogonalise(one[None]) for one in x])
    torch.testing.assert_close(orthogonalise(x).float(), alone.float(), atol=0.02, rtol=0)


def test_a_stored_optimiser_goes_on_as_if_never_stopped() -> None:
    whole, broken = matrices(), matrices()
    walk(Muon(whole, lr=0.02, weight_decay=0.1), range(6))
    first = Muon(broken, lr=0.02, weight_decay=0.1)
    walk(first, range(3))
    again = Muon(broken, lr=1.0)
    again.load_state_dict(first.state_dict())
    walk(again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_matrices_without_a_gradient_stay() -> None:
    some = matrices()
    before = [p.detach().clone() for p in some]
    some[2].grad = torch.ones(SHAPES[2])
    Muon(some, lr=0.1, weight_decay=0.1).step()
    moved = [not torch.equal(a, b) for a, b in zip(some, before, strict=True)]
    assert moved == [False, False, True, False, False]
