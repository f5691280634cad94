"""Formats with geometry: read back by another reader, the vertices land where track.npz puts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation, Slerp

from nphm_track.export.formats import export
from nphm_track.export.morphs import Morphs, fit_morphs
from nphm_track.export.options import ExportOptions
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.progress import NullProgress

PX = 0.05
OPTIONS = [ExportOptions(), ExportOptions("mm", "z"), ExportOptions("cm", "y")]
Y_UP = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}
"""From axes with that one up to y up."""


def pinhole(points: np.ndarray, up: str, K: np.ndarray) -> np.ndarray:
    """Pixels of points [V, 3] of the camera-fixed world; whatever the unit, it cancels."""
    x, y, z = (points @ Y_UP[up].T).T
    assert (z < 0).all()
    return np.c_[x / -z * K[0, 0] + K[0, 2], K[1, 2] - y / -z * K[1, 1]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("format", ["obj", "ply"])
def test_sequence(made, tmp_path: Path, format: str, options: ExportOptions) -> None:
    out = export(made.run, format, tmp_path / "out", options)
    manifest = json.loads((out / "export.json").read_text())
    assert (manifest["unit"], manifest["up"]) == (options.unit, options.up)
    assert [f["frame"] for f in manifest["frames"]] == [2 * row for row in made.pixels]  # the lost ones have no file
    assert len(list(out.iterdir())) == len(made.pixels) + 1
    faces = made.run.canonical()[1]
    for (row, expected), frame in zip(made.pixels.items(), manifest["frames"], strict=True):
        mesh = trimesh.load(out / frame["file"], process=False)
        np.testing.assert_array_equal(mesh.faces, faces)
        seen = pinhole(mesh.vertices, options.up, np.array(manifest["camera"]["K"]))
        np.testing.assert_allclose(seen, expected, atol=PX)
        assert frame["time"] == made.run.track.time[row]
        size = np.ptp(mesh.vertices, axis=0).max() / options.scale
        assert 0.1 < size < 0.3  # metres, once the unit is undone


class Glb:
    """A reader of its own: the animation evaluated as the glTF specification says."""

    def __init__(self, path: Path) -> None:
        pygltflib = pytest.importorskip("pygltflib")
        self.file = pygltflib.GLTF2().load(str(path))
        self.blob = self.file.binary_blob()
        self.head = self.file.nodes[0]
        self.primitive = self.file.meshes[self.head.mesh].primitives[0]
        self.channels = {channel.target.path: channel for channel in self.file.animations[0].channels}

    def array(self, index: int) -> np.ndarray:
        accessor = self.file.accessors[index]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]

        def read(view: int, component: int, count: int, columns: int) -> np.ndarray:
            kind = {5126: "<f4", 5125: "<u4"}[component]
            offset = self.file.bufferViews[view].byteOffset
            return np.frombuffer(self.blob, kind, count * columns, offset).reshape(-1, columns)

        if accessor.sparse:
            few = accessor.sparse
            values = np.zeros((accessor.count, width), np.float32)
            rows = read(few.indices.bufferView, few.indices.componentType, few.count, 1)[:, 0]
            assert (np.diff(rows.astype(int)) > 0).all()
            values[rows] = read(few.values.bufferView, accessor.componentType, few.count, width)
        else:
            values = read(accessor.bufferView, accessor.componentType, accessor.count, width)
        if accessor.min:
            np.testing.assert_array_equal(values.min(0), np.float32(accessor.min))
            np.testing.assert_array_equal(values.max(0), np.float32(accessor.max))
        return values

    def track(self, path: str) -> tuple[np.ndarray, np.ndarray, str]:
        sampler = self.file.animations[0].samplers[self.channels[path].sampler]
        times = self.array(sampler.input)[:, 0]
        return times, self.array(sampler.output).reshape(len(times), -1), sampler.interpolation

    def world(self, time: float) -> np.ndarray:
        """Vertices [V, 3] at a moment."""

        def linear(path: str) -> np.ndarray:
            times, values, interpolation = self.track(path)
            assert interpolation == "LINEAR"
            return np.array([np.interp(time, times, column) for column in values.T])

        points = self.array(self.primitive.attributes.POSITION).astype(float)
        for weight, target in zip(linear("weights"), self.primitive.targets, strict=True):
            points = points + weight * self.array(target["POSITION"])
        times, quaternions, _ = self.track("rotation")
        rotation = Slerp(times, Rotation.from_quat(quaternions))(np.clip(time, times[0], times[-1]))
        return rotation.apply(points) + linear("translation")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_glb(made, tmp_path: Path, options: ExportOptions) -> None:
    glb = Glb(export(made.run, "glb", tmp_path / "out.glb", options))
    track = made.run.track
    np.testing.assert_array_equal(glb.array(glb.primitive.indices).reshape(-1, 3), made.run.canonical()[1])
    lens = glb.file.cameras[0].perspective
    focal = track.image_size[1] / (2 * np.tan(lens.yfov / 2))
    across = track.image_size[0] / (2 * np.tan(lens.yfov / 2) * lens.aspectRatio)
    K = np.array([[across, 0, track.K[0, 2]], [0, focal, track.K[1, 2]], [0, 0, 1]])  # a glTF camera is centred
    tilt = Rotation.from_quat(glb.file.nodes[1].rotation).as_matrix()
    for row, expected in made.pixels.items():
        in_camera = glb.world(track.time[row] - track.time[0]) @ tilt
        np.testing.assert_allclose(pinhole(in_camera, "y", K), expected, atol=PX)
    assert glb.file.asset.extras["morph_largest_error_px"] < PX
    assert (glb.file.asset.extras["frame_rate"], glb.file.asset.extras["frames"]) == (25, 13)
    normals = glb.array(glb.primitive.attributes.NORMAL)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    points = glb.array(glb.primitive.attributes.POSITION).astype(float)
    for weight, target in zip(glb.file.meshes[0].weights, glb.primitive.targets, strict=True):
        points = points + weight * glb.array(target["POSITION"])
    np.testing.assert_allclose(points, options.points(made.run.canonical()[0]), atol=1e-6 * options.scale)
    assert ((normals * points).sum(1) > 0).all()
    weights = glb.track("weights")[1]
    assert weights.min() >= 0 and weights.max() <= 1  # Blender clamps others


def test_glb_hides_the_head_while_it_is_lost(made, tmp_path: Path) -> None:
    glb = Glb(export(made.run, "glb", tmp_path / "out.glb"))
    times, scale, interpolation = glb.track("scale")
    assert interpolation == "STEP"
    np.testing.assert_allclose(times, made.run.track.time - made.run.track.time[0])
    np.testing.assert_array_equal(scale[:, 0], [1, 1, 1, 0, 1, 1, 0])
    assert len(glb.track("rotation")[0]) == len(made.pixels)
    assert all(np.isfinite(glb.array(i)).all() for i in range(len(glb.file.accessors)))


def test_glb_is_read_by_trimesh(made, tmp_path: Path) -> None:
    scene = trimesh.load(export(made.run, "glb", tmp_path / "out.glb"))
    (head,) = scene.geometry.values()
    assert head.faces.shape == made.run.canonical()[1].shape


class TestMorphs:
    def fit(self, made) -> Morphs:
        return fit_morphs(made.run, np.array(list(made.pixels)), NullProgress())

    def test_three_motions_need_three_targets(self, made) -> None:
        morphs = self.fit(made)
        assert len(morphs.targets) == 3
        assert morphs.weights.min() == 0 and morphs.weights.max() == 1
        neutral = morphs.base + np.tensordot(morphs.rest, morphs.targets, 1)
        np.testing.assert_allclose(neutral, made.run.canonical()[0], atol=1e-6)
        for row, weights in zip(made.pixels, morphs.weights, strict=True):
            points = morphs.base + np.tensordot(weights, morphs.targets, 1)
            np.testing.assert_allclose(points, made.run.mesh(row)[0], atol=1e-6)

    def test_size_is_bounded_and_the_error_told(self, made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nphm_track.export.morphs.MAX_BYTES", made.run.canonical()[0].nbytes)
        morphs = self.fit(made)
        assert len(morphs.targets) == 1
        pixels = [
            np.linalg.norm(morphs.base + w[0] * morphs.targets[0] - made.run.mesh(row)[0], axis=1).max()
            * 150 / made.run.track.t[row, 2]
            for row, w in zip(made.pixels, morphs.weights, strict=True)
        ]  # fmt: skip
        assert morphs.largest_error_px == pytest.approx(max(pixels), rel=1e-3)

    def test_head_that_does_not_move_needs_none(self, made, tmp_path: Path) -> None:
        neutral = made.run.path / "canonical.ply"
        for row in made.pixels:
            made.run.mesh_path(row).write_bytes(neutral.read_bytes())
        assert len(self.fit(made).targets) == 0
        glb = Glb(export(made.run, "glb", tmp_path / "out.glb"))
        assert not glb.primitive.targets and "weights" not in glb.channels

    def test_frames_outside_the_sample_are_measured(self, made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nphm_track.export.morphs.SAMPLE", 2)
        monkeypatch.setattr("nphm_track.export.morphs.ROUNDS", 1)
        morphs = self.fit(made)
        assert morphs.weights.shape == (5, 2) and morphs.largest_error_px > PX

    def test_frames_that_are_off_are_the_next_sample(self, made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nphm_track.export.morphs.SAMPLE", 2)
        assert self.fit(made).largest_error_px < PX

    def test_vertices_at_rest_are_left_out_of_the_file(self, made, tmp_path: Path) -> None:
        """A wink in an otherwise still head: the target lists the few vertices that move."""
        neutral, faces = made.run.canonical()
        for k, row in enumerate(made.pixels):
            points = neutral.copy()
            points[:5, 2] += 0.002 * k
            write_ply(made.run.mesh_path(row), points, faces)
        glb = Glb(export(made.run, "glb", tmp_path / "out.glb"))
        assert len(glb.primitive.targets) == 1
        accessor = glb.file.accessors[glb.primitive.targets[0]["POSITION"]]
        assert accessor.sparse.count == 5
        assert glb.file.asset.extras["morph_largest_error_px"] < PX


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_usd(made, tmp_path: Path, options: ExportOptions) -> None:
    pytest.importorskip("pxr")
    from pxr import Gf, Usd, UsdGeom

    out = export(made.run, "usd", tmp_path / "out", options)
    track = made.run.track
    stage = Usd.Stage.Open(str(out / "head.usdc"))
    assert UsdGeom.GetStageMetersPerUnit(stage) == pytest.approx(1 / options.scale)
    assert UsdGeom.GetStageUpAxis(stage) == options.up.upper()
    assert stage.GetStartTimeCode() == 0 and stage.GetEndTimeCode() == pytest.approx(12)
    assert stage.GetTimeCodesPerSecond() == 25
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/World/Head/Mesh"))
    np.testing.assert_array_equal(np.reshape(mesh.GetFaceVertexIndicesAttr().Get(), (-1, 3)), made.run.canonical()[1])
    camera = UsdGeom.Camera(stage.GetPrimAtPath("/World/Camera"))
    film = camera.GetHorizontalApertureAttr().Get() / 10 / options.scale  # tenths of the stage's unit
    assert film == pytest.approx(0.036)
    codes = (track.time - track.time[0]) * 25
    for row, expected in made.pixels.items():
        frustum = camera.GetCamera(codes[row]).frustum
        matrix = np.array(mesh.ComputeLocalToWorldTransform(codes[row]))
        points = np.c_[np.array(mesh.GetPointsAttr().Get(codes[row])), np.ones(162)] @ matrix
        clip = points @ np.array(frustum.ComputeViewMatrix() * frustum.ComputeProjectionMatrix())
        seen = (clip[:, :2] / clip[:, 3:] * (1, -1) + 1) / 2 * track.image_size
        np.testing.assert_allclose(seen, expected, atol=PX)
        extent = np.array(mesh.GetExtentAttr().Get(codes[row]))
        np.testing.assert_allclose(extent[1], np.array(mesh.GetPointsAttr().Get(codes[row])).max(0))
    imageable = UsdGeom.Imageable(stage.GetPrimAtPath("/World/Head"))
    visible = [imageable.ComputeVisibility(code) == "inherited" for code in codes]
    assert visible == [True, True, True, False, True, True, False]
    assert len(mesh.GetPointsAttr().GetTimeSamples()) == len(made.pixels)
    assert isinstance(camera.GetCamera(0).frustum, Gf.Frustum)
    plate = camera.GetPrim().GetAttribute("plate:file").Get()  # relative, so that both can be moved together
    assert plate.path.startswith("../") and Path(plate.resolvedPath) == Path(made.run.info.input.path)


def test_usd_with_plate_images(made, tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    from pxr import Usd

    out = export(made.run, "usd", tmp_path / "out", ExportOptions(images=True))
    stage = Usd.Stage.Open(str(out / "head.usdc"))
    plate = stage.GetPrimAtPath("/World/Camera").GetAttribute("plate:file")
    assert len(plate.GetTimeSamples()) == 7  # lost frames have a picture too
    for code in plate.GetTimeSamples():
        assert Path(plate.Get(code).resolvedPath).is_file()
