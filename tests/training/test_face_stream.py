"""Renders drawn on the fly: what a pixel is said to show must be what lies under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from nphm_track.errors import InputError
from nphm_track.faces.roi import crop_points_to_frame, frame_points_to_crop
from nphm_track.training import face_stream as F
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import landmark_basis
from nphm_track.training.points_task import PointStream
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng
from nphm_track.training.texture_bank import PICTURE, pixels_of, sample_pixels

LANDMARKS = str(Path(__file__).parents[2] / "training" / "assets" / "ict_landmarks478.npz")
SIZES = ((576, 480), (300, 400), (288, 288))
SHIFT = (4.0, -2.0)
"""Pixels by which the landmarks of the first photo lie off the fitted head."""


@pytest.fixture(scope="module")
def files(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """ICT's folder, a folder of smooth pictures, and fits that see frontal heads in them."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    heads = load_ict(shared_data / "ict_facekit")
    basis = landmark_basis(heads, LANDMARKS)
    w, e = rng.normal(size=(3, 100)) * 0.5, np.zeros((3, len(heads.expression_names)))
    e[:, :2] = 1.08, -0.04  # fits may leave the range a little
    R, t = np.diag([1.0, -1, -1]), np.array([0.01, 0.02, 1.1])
    K = np.stack([[[2 * max(s), 0, s[0] / 2], [0, 2 * max(s), s[1] / 2], [0, 0, 1]] for s in SIZES])
    camera = basis.points(torch.from_numpy(w), torch.from_numpy(e)) @ torch.from_numpy(R).T + torch.from_numpy(t)
    landmarks = torch.cat([pixels_of(camera, torch.from_numpy(K)), camera[..., 2:]], -1)
    landmarks[0, :, :2] += torch.tensor(SHIFT)
    for k, (width, height) in enumerate(SIZES):
        picture = gaussian_filter(rng.normal(size=(height, width, 3)), (12, 12, 0))
        Image.fromarray((127 + 300 * picture / np.abs(picture).max() / 3).astype(np.uint8)).save(folder / f"{k}.png")
    fit = {"w": w, "e": e, "K": K, "R": np.stack([R] * 3), "t": np.stack([t] * 3), "landmarks": landmarks.numpy()}
    fit = {name: value.astype(np.float32) for name, value in fit.items()}
    np.savez(
        folder / "fits.npz", **fit, size=np.array(SIZES, np.float32), heldout=np.array([False, False, True]),
        photo=np.array(["0.png", "1.png", "2.png"]),
    )  # fmt: skip
    return shared_data / "ict_facekit", folder, folder / "fits.npz"


@pytest.fixture(scope="module")
def stream(files: tuple[Path, Path, Path]) -> F.FaceStream:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "EXPRESSIONS", 200)  # drawn in a slow loop
        return F.FaceStream.open(*files, landmarks=LANDMARKS)


@pytest.fixture(scope="module")
def batch(stream: F.FaceStream) -> F.FaceBatch:
    return stream.draw(7, 4)


def test_photos_lie_on_their_heads(stream: F.FaceStream) -> None:
    bank, heads = stream.bank, stream.heads
    assert len(bank) == 2 and bank.image.shape == (2, 3, PICTURE, PICTURE)
    own = pixels_of(heads.vertices(bank.w, bank.e) @ bank.R.mT + bank.t[:, None], bank.K)
    move = torch.tensor([SHIFT, (0, 0)]) * PICTURE / torch.tensor([[576.0], [400]])
    middle = heads.pull.sum(1) > 0.99
    assert middle.float().mean() > 0.1
    moved = (own + move[:, None])[:, middle]
    torch.testing.assert_close(bank.uv[:, middle], moved, atol=0.02, rtol=0)
    far = heads.pull.sum(1) < 1e-3
    torch.testing.assert_close(bank.uv[:, far], own[:, far], atol=0.02, rtol=0)
    shown = sample_pixels(bank.image.float() / 255, bank.uv)
    torch.testing.assert_close(bank.colour[bank.direct].float(), shown[bank.direct], atol=2e-3, rtol=0)


def test_a_frontal_photo_shows_the_front_and_lends_its_colours_to_the_rest(stream: F.FaceStream) -> None:
    bank, heads = stream.bank, stream.heads
    forehead = heads.skin & (heads.neutral[:, 1] > 0.055) & (heads.neutral[:, 0].abs() < 0.04)
    assert bank.direct[:, forehead].float().mean() > 0.98
    assert not bank.direct[:, heads.neutral[:, 2] < -0.1].any() and not bank.direct[:, heads.is_pocket].any()
    assert bank.colour.isfinite().all() and bank.colour.min() >= 0 and bank.colour.max() <= 1
    assert bank.shade[:, heads.skin].float().mean() == pytest.approx(1, abs=0.1)
    assert bank.light.isfinite().all()


