"""FLAME and GNM parameters of a run: put into the models, they give the run's heads back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track import Run, TrackOptions
from nphm_track.errors import InputError, OutputError
from nphm_track.export import formats
from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions
from nphm_track.heads import parametric_fit
from nphm_track.heads.template import load_template
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import InputInfo, Track
from nphm_track.tracking.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))
from made_up_flame import SHAPES, write_flame, write_gnm

SMILES = (0.0, 0.6, 0.3)


@pytest.fixture(scope="module", autouse=True)
def few_points() -> Iterator[None]:
    """A quarter of the points, which takes a quarter of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parametric_fit, "POINTS", 500)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path, n, template = tmp_path_factory.mktemp("posed"), len(SMILES), load_template()
    points = np.full((n, 478, 2), 100, np.float32)
    track = Track(
        frame=np.arange(n), time=np.arange(n) / 25, status=np.array([0, 0, 0], np.uint8),
        confidence=np.ones(n, np.float32), z_id=np.zeros(8, np.float32), z_ex=np.zeros((n, 4), np.float32),
        R=np.diag([1.0, -1, -1]) @ Rotation.from_euler("xyz", [[0, 0, 0], [10, 30, 5], [-5, -40, 0]], True).as_matrix(),
        t=np.linspace([0, 0, 0.8], [0.1, -0.05, 1], n), K=np.array([[400.0, 0, 160], [0, 400, 120], [0, 0, 1]]),
        image_size=np.array([320, 240]), landmarks=points, landmarks_fit=points[:, :68],
        blendshapes=np.zeros((n, 52), np.float32), landmark_error_px=np.ones(n, np.float32),
        normal_error_deg=np.ones(n, np.float32), gaze=np.tile(np.array([0, 0, 1.0], np.float32), (n, 2, 1)),
    )  # fmt: skip
    clip = InputInfo(path=str(path / "clip.mp4"), sha256="0", size=1, width=320, height=240, fps=25)
    folder = RunFolder.open(path / "run", clip, TrackOptions(overlay=False))
    track.save(folder.track)
    weights = np.zeros(len(template.identity))
    weights[:SHAPES] = [1, 0.5, -1, 0, 0.5, 0]
    neutral = template.person(weights)
    write_ply(folder.canonical, neutral, template.faces)
    folder.mesh_path(0).parent.mkdir()
    smile = template.expression[template.expression_names.index("mouthSmile_L")]
    for row, weight in enumerate(SMILES):
        write_ply(folder.mesh_path(row), neutral + weight * smile, template.faces)
    return folder.finish(quality=track.quality())


def expected(run: Run, row: int) -> np.ndarray:
    """The places of the made-up models' vertices, middles of every second quad, in the camera-fixed world."""
    template = load_template()
    quads = template.quads[(template.quads < template.parts["head"][1]).all(1) & (template.quads[:, 3] >= 0)][::2]
    points = run.mesh(row)[0][quads].mean(1) @ run.track.R[row].T + run.track.t[row]
    return points * (1, -1, -1)


def rodrigues(vector: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(vector).as_matrix()


def test_flame_parameters_by_vhaps_names(run: Run, tmp_path: Path) -> None:
    model, _ = write_flame(tmp_path, load_template())
    file = export(run, "flame", tmp_path / "out.npz", ExportOptions(flame_model=model))
    (tmp_path / "mine.npz").write_bytes(model.read_bytes())
    with pytest.raises(OutputError, match="is not an export"):
        export(run, "flame", tmp_path / "mine.npz", ExportOptions(flame_model=model))
    assert formats._is_ours(file, "flame", formats.FORMATS["flame"])
    found, m = np.load(file), np.load(model)
    assert found["frame"].tolist() == [0, 1, 2] and found["residual_mm"].max() < 0.2
    assert found["eyes_pose"].shape == (3, 6) and not found["neck_pose"].any()
    for row in range(3):
        # FLAME's forward: shapes, then joints, then skinning about them, then the shift.
        v = m["v_template"] + m["shapedirs"] @ np.concatenate([found["shape"], found["expr"][row]])
        joints = m["J_regressor"] @ v
        jaw = rodrigues(found["jaw_pose"][row])
        share = m["weights"][:, 2:3]
        v = (1 - share) * v + share * ((v - joints[2]) @ jaw.T + joints[2])
        v = (v - joints[0]) @ rodrigues(found["rotation"][row]).T + joints[0] + found["translation"][row]
        assert np.linalg.norm(v - expected(run, row), axis=1).mean() < 3e-4


def test_gnm_parameters(run: Run, tmp_path: Path) -> None:
    model = write_gnm(tmp_path, load_template())
    file = export(run, "gnm", tmp_path / "out.npz", ExportOptions(gnm_model=model, frames=(1, 2)))
    found, m = np.load(file), np.load(model)
    assert found["frame"].tolist() == [1, 2] and found["joint_rotations"].shape == (2, 4, 3)
    for i, row in enumerate((1, 2)):
        v = m["template_vertex_positions"] + np.tensordot(found["identity"], m["vertex_identity_basis"], 1)
        v = v + np.tensordot(found["expression"][i], m["expression_basis"], 1)
        v = found["unit"] * v @ rodrigues(found["rotation"][i]).T + found["translation"][i]
        assert np.linalg.norm(v - expected(run, row), axis=1).mean() < 3e-4


def test_the_users_own_model_is_asked_for(run: Run, made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format flame needs --flame-model"):
        export(run, "flame", tmp_path / "out.npz")
    with pytest.raises(InputError, match="format obj has no use for --gnm-model"):
        export(run, "obj", tmp_path / "out", ExportOptions(gnm_model=tmp_path / "x.npz"))
    with pytest.raises(InputError, match="meshes of its own topology"):
        export(made.run, "flame", tmp_path / "out.npz", ExportOptions(flame_model=tmp_path / "x.npz"))
