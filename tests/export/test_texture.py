"""Textures: a painted head that is filmed gives its paint back, and the GLB carries it where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track import Run, TrackOptions
from nphm_track.errors import InputError
from nphm_track.export import texture
from nphm_track.export.formats import export
from nphm_track.export.frames import silhouette
from nphm_track.export.options import ExportOptions
from nphm_track.faces.mattes import MatteNetworks
from nphm_track.heads.template import load_template
from nphm_track.heads.texels import texels
from nphm_track.models import sha256
from nphm_track.rendering.ply import write_ply
from nphm_track.rendering.rasteriser import interpolate, rasterise
from nphm_track.tracking.records import InputInfo, Track
from nphm_track.tracking.run_folder import RunFolder

SIZE, YAWS = (256, 256), (-45, -20, 0, 20, 45)
PAINT = np.array([[0.75, 0.5, 0.4], [0.3, 0.45, 0.6]])
"""Of the person's left half and the right one, as a screen shows them."""


def painted(points: np.ndarray) -> np.ndarray:
    return PAINT[(points[:, 0] < 0).astype(int)]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texture, "SIZE", 256)
        patch.setattr(MatteNetworks, "person", lambda self, image, head=None: np.ones(image.shape[:2], np.float32))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A head of two colours in even light that turns; in one frame a green bar hides half of it."""
    path, n, template = tmp_path_factory.mktemp("filmed"), len(YAWS), load_template()
    R = np.diag([1.0, -1, -1]) @ Rotation.from_euler("y", np.array(YAWS)[:, None], degrees=True).as_matrix()
    t, K = np.tile([0, 0.03, 0.6], (n, 1)), np.array([[420.0, 0, 128], [0, 420, 128], [0, 0, 1]])
    with av.open(str(path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        for row in range(n):
            drawn = rasterise(template.neutral @ R[row].T + t[row], template.faces, K, SIZE)
            image = (255 * interpolate(drawn, template.faces, painted(template.neutral))).astype(np.uint8)
            if row == 2:
                image[:, 120:180] = (0, 255, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    points = np.full((n, 478, 2), 100, np.float32)
    track = Track(
        frame=np.arange(n), time=np.arange(n) / 25, status=np.zeros(n, np.uint8), confidence=np.ones(n, np.float32),
        z_id=np.zeros(8, np.float32), z_ex=np.zeros((n, 4), np.float32), R=R, t=t, K=K, image_size=np.array(SIZE),
        landmarks=points, landmarks_fit=points[:, :68], blendshapes=np.zeros((n, 52), np.float32),
        landmark_error_px=np.ones(n, np.float32), normal_error_deg=np.ones(n, np.float32),
    )  # fmt: skip
    clip = path / "clip.mp4"
    described = InputInfo(
        path=str(clip), sha256=sha256(clip), size=clip.stat().st_size, width=SIZE[0], height=SIZE[1], fps=25
    )
    folder = RunFolder.open(path / "run", described, TrackOptions(overlay=False))
    track.save(folder.track)
    write_ply(folder.canonical, template.neutral, template.faces)
    folder.mesh_path(0).parent.mkdir()
    for row in range(n):
        write_ply(folder.mesh_path(row), template.neutral, template.faces)
    return folder.finish(quality=track.quality())


@pytest.fixture(scope="module")
def out(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, "texture", tmp_path_factory.mktemp("texture") / "out")


def test_the_paint_comes_back(out: Path) -> None:
    template = load_template()
    tile = texels(template, 0, 256)
    picture = np.asarray(Image.open(out / "skin.1001.png"))[tile.row, tile.column] / 255
    points = tile.interpolate(template.neutral)
    front = (points[:, 2] > 0.04) & (np.abs(points[:, 0]) > 0.005) & (tile.corners < template.parts["face"][1]).all(1)
    front &= (points[:, 1] > -0.08) & (points[:, 1] < 0.08)
    off = np.abs(picture - painted(points)).max(1)[front]
    assert np.median(off) < 0.04 and np.quantile(off, 0.95) < 0.12  # of which light that is not there is the most


def test_nothing_is_left_black(out: Path) -> None:
    for name in texture.FILES:
        picture = np.asarray(Image.open(out / name))
        assert picture.shape == (256, 256, 3) and picture.max(2).min() > 40


def test_colours_run_over_the_seam_between_the_tiles(out: Path) -> None:
    template = load_template()
    ends = []
    for tile, name in enumerate(texture.FILES):
        t = texels(template, tile, 256)
        colour = np.zeros((len(template.neutral), 3))
        nearest = t.corners[np.arange(len(t.row)), t.shares.argmax(1)]
        colour[nearest] = np.asarray(Image.open(out / name))[t.row, t.column]
        ends.append((set(nearest.tolist()), colour))
    shared = sorted(ends[0][0] & ends[1][0] & set(range(template.parts["head"][1])))
    assert len(shared) > 50
    assert np.median(np.abs(ends[0][1][shared] - ends[1][1][shared]).max(1)) < 12


def test_a_side_that_was_not_seen_has_the_colours_of_the_other() -> None:
    template = load_template()
    tile = texels(template, 0, 256)
    points = tile.interpolate(template.neutral)
    stripes = np.stack([0.5 + 0.3 * np.sin(100 * points[:, 1])] * 3, 1).astype(np.float32)
    left, right = points[:, 0] > 0.005, points[:, 0] < -0.005
    colour, weight = texture._mirrored(tile, np.where(right[:, None], 0, stripes), np.where(right, 0, 1.0))
    np.testing.assert_array_equal(colour[left], stripes[left])
    assert np.quantile(np.abs(colour - stripes)[right], 0.99) < 0.02 and weight[right].min() == 1


def test_ears_and_necks_are_believed_where_they_look_like_skin() -> None:
    """Dark hair or a collar there counts little, and keeps its weight on the forehead."""
    template = load_template()
    tiles = [texels(template, k, 256) for k in range(2)]
    points = [tile.interpolate(template.neutral) for tile in tiles]
    dark = [(np.abs(p[:, 0]) > 0.08) | (p[:, 1] > 0.05) | (p[:, 1] < -0.11) for p in points]
    seen = [(np.where(d[:, None], 0.02, 0.4) * np.ones(3), np.full(len(d), 0.3)) for d in dark]
    for (_, weight), p, d in zip(texture._plausible(template, tiles, seen), points, dark, strict=True):
        ear = (np.abs(p[:, 0]) > 0.08) & (np.abs(p[:, 1]) < 0.03) & (np.abs(p[:, 2] + 0.03) < 0.02)
        assert np.allclose(weight[d & (p[:, 1] > 0.07)], 0.3)
        assert (weight[ear] < 0.06).all() and np.allclose(weight[~d], 0.3)


def test_obj_names_its_pictures(out: Path) -> None:
    text = (out / "head.obj").read_text().splitlines()
    assert "mtllib head.mtl" in text
    assert all(
        (out / line.split()[1]).is_file() for line in (out / "head.mtl").read_text().split("\n") if "map" in line
    )
    corners = np.array([[int(n) for c in line.split()[1:] for n in c.split("/")] for line in text if line[:2] == "f "])
    assert corners[:, ::2].max() <= load_template().skin_size and corners[:, 1::2].max() <= len(load_template().uv)


def test_silhouettes_end_at_the_neck(run: Run) -> None:
    template, head = load_template(), silhouette(run, 2)
    drawn = rasterise(template.neutral @ run.track.R[2].T + run.track.t[2], template.faces, run.track.K, SIZE)
    whole = drawn.face_id >= 0
    assert not (head & ~whole).any() and whole.sum() - head.sum() > 1000
    assert np.flatnonzero(head.any(1))[-1] < np.flatnonzero(whole.any(1))[-1] - 10
    np.testing.assert_array_equal(head[:100], whole[:100])


def test_runs_without_the_template_have_no_texture(made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have no texture coordinates"):
        export(made.run, "texture", tmp_path / "out")
    with pytest.raises(InputError, match="have no texture coordinates"):
        export(made.run, "glb", tmp_path / "out.glb", ExportOptions(textured=True))
    with pytest.raises(InputError, match="--textured goes with glb"):
        export(made.run, "obj", tmp_path / "out", ExportOptions(textured=True))
