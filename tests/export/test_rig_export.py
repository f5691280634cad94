"""A run in the template's topology as an animated GLB: the person's rig by ARKit's names."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from nphm_track import Run, TrackOptions
from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.export.formats import export
from nphm_track.export.morphs import within_bounds
from nphm_track.heads.editing import expression_code
from nphm_track.heads.loading import load_head_model
from nphm_track.models import resolve, sha256
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import InputInfo, Track
from nphm_track.tracking.run_folder import RunFolder
from nphm_track.tracking.surface import open_surface

pygltflib = pytest.importorskip("pygltflib")

EXPRESSIONS = ({"jawOpen": 0.3}, {"mouthSmile_L": 0.7, "browDown_R": 0.5}, {"eyeBlink_L": 1.0})


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
    track.save(folder.track)
    surface = open_surface(model, track, "template")
    write_ply(folder.canonical, surface.mesh.vertices, surface.mesh.faces)
    folder.mesh_path(0).parent.mkdir()
    for row in range(n):
        write_ply(folder.mesh_path(row), surface.vertices_of(row), surface.mesh.faces)
    return folder.finish(quality=track.quality())


def test_glb_has_arkits_shapes_by_name_and_their_weights(run: Run, tmp_path: Path) -> None:
    glb = pygltflib.GLTF2().load(str(export(run, "glb", tmp_path / "head.glb")))
    mesh = glb.meshes[0]
    names = mesh.extras["targetNames"]
    assert names[: len(ARKIT_BLENDSHAPES)] == list(ARKIT_BLENDSHAPES)
    assert len(mesh.primitives[0].targets) == len(names) and not any(mesh.weights)
    animation = glb.animations[0]
    (weights,) = (c for c in animation.channels if c.target.path == "weights")
    accessor = glb.accessors[animation.samplers[weights.sampler].output]
    view = glb.bufferViews[accessor.bufferView]
    start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
    values = np.frombuffer(glb.binary_blob(), "<f4", accessor.count, start).reshape(len(EXPRESSIONS), -1)
    assert values[0, names.index("jawOpen")] == pytest.approx(0.3, abs=0.02)
    assert values[1, names.index("mouthSmileLeft")] == pytest.approx(0.7, abs=0.02)
    assert values[1, names.index("browDownRight")] == pytest.approx(0.5, abs=0.02)
    assert values[2, names.index("eyeBlinkLeft")] > 0.9


def test_glb_tells_parts_by_colour(run: Run, tmp_path: Path) -> None:
    glb = pygltflib.GLTF2().load(str(export(run, "glb", tmp_path / "head.glb")))
    (primitive,) = glb.meshes[0].primitives
    colours = glb.accessors[primitive.attributes.COLOR_0]
    assert colours.count == glb.accessors[primitive.attributes.POSITION].count
    assert glb.materials[primitive.material].name == "parts"


def test_weights_that_would_be_clamped_are_made_up_for_by_other_shapes() -> None:
    left, right, brow = (np.zeros((4, 3), np.float32) for _ in range(3))
    left[0], right[0], brow[2] = (0.02, 0.001, 0), (-0.02, 0.001, 0), (0, 0.01, 0)
    targets = np.stack([left, right, brow])
    wanted = np.array([[-0.2, 0.1, 0.5], [0.3, 0.0, 1.0]], np.float32)
    found = within_bounds(wanted, targets)
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found[0], [0, 0.3, 0.5], atol=0.01)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)


def test_a_lost_frame_and_a_track_without_a_head_have_the_rig_alone(run: Run) -> None:
    model, track = load_head_model(), copy.deepcopy(run.track)
    for lost in ([1], [0, 1, 2]):
        track.status[lost] = 2
        track.z_ex[lost] = np.nan
        surface = open_surface(model, track, "template")
        assert np.isfinite(surface.vertices_of(1)).all()
