"""A run in the template's topology as animated GLB and USD: the person's rig, by rules of their readers."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track import Run, TrackOptions
from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions
from nphm_track.export.report import write_report
from nphm_track.export.rig import GROUPS, JOINTS
from nphm_track.heads.editing import expression_code
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.template import load_template
from nphm_track.kd_tree import kd_tree
from nphm_track.models import resolve, sha256
from nphm_track.rendering.ply import write_ply
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.tracking.records import InputInfo, Track
from nphm_track.tracking.run_folder import RunFolder
from nphm_track.tracking.surface import open_surface

pygltflib = pytest.importorskip("pygltflib")

EXPRESSIONS = ({"jawOpen": 0.3}, {}, {"mouthSmile_L": 0.7, "browDown_R": 0.5}, {"eyeBlink_L": 1.0})
LOST, SEEN = 1, (0, 2, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path, n = tmp_path_factory.mktemp("rigged"), len(EXPRESSIONS)
    model = load_head_model()
    landmarks = np.full((n, 478, 2), 100, np.float32)
    ahead = np.tile(np.array([[0, 0, 1.0], [0.2, 0, 0.98]], np.float32), (n, 1, 1))
    track = Track(
        frame=np.arange(n), time=np.arange(n) / 25, status=np.zeros(n, np.uint8), confidence=np.ones(n, np.float32),
        z_id=np.zeros(model.config.identity_dim, np.float32),
        z_ex=torch.stack([expression_code(model, e) for e in EXPRESSIONS]).detach().numpy(),
        R=np.tile(np.diag([1.0, -1, -1]), (n, 1, 1)), t=np.tile([0, 0, 0.8], (n, 1)),
        K=np.array([[400.0, 0, 160], [0, 400, 120], [0, 0, 1]]), image_size=np.array([320, 240]), landmarks=landmarks,
        landmarks_fit=landmarks[:, :68], blendshapes=np.zeros((n, 52), np.float32),
        landmark_error_px=np.ones(n, np.float32), normal_error_deg=np.ones(n, np.float32), gaze=ahead,
    )  # fmt: skip
    clip = InputInfo(path=str(path / "clip.mp4"), sha256="0", size=1, width=320, height=240, fps=25)
    models = {"nphm-small": sha256(resolve("nphm-small"))}
    folder = RunFolder.open(path / "run", clip, TrackOptions(overlay=False), models=models)
    track.status[LOST], track.z_ex[LOST], track.R[LOST], track.t[LOST], track.gaze[LOST] = 2, *(4 * (np.nan,))
    track.save(folder.track)
    surface = open_surface(model, track, "template")
    write_ply(folder.canonical, surface.mesh.vertices, surface.mesh.faces)
    folder.mesh_path(0).parent.mkdir()
    for row in SEEN:
        write_ply(folder.mesh_path(row), surface.vertices_of(row), surface.mesh.faces)
    return folder.finish(quality=track.quality())


class Glb:
    """A rigged GLB as glTF 2.0 says that it is to be read."""

    def __init__(self, path: Path) -> None:
        self.file = pygltflib.GLTF2().load(str(path))
        self.mesh = self.file.meshes[0]
        self.names = self.mesh.extras["targetNames"]
        self.channels = {
            (self.file.nodes[c.target.node].name, c.target.path): c for c in self.file.animations[0].channels
        }

    def array(self, index: int) -> np.ndarray:
        accessor = self.file.accessors[index]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor.type]
        kind = {5121: "u1", 5125: "<u4", 5126: "<f4"}[accessor.componentType]
        out = np.zeros((accessor.count, width))
        if accessor.bufferView is not None:
            out[:] = self._view(accessor.bufferView, kind, accessor.count * width).reshape(-1, width)
        if accessor.sparse:
            count, places = accessor.sparse.count, accessor.sparse.indices.bufferView
            out[self._view(places, "<u4", count)] = self._view(
                accessor.sparse.values.bufferView, kind, 3 * count
            ).reshape(-1, 3)
        return out / 255 if accessor.normalized else out

    def _view(self, index: int, kind: str, count: int) -> np.ndarray:
        return np.frombuffer(self.file.binary_blob(), kind, count, self.file.bufferViews[index].byteOffset or 0)

    def values(self, node: str, path: str) -> np.ndarray:
        sampler = self.file.animations[0].samplers[self.channels[node, path].sampler]
        out = self.array(sampler.output)
        return out.reshape(len(self.array(sampler.input)), -1)

    def world(self, frame: int) -> list[np.ndarray]:
        """Vertices of each primitive in a frame: targets, then joints."""
        matrices = []
        for j, name in enumerate(JOINTS):
            node, matrix = self.file.nodes[j], np.eye(4)
            assert node.name == name
            matrix[:3, :3] = Rotation.from_quat(self.values(name, "rotation")[frame]).as_matrix()
            moves = (name, "translation") in self.channels
            matrix[:3, 3] = self.values(name, "translation")[frame] if moves else node.translation
            matrices.append(matrix if j == 0 else matrices[0] @ matrix)
        skin = self.file.skins[0]
        assert skin.joints == list(range(len(JOINTS))) and self.file.nodes[0].children == skin.joints[1:]
        unbind = self.array(skin.inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
        skinning, weights, out = np.stack(matrices) @ unbind, self.values("head_mesh", "weights")[frame], []
        for primitive in self.mesh.primitives:
            points = self.array(primitive.attributes.POSITION)
            for weight, target in zip(weights, primitive.targets, strict=True):
                points = points + weight * self.array(target["POSITION"])
            share = self.array(primitive.attributes.WEIGHTS_0)
            np.testing.assert_array_equal(share.sum(1), 1)
            turn = (skinning[self.array(primitive.attributes.JOINTS_0).astype(int)] * share[..., None, None]).sum(1)
            out.append(np.einsum("vij,vj->vi", turn, np.c_[points, np.ones(len(points))])[:, :3])
        return out


@pytest.fixture(scope="module")
def glb(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Glb:
    return Glb(export(run, "glb", tmp_path_factory.mktemp("glb") / "head.glb"))


def in_world(run: Run, row: int) -> np.ndarray:
    """Vertices of a frame in the camera-fixed world, y up."""
    points = run.mesh(row)[0] @ run.track.R[row].T + run.track.t[row]
    return points * (1, -1, -1)


def test_glb_has_arkits_shapes_by_name_and_their_weights(glb: Glb) -> None:
    names = glb.names
    assert names[:52] == [*ARKIT_BLENDSHAPES, "tongueOut"] and "corrective_00" in names
    assert all(len(p.targets) == len(names) for p in glb.mesh.primitives) and not any(glb.mesh.weights)
    values = glb.values("head_mesh", "weights")
    assert values[0, names.index("jawOpen")] == pytest.approx(0.3, abs=0.02)
    assert values[1, names.index("mouthSmileLeft")] == pytest.approx(0.7, abs=0.02)
    assert values[1, names.index("browDownRight")] == pytest.approx(0.5, abs=0.02)
    assert values[2, names.index("eyeBlinkLeft")] > 0.9


def test_glb_performs_as_the_meshes_of_the_run_do(run: Run, glb: Glb) -> None:
    for i, row in enumerate(SEEN):
        points = np.concatenate(glb.world(i))
        want = in_world(run, row)[np.unique(run.mesh(row)[1])]
        near, _ = kd_tree(points).query(want)
        assert near.max() < 2e-4
        near, _ = kd_tree(want).query(points)
        assert near.max() < 2e-4  # and nothing beside


def test_normals_follow_a_blink(glb: Glb) -> None:
    """A lid whose normals stay as they were while it was open is black where it is shut."""
    face, lid = glb.mesh.primitives[0], glb.names.index("eyeBlinkLeft")
    points, normals = glb.array(face.attributes.POSITION), glb.array(face.attributes.NORMAL)
    move = glb.array(face.targets[lid]["POSITION"])
    shut = vertex_normals(points + move, glb.array(face.indices).astype(int).reshape(-1, 3))
    told = normals + glb.array(face.targets[lid]["NORMAL"])
    told /= np.linalg.norm(told, axis=1, keepdims=True)
    moving = np.linalg.norm(move, axis=1) > 0.003
    assert moving.sum() > 50 and np.quantile((told * shut).sum(1)[moving], 0.05) > np.cos(np.radians(5))
    assert np.quantile((normals * shut).sum(1)[moving], 0.05) < np.cos(np.radians(30))  # the blink turns them far


def test_glb_has_a_material_and_one_tile_of_texture_for_each_group_of_parts(glb: Glb) -> None:
    assert [material.name for material in glb.file.materials] == list(GROUPS)
    for g, primitive in enumerate(glb.mesh.primitives):
        assert primitive.material == g
        uv = glb.array(primitive.attributes.TEXCOORD_0)
        assert len(uv) == glb.file.accessors[primitive.attributes.POSITION].count
        assert uv.min() >= 0 and uv.max() <= 1
        assert glb.array(primitive.indices).max() == len(uv) - 1


def test_glb_turns_one_eye_and_moves_its_tongue_by_hand(run: Run, glb: Glb) -> None:
    turns = Rotation.from_quat(glb.values("eye_right", "rotation")).magnitude()
    assert turns.min() > 0.05 and Rotation.from_quat(glb.values("eye_left", "rotation")).magnitude().max() < 1e-6
    k, groups = glb.names.index("tongueOut"), list(GROUPS)
    assert not glb.values("head_mesh", "weights")[:, k].any()
    moved = [np.abs(glb.array(p.targets[k]["POSITION"])).max() for p in glb.mesh.primitives]
    assert moved[groups.index("gums")] > 0.02 and np.count_nonzero(moved) == 1


@pytest.fixture(scope="module")
def usd(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("pxr")
    return str(export(run, "usd", tmp_path_factory.mktemp("usd") / "usd") / "head.usdc")


def test_usd_performs_as_the_meshes_of_the_run_do(run: Run, usd: str) -> None:
    from pxr import Usd, UsdGeom, UsdSkel

    stage = Usd.Stage.Open(usd)
    assert UsdSkel.BakeSkinning(UsdSkel.Root.Get(stage, "/World/Head"))  # USD's own reading of shapes and joints
    mesh = UsdGeom.Mesh.Get(stage, "/World/Head/Mesh")
    drawn = np.unique(mesh.GetFaceVertexIndicesAttr().Get())
    np.testing.assert_array_equal(drawn, np.unique(run.mesh(0)[1]))
    shut = vertex_normals(np.array(mesh.GetPointsAttr().Get(3)), run.mesh(0)[1])[drawn]
    told = np.array(mesh.GetNormalsAttr().Get(3))[drawn]
    told /= np.linalg.norm(told, axis=1, keepdims=True)
    assert np.quantile((told * shut).sum(1), 0.01) > np.cos(np.radians(20))  # lids that are shut shade as skin does
    for row in SEEN:
        points = np.array(mesh.GetPointsAttr().Get(row))
        matrix = np.array(mesh.ComputeLocalToWorldTransform(row))
        off = np.linalg.norm((np.c_[points, np.ones(len(points))] @ matrix)[:, :3] - in_world(run, row), axis=1)[drawn]
        assert off.max() < 2e-4


def test_usd_has_arkits_shapes_joints_and_materials(usd: str) -> None:
    from pxr import Usd, UsdGeom, UsdSkel

    stage = Usd.Stage.Open(usd)
    mesh = UsdGeom.Mesh.Get(stage, "/World/Head/Mesh")
    names = list(UsdSkel.BindingAPI(mesh.GetPrim()).GetBlendShapesAttr().Get())
    assert names[:52] == [*ARKIT_BLENDSHAPES, "tongueOut"]
    performance = UsdSkel.Animation.Get(stage, "/World/Head/Rig/Performance")
    assert list(performance.GetBlendShapesAttr().Get()) == names
    assert list(performance.GetJointsAttr().Get()) == ["head", "head/jaw", "head/eye_left", "head/eye_right"]
    subsets = UsdGeom.Subset.GetAllGeomSubsets(mesh)
    assert [s.GetPrim().GetName() for s in subsets] == list(GROUPS)
    counts = mesh.GetFaceVertexCountsAttr().Get()
    assert sum(len(s.GetIndicesAttr().Get()) for s in subsets) == len(counts) and set(counts) == {3, 4}
    st = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get())
    assert len(st) == sum(counts) and st.min() >= 0 and st.max() <= 1


def test_a_lost_head_is_hidden_in_glb_at_once(glb: Glb) -> None:
    assert glb.values("head", "scale").any(1).tolist() == [True, False, True, True]
    assert len(glb.values("head_mesh", "weights")) == len(SEEN)


def test_a_lost_head_is_hidden_in_usd_at_once_by_visibility_and_by_scale(usd: str) -> None:
    from pxr import Usd, UsdGeom, UsdSkel

    stage = Usd.Stage.Open(usd)
    scales = UsdSkel.Animation.Get(stage, "/World/Head/Rig/Performance").GetScalesAttr()
    size = [scales.Get(code)[0][0] for code in (0, 0.94, 1, 1.5, 1.94, 2, 3)]
    np.testing.assert_allclose(size, [1, 1, 0, 0, 0, 1, 1], atol=2e-3)
    head = UsdGeom.Imageable.Get(stage, "/World/Head")
    assert [head.ComputeVisibility(code) for code in range(4)] == ["inherited", "invisible", "inherited", "inherited"]


def test_a_lost_frame_and_a_track_without_a_head_have_the_rig_alone(run: Run) -> None:
    model, track = load_head_model(), copy.deepcopy(run.track)
    for lost in ([1, 2], [0, 1, 2, 3]):
        track.status[lost] = 2
        track.z_ex[lost] = np.nan
        surface = open_surface(model, track, "template")
        assert np.isfinite(surface.vertices_of(1)).all()


def test_textured_skin_has_pictures_instead_of_colours(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [np.full((4, 4, 3), shade, np.uint8) for shade in (50, 200)]
    monkeypatch.setattr("nphm_track.export.glb.skin_pictures", lambda *given: pictures)
    glb = pygltflib.GLTF2().load(str(export(run, "glb", tmp_path / "head.glb", ExportOptions(textured=True))))
    blob = glb.binary_blob()
    for primitive in glb.meshes[0].primitives:
        material = glb.materials[primitive.material]
        texture = material.pbrMetallicRoughness.baseColorTexture
        if material.name not in ("face", "head"):
            assert texture is None and primitive.attributes.COLOR_0 is not None
            continue
        assert primitive.attributes.COLOR_0 is None and primitive.attributes.TEXCOORD_0 is not None
        view = glb.bufferViews[glb.images[glb.textures[texture.index].source].bufferView]
        data = blob[view.byteOffset : view.byteOffset + view.byteLength]
        expected = 50 if material.name == "face" else 200
        assert (np.asarray(Image.open(io.BytesIO(data))) == expected).all()


def test_the_head_of_the_report_performs_by_the_rig(run: Run, tmp_path: Path) -> None:
    page = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    mesh = json.loads(re.search(r"<script[^>]*>({.*?})</script>", page, re.DOTALL)[1])["mesh"]  # type: ignore[index]

    def numbers(name: str, kind: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(mesh[name]), kind)

    neutral = numbers("vertices", "<f4").reshape(-1, 3)
    moved, targets = numbers("moved", "<u2"), numbers("targets", "i1").reshape(-1, 3)
    weights = numbers("weights", "<f4").reshape(len(EXPRESSIONS), -1)
    template = load_template()
    drawn = np.unique(template.head_faces)
    assert np.isnan(weights[LOST]).all()
    for row in SEEN:
        shown = neutral.astype(np.float64)
        ends = np.cumsum(mesh["counts"])
        for k, (first, last) in enumerate(zip(ends - mesh["counts"], ends, strict=True)):
            shown[moved[first:last]] += weights[row, k] * targets[first:last]
        off = np.linalg.norm(shown - template.cut_at_neck(run.mesh(row)[0]), axis=1)[drawn]
        assert off.mean() < 2e-4 and np.quantile(off, 0.99) < 1e-3
