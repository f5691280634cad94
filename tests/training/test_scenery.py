from __future__ import annotations

import torch
from torch import Tensor

from nphm_track.training import scenery as S
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng

SIZE = 64


def rotation(axis: int, angle: float) -> Tensor:
    generator = torch.zeros(3, 3)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    generator[i, j], generator[j, i] = -angle, angle
    return torch.linalg.matrix_exp(generator)


def camera(focal: float, centre: float, R: Tensor, t: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    K = torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    return K[None], R[None], torch.tensor([t])


def photos() -> Tensor:
    return torch.randint(256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_values_are_continued_from_where_they_are_known() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    values = torch.stack([x, torch.full_like(x, 3.0)])[None]
    known = ((x - 16) ** 2 + (y - 12) ** 2 < 49).float()[None, None]
    filled = S.fill_smoothly(torch.where(known > 0, values, 1e6), known)
    on = known.bool().expand_as(values)
    torch.testing.assert_close(filled[on], values[on])
    torch.testing.assert_close(filled[:, 1], values[:, 1])  # what is the same everywhere stays
    assert filled[:, 0].min() >= 9 and filled[:, 0].max() <= 23
    assert filled[0, 0, 12, 24] > 17.5 > 14.5 > filled[0, 0, 12, 7]
    assert filled[0, 0].diff(dim=1).abs().max() < 4


def test_surroundings_follow_the_head_through_turn_zoom_and_shift() -> None:
    """A plane through the head that turns about the line of sight moves as a similarity, which is known exactly."""
    flip = torch.diag(torch.tensor([1.0, -1, -1]))
    photo = camera(300.0, 144.0, rotation(2, -0.1) @ flip, (0.02, 0.03, 1.0))
    view = camera(90.0, 32.0, rotation(2, 0.3) @ flip, (-0.05, 0.01, 0.8))
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    (K, R, t), (photo_K, photo_R, photo_t) = view, photo
    ray = torch.linalg.inv(K[0]) @ torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    head = R[0].T @ (ray * t[0, 2] - t[0, :, None])
    there = photo_K[0] @ (photo_R[0] @ head + photo_t[0, :, None])
    expected = (there[:2] / there[2]).T.view(1, SIZE, SIZE, 2)
    scenery = S.Scenery(photos(), Renders())
    nowhere = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    torch.testing.assert_close(scenery.follow(expected, nowhere, view, photo), expected, atol=1e-2, rtol=0)
    head_only = (x - 26).square() + (y - 33).square() < 200
    moved = expected + torch.tensor([2.0, -3.0])  # as landmarks' residuals move it
    seen = torch.where(head_only[None, ..., None], moved, 0)
    torch.testing.assert_close(scenery.follow(seen, head_only[None], view, photo), moved, atol=1e-2, rtol=0)


def test_backdrops_are_pictures_of_all_kinds() -> None:
    scenery = S.Scenery(photos(), Renders())
    out = scenery.backdrop(Rng(0), 40, SIZE)
    assert out.shape == (40, 3, SIZE, SIZE) and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, scenery.backdrop(Rng(0), 40, SIZE))
    spread = out.flatten(2).std(2).mean(1)
    assert 0 < (spread < 0.04).float().mean() < 0.4  # plain ones


def test_occluders_and_glasses_touch_some_pictures_and_only_where_they_say() -> None:
    scenery, image = S.Scenery(photos(), Renders()), torch.full((60, 3, SIZE, SIZE), 0.5)
    out, blob = scenery.occlude(Rng(0), image)
    share = blob.flatten(1).float().mean(1)
    assert 0 < (share > 0).sum() < 20 and share.max() < 0.25
    reach = torch.nn.functional.max_pool2d(blob[:, None].float(), 13, 1, 6)[:, 0] > 0  # edges are soft
    changed = (out != image).any(1)
    assert not (changed & ~reach).any() and (out - image).abs().amax(1)[blob].mean() > 0.05

    landmarks = torch.zeros(60, 478, 2)
    for eye, centre in ((S.RIGHT_EYE, 20.0), (S.LEFT_EYE, 44.0)):
        outer, inner = (-6.0, 6.0) if centre < 32 else (6.0, -6.0)
        for point, (dx, dy) in zip(eye, ((outer, 0), (inner, 0), (0, -2), (0, 2)), strict=True):
            landmarks[:, point] = torch.tensor([centre + dx, 24.0 + dy])
    landmarks[:, 10], landmarks[:, 152] = torch.tensor([32.0, 8]), torch.tensor([32.0, 58])
    worn = (scenery.glasses(Rng(0), image, landmarks) - image).abs().amax(1)
    some = worn.flatten(1).amax(1) > 0.05
    assert 0 < some.sum() < 20
    assert worn[some][:, :40].mean() > 10 * worn[some][:, 48:].mean()
    assert not worn[~some].any()