def test_a_photo_is_read_in_one_split_only(files: tuple[Path, Path, Path], stream: F.FaceStream) -> None:
    _, folder, fits = files
    heldout = F.TextureBank.read(fits, folder, stream.heads, heldout=True)
    assert len(heldout) == 1 and not torch.equal(heldout.image[0], stream.bank.image[0])
    assert len(F.TextureBank.read(fits, folder, stream.heads, heldout=False, limit=1)) == 1
    with pytest.raises(InputError, match=r"build_photo_fits\.py"):
        F.TextureBank.read(folder / "none.npz", folder, stream.heads, heldout=False)
    other = stream.with_photos(heldout)
    assert other.scenery.photos is heldout.image and stream.scenery.photos is stream.bank.image


def test_shapes_and_ranges(stream: F.FaceStream, batch: F.FaceBatch) -> None:
    shapes = {
        "crop": (3, 256, 256), "points": (3, 128, 128), "normals": (3, 128, 128), "mask": (128, 128), "w": (100,),
        "e": (len(stream.heads.names),), "K": (3, 3), "R": (3, 3), "t": (3,), "size": (2,), "roi": (5,),
        "landmarks": (478, 3), "crop_landmarks": (478, 3), "scores": (52,), "valid": (),
    }  # fmt: skip
    assert {name: tuple(x.shape[1:]) for name, x in batch.columns().items()} == shapes
    assert all(len(x) == 4 and x.isfinite().all() for x in batch.columns().values())
    assert {s: x.shape[-1] for s, x in batch.features.items()} == {s: s for s in batch.features}
    assert batch.crop.min() >= 0 and batch.crop.max() <= 1
    assert batch.crop.flatten(1).std(1).min() > 0.02
    assert set(batch.valid.tolist()) <= {0.0, 1.0} and set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.e.min() >= 0 and batch.e.max() <= 1
    assert (batch.size.amax(1) == 320).all() and batch.size.min() > 170
    assert (batch.R @ batch.R.mT - torch.eye(3)).abs().max() < 1e-5 and (torch.linalg.det(batch.R) > 0).all()


