"""FLAME and GNM parameters of a scan: put into the models, they give the scan's head back in its own coordinates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.heads import parametric_fit
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.registration import Registration
from nphm_track.heads.rig import open_rig
from nphm_track.heads.template import load_template
from nphm_track.rigid import Similarity
from nphm_track.scans.fitting import FitOptions
from nphm_track.scans.parametric import fit_model

sys.path.insert(0, str(Path(__file__).parents[1] / "heads"))
from made_up_flame import write_flame, write_gnm

CENTIMETRES = Similarity(100.0, np.eye(3)[[1, 2, 0]], np.array([3.0, 2, 1]))


@pytest.fixture(scope="module")
def fitted() -> Registration:
    """A smiling head in a scan in centimetres that lies on its side."""
    model = load_head_model()
    z_id = (model.identity_basis[:, 1] * 0.4).detach().numpy()
    smile = model.config.expression_names.index("mouthSmile_L")
    z_ex = (0.6 * model.expression_basis[:, smile]).detach().numpy()
    return Registration(z_id, z_ex, CENTIMETRES, np.zeros(1, np.float32), np.zeros(1, np.float32), 0.0, 1.0, 0.1)


@pytest.mark.parametrize("name", ["flame", "gnm"])
def test_parameters_give_the_head_back(
    fitted: Registration, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parametric_fit, "POINTS", 500)
    template, model = load_template(), load_head_model()
    flame = name == "flame"
    file = write_flame(tmp_path, template)[0] if flame else write_gnm(tmp_path, template)
    found = fit_model(file, flame, model, fitted)
    rig = open_rig(model, fitted.z_id)
    smile = rig.shapes[rig.names.index("mouthSmile_L")]
    quads = template.quads[(template.quads < template.parts["head"][1]).all(1) & (template.quads[:, 3] >= 0)][::2]
    wanted = CENTIMETRES((rig.neutral + 0.6 * smile)[quads].mean(1))
    assert np.median(np.linalg.norm(found.vertices - wanted, axis=1)) < 0.15  # cm; six shapes are no whole identity
    assert found.residual_mm < 2

    m, v = np.load(file), found.values
    if flame:
        x = m["v_template"] + m["shapedirs"] @ np.concatenate([v["shape"], v["expr"]])
        joints, share = m["J_regressor"] @ x, m["weights"][:, 2:3]
        jaw = Rotation.from_rotvec(v["jaw_pose"]).as_matrix()
        x = (1 - share) * x + share * ((x - joints[2]) @ jaw.T + joints[2]) - joints[0]
        shift = joints[0] + v["translation"]
    else:
        x = m["template_vertex_positions"] + np.tensordot(v["identity"], m["vertex_identity_basis"], 1)
        x, shift = v["unit"] * (x + np.tensordot(v["expression"], m["expression_basis"], 1)), v["translation"]
    made = v["scale"] * (x @ Rotation.from_rotvec(v["rotation"]).as_matrix().T + shift)
    np.testing.assert_allclose(made, found.vertices, atol=1e-3)


def test_model_and_file_go_together() -> None:
    with pytest.raises(InputError, match="--to flame and --flame-model FILE go together"):
        FitOptions(to="flame")
    with pytest.raises(InputError, match="--to gnm and --gnm-model FILE go together"):
        FitOptions(gnm_model=Path("gnm_head.npz"))
    with pytest.raises(InputError, match="unknown model 'smpl'"):
        FitOptions(to="smpl")