def test_closed_lids_hide_the_eyes_of_every_head(stream: F.FaceStream) -> None:
    heads = stream.heads
    w = torch.randn(6, 100, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    K = torch.tensor([[1100.0, 0, 128], [0, 1100, 128], [0, 0, 1]]).expand(len(w), 3, 3)
    eyes = []
    for closed in (0.0, 1.0):
        e = torch.zeros(len(w), len(heads.names))
        e[:, [lid.weight for lid in heads.lids]] = closed
        camera = heads.vertices(w, e) @ torch.diag(torch.tensor([1.0, -1, -1])) + torch.tensor([0, 0, 1.1])
        seen = F.rasterise_heads(heads, camera, K)
        eyes.append((heads.is_eye[heads.faces[seen.face_id.clamp_min(0)]].all(-1) & (seen.face_id >= 0)).sum((1, 2)))
        towards = heads.drawer.interpolate(seen, heads.drawer.normals(camera))[..., 2]
        assert (towards > 0.3).float().mean() < 1e-3
    assert (eyes[0] > 60).all() and (eyes[1] < 0.2 * eyes[0]).all()


def test_codes_are_those_of_people_some_of_them_the_photos_own(stream: F.FaceStream) -> None:
    row = torch.arange(400) % 2
    w, e = stream._codes(Rng(0), row)
    assert e.min() >= 0 and e.max() <= 1 and w.abs().max() < 6
    assert w.std() == pytest.approx(1, abs=0.15)
    assert (w.mean(0) - stream.bank.w.mean(0)).abs().mean() < 0.1
    own = (e == stream.bank.e[row].clamp(0, 1)).all(1).float().mean()
    assert 0.08 < own < 0.3
    near = (w - stream.bank.w[row]).norm(dim=1) < 5
    assert 0.05 < near.float().mean() < 0.3


def test_a_batch_follows_its_seed(stream: F.FaceStream, batch: F.FaceBatch) -> None:
    first, again = stream.draw(1, 1), stream.draw(1, 1)
    assert all(torch.equal(x, getattr(again, name)) for name, x in first.columns().items())
    assert not torch.equal(first.crop[0], batch.crop[0]) and not torch.equal(first.w[0], batch.w[0])


def test_target_points_lie_under_their_own_pixels(batch: F.FaceBatch) -> None:
    K, turn = F.roi_cameras(batch.K, batch.roi, 128)
    camera = batch.points.flatten(2).mT @ batch.R.mT + batch.t[:, None]
    pixels = pixels_of(camera @ turn.mT, K).view(4, 128, 128, 2)
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    error = (pixels - torch.stack([x, y], -1)).norm(dim=-1)
    mask = batch.mask > 0.5
    assert mask.flatten(1).float().mean(1).min() > 0.05
    assert error[mask].max() < 1 and error[mask].median() < 0.05
    # The same by way of the frame, without the crop's own camera.
    frame = torch.cat([pixels_of(camera, batch.K), camera[..., 2:]], -1)
    crop = frame_points_to_crop(frame, batch.roi, 128)[..., :2].view(4, 128, 128, 2)
    torch.testing.assert_close(crop[mask], pixels[mask], atol=0.01, rtol=0)


def test_target_normals_are_unit_look_at_the_camera_and_fit_the_points(batch: F.FaceBatch) -> None:
    mask = batch.mask > 0.5
    normals, points = batch.normals.movedim(1, -1), batch.points.movedim(1, -1)
    torch.testing.assert_close(normals[mask].norm(dim=1), torch.ones(int(mask.sum())))
    camera = points.flatten(1, 2) @ batch.R.mT + batch.t[:, None]
    facing = -((normals.flatten(1, 2) @ batch.R.mT) * torch.nn.functional.normalize(camera, dim=-1)).sum(-1)
    assert (facing.view_as(mask)[mask] > 0).float().mean() > 0.98
    step = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    inner = mask[:, 1:-1, 1:-1] & mask[:, 1:-1, 2:] & mask[:, 1:-1, :-2] & mask[:, 2:, 1:-1] & mask[:, :-2, 1:-1]
    flat = torch.nn.functional.normalize(torch.linalg.cross(step[1], step[0], dim=-1), dim=-1)
    assert (flat * normals[:, 1:-1, 1:-1]).sum(-1)[inner].median() > 0.97


def test_crops_lie_where_the_rois_say(stream: F.FaceStream, batch: F.FaceBatch) -> None:
    torch.testing.assert_close(
        frame_points_to_crop(batch.landmarks, batch.roi), batch.crop_landmarks, atol=1e-3, rtol=0
    )
    twin = crop_points_to_frame(batch.crop_landmarks.numpy(), batch.roi.numpy())
    np.testing.assert_allclose(batch.landmarks.numpy(), twin, atol=1e-3)
    true = stream.heads.landmarks(batch.w, batch.e) @ batch.R.mT + batch.t[:, None]
    frame = torch.cat([pixels_of(true, batch.K), true[..., 2:]], -1)
    assert ((frame[..., :2] >= 0) & (frame[..., :2] <= batch.size[:, None])).float().mean() > 0.97
    crop = frame_points_to_crop(frame, batch.roi)[..., :2]
    assert (crop.amin(1) > 10).all() and (crop.amax(1) < 246).all()
    assert ((crop[:, 263] - crop[:, 33])[:, 1].abs() < 20).all()  # the eyes lie level


def test_lids_that_close_are_skin_and_others_stay(stream: F.FaceStream) -> None:
    bank, heads = stream.bank, stream.heads
    colour, shade, open_eyes = bank.colour.float(), bank.shade.float(), bank.e.clone()
    closed = open_eyes.clone()
    closed[0, heads.lids[0].weight] = 1
    for e, lids in ((open_eyes, []), (closed, heads.lids[:1])):
        new_colour, new_shade, direct = stream._close_lids(Rng(0), colour, shade, bank.direct, open_eyes, e)
        touched = torch.zeros_like(direct)
        for lid in lids:
            touched[0, lid.skin] = True
            assert not direct[0, lid.skin].any()
            assert not torch.equal(new_colour[0, lid.skin], colour[0, lid.skin])
        assert torch.equal(direct[~touched], bank.direct[~touched])
        assert torch.equal(new_colour[~touched], colour[~touched])
        assert torch.equal(new_shade[~touched], shade[~touched])


def test_soft_colours_are_means_of_the_skin_around(stream: F.FaceStream) -> None:
    heads, bank = stream.heads, stream.bank
    place = heads.neutral.clone()
    for _ in range(24):
        place = heads.averaging @ place
    moved = (place - heads.neutral).norm(dim=-1)
    assert torch.equal(place[~heads.flesh], heads.neutral[~heads.flesh])
    assert 0.0001 < moved[heads.skin].median() < 0.004  # around themselves
    own = (bank.colour / bank.shade[..., None]).float()
    assert (bank.soft[:, heads.skin].float().std(1) < own[:, heads.skin].std(1)).all()
    torch.testing.assert_close(bank.soft[:, heads.skin].float().mean(1), own[:, heads.skin].mean(1), atol=0.02, rtol=0)


def test_skin_is_mixed_softly_and_eyes_are_left_alone(stream: F.FaceStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "renders", Renders(mixed=1))
    monkeypatch.setattr(stream, "occlusion", torch.ones_like(stream.occlusion))
    row = torch.tensor([0, 1, 1, 0])
    factor = stream._mix(Rng(4, "cpu"), row)
    flesh = stream.heads.flesh
    assert (factor[:, ~flesh] == 1).all() and (factor[:, flesh] != 1).any(-1).float().mean() > 0.5
    mixed, soft = factor * stream.bank.soft[row].float(), stream.bank.soft.float()
    inside = ((factor > 0.3) & (factor < 3))[:, flesh]
    low, high = (x[flesh] for x in (soft.amin(0) - 1e-3, soft.amax(0) + 1e-3))
    assert (((mixed[:, flesh] > low) & (mixed[:, flesh] < high)) | ~inside).all()
    monkeypatch.setattr(stream, "renders", Renders(mixed=0))
    assert (stream._mix(Rng(4, "cpu"), row) == 1).all()


def test_paint_knows_the_parts_of_the_face(stream: F.FaceStream) -> None:
    painter, heads = stream.painter, stream.heads
    colour = painter(Rng(1), 40)
    assert colour.shape == (40, len(heads.neutral), 3) and colour.isfinite().all() and colour.min() >= 0
    clay = colour.std(1).amax(1) == 0
    assert 0.2 < clay.float().mean() < 0.7
    skinned = colour[~clay]
    cheek = heads.skin & ~painter.lips & ~(painter.brow < 0.006)
    assert (skinned[:, painter.lips, 1].mean(1) < skinned[:, cheek, 1].mean(1)).all()
    assert (skinned[:, painter.brow < 0.002].mean((1, 2)) < skinned[:, cheek].mean((1, 2))).all()
    assert (skinned[:, painter.eye & (painter.radius < 0.0025)] < 0.03).all()


@pytest.fixture(scope="module")
def points(stream: F.FaceStream) -> PointStream:
    """The same heads and photos, drawn for points."""
    out = PointStream.__new__(PointStream)
    out.__dict__ = dict(stream.__dict__)
    return out


def test_points_of_mirrored_pictures_are_the_other_sides(points: PointStream) -> None:
    heads = points.heads
    vertex = heads.skin.nonzero()[::40, 0]
    vertex = torch.cat([vertex, heads.mirror[vertex]]).unique()
    twin = torch.searchsorted(vertex, heads.mirror[vertex])
    plain, some = (points.draw_points(3, 6, vertex, mirror) for mirror in (None, twin))
    flipped = (plain.crop != some.crop).flatten(1).any(1)
    assert 0 < flipped.sum() < 6
    torch.testing.assert_close(some.crop[flipped], plain.crop[flipped].flip(-1))
    torch.testing.assert_close(some.xy[flipped, :, 0], 256 - plain.xy[flipped][:, twin, 0], atol=1e-3, rtol=1e-4)
    expected = torch.where(flipped[:, None], plain.depth()[:, twin], plain.depth())
    torch.testing.assert_close(some.depth(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(some.visible[flipped], plain.visible[flipped][:, twin])
    torch.testing.assert_close(pixels_of(some.camera, some.K), some.xy, atol=1e-3, rtol=1e-4)
    found = some.valid > 0
    assert found.float().mean() > 0.5
    nose = some.landmarks[found, 4, :2] - pixels_of(some.true_landmarks, some.K)[found, 4]
    assert nose.norm(dim=-1).median() < 15


def test_even_light_leaves_no_shadow(points: PointStream, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = []
    for even in (0.0, 1.0):
        monkeypatch.setattr(points, "renders", Renders(painted=1, even_light=even))
        scene = points.scene(Rng(5), 8)
        face = (scene.fragments.face_id >= 0) & (scene.at["in_face"] > 0.99)
        lit = [x[inside].mean(1) for x, inside in zip(scene.at["ratio"], face, strict=True)]
        spread.append(float(torch.stack([x.std() / x.mean() for x in lit]).mean()))
    assert spread[1] < 0.3 * spread[0]
