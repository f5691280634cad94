"""The regressor of any head model: trained for a few steps on made-up data, and used through ``--head-model``."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import CROP_SIZE, crop_rois, roi_from_landmarks
from nphm_track.heads.loading import load_head_model
from nphm_track.models import read_config, resolve
from nphm_track.regressor.lookup import RELEASED, find_regressor
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.training.pix2nphm_task import Pix2NphmData, Pix2NphmTask
from nphm_track.training.recipe import TrainerConfig
from nphm_track.training.samples import Samples, write_shard
from nphm_track.training.trainer import Share, Trainer

WEIGHTS = {"sdf": 10.0, "normals": 1.0, "code": 1e-4, "uncertainty": 1e-3}
SMALL = {"width": 32, "layers": 1, "heads": 2, "near_points": 16, "rays": 4, "batch": 4, "prior": True}


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[:300, :448])


@pytest.fixture(scope="module")
def samples(standin: Path, photograph: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One face with one head's code, four times; shards with and without codes."""
    head, face = load_head_model(standin), FaceLandmarker.from_pretrained().find(photograph)[0]
    roi = roi_from_landmarks(face.landmarks)
    crop = crop_rois([photograph], roi[None])[0]
    jpeg = io.BytesIO()
    Image.fromarray((crop.permute(1, 2, 0) * 255).byte().numpy()).save(jpeg, "JPEG")
    weights = torch.randn(head.config.identity_basis, generator=torch.Generator().manual_seed(0))
    z_id = (head.mean_identity + head.identity_basis @ weights).detach()
    anchors = head.anchors(z_id).detach().numpy() * MODEL_UNIT
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    grid = np.stack(np.meshgrid(np.linspace(-0.05, 0.05, 8), np.linspace(0.05, -0.05, 8)), -1)
    points = np.concatenate([grid, np.full((8, 8, 1), 0.09)], -1)
    columns: dict[str, Any] = {
        "roi": roi, "size": np.array([448.0, 300.0]), "K": np.array([[600.0, 0, 224], [0, 600, 150], [0, 0, 1]]),
        "R": np.diag([1.0, -1, -1]), "t": np.array([0.0, 0, 0.6]), "landmarks": face.landmarks,
        "blendshapes": face.blendshapes, "normals": (mask[..., None] * [0, 0, 127]).astype(np.int8),
        "points": points.astype(np.float16), "mask": mask,
    }  # fmt: skip
    known = {"z_id": z_id.numpy(), "z_ex": head.mean_expression.numpy(), "surface": anchors}
    out = tmp_path_factory.mktemp("samples")
    write_shard(out / "registered" / "a.tar", [(jpeg.getvalue(), columns | known)] * 3)
    write_shard(out / "registered" / "b.tar", [(jpeg.getvalue(), columns | known)])
    write_shard(out / "images" / "a.tar", [(jpeg.getvalue(), columns)] * 2)
    return out


def data(standin: Path, samples: Path, **changes: Any) -> Pix2NphmData:
    folders = {"registered": "registered", "heldout": "registered", "images": "images"}
    where = {k: str(samples / v) for k, v in folders.items()}
    return Pix2NphmData(**{"head_model": str(standin), **where, **SMALL, **changes})


@pytest.fixture(scope="module")
def trained(standin: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a dozen steps."""
    run = tmp_path_factory.mktemp("run")
    config = TrainerConfig(steps=12, learning_rate=3e-3, warmup=1, ema=0.5, evaluate_every=100)
    Trainer(Pix2NphmTask(data(standin, samples, keep_tokens=True)), config, WEIGHTS, run).run()
    return run / "model.safetensors"


def test_it_begins_at_the_mean_code_and_learns_in_sdf_space(standin: Path, samples: Path, trained: Path) -> None:
    task = Pix2NphmTask(data(standin, samples))
    assert task.evaluate(task.model.eval())["share_left"] == pytest.approx(1)
    training = read_config(trained)["training"]
    assert training["share_left"] < 0.7 and training["mean_code_mm"] > 0.3


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, {"sdf", "normals", "code", "uncertainty"}),
        ({"losses": ("2d",)}, {"normals", "code"}),
        ({"losses": ("3d",)}, {"sdf", "code", "uncertainty"}),
        ({"losses": ("2d",), "images": None, "renderer": "volume"}, {"normals", "code", "uncertainty"}),
        ({"encoders": ("n",), "prior": False, "landmarks": True, "details": True}, set(WEIGHTS)),
    ],
)
def test_every_switch_gives_its_terms(standin: Path, samples: Path, changes: dict[str, Any], terms: set[str]) -> None:
    task = Pix2NphmTask(data(standin, samples, **changes))
    found = task.losses(0, torch.Generator().manual_seed(0))
    assert found.keys() == terms and all(torch.isfinite(v) for v in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]
    gradient = task.model.to_local[-1].weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_read_outs_can_begin_with_the_codes(standin: Path, samples: Path) -> None:
    task = Pix2NphmTask(data(standin, samples, solved=4))
    assert task.evaluate(task.model.eval())["share_left"] < 0.05  # one head, seen alike in all of them


def test_codes_of_another_head_model_are_refused(samples: Path) -> None:
    with pytest.raises(InputError, match="codes of another head model"):
        Pix2NphmTask(data(Path("nphm-small"), samples))


def test_a_head_model_finds_what_lies_beside_it(standin: Path, trained: Path, tmp_path: Path) -> None:
    assert find_regressor("nphm-small") == RELEASED
    bundle = tmp_path / "head"
    shutil.copytree(standin, bundle)
    assert find_regressor(str(bundle)) is None
    beside = tmp_path / "head-regressor" / "model.safetensors"
    beside.parent.mkdir()
    shutil.copy(trained, beside)
    found = find_regressor(str(bundle))
    assert found is not None and found.name == str(beside) and found.geometry == "geometry"
    shutil.copy(trained, bundle / "regressor.safetensors")
    assert find_regressor(str(bundle / "model.safetensors")).name == str(bundle / "regressor.safetensors")  # type: ignore[union-attr]
    shutil.copy(resolve("nphm-small"), bundle / "model.safetensors")
    assert find_regressor(str(bundle)) == RELEASED
    shutil.copy(resolve("landmark-regressor"), bundle / "model.safetensors")
    with pytest.raises(ModelError, match="trained on another head model"):
        find_regressor(str(bundle))


def test_it_predicts_codes_and_how_sure_they_are(
    standin: Path, trained: Path, photograph: np.ndarray, tmp_path: Path
) -> None:
    bundle = tmp_path / "head"
    shutil.copytree(standin, bundle)
    shutil.copy(trained, bundle / "regressor.safetensors")
    regressor, landmarker = find_regressor(str(bundle)), FaceLandmarker.from_pretrained()
    assert regressor is not None
    predictor = CodePredictor.from_pretrained(landmarker, regressor)
    codes = predictor([photograph], landmarker.find(photograph))
    assert predictor.sizes == (2176, 100, 67)
    assert codes.z_id.shape == (1, 2176) and codes.z_ex.shape == (1, 100) and codes.log_variance.shape == (1, 67)
    assert all(torch.isfinite(x).all() for x in (codes.z_id, codes.z_ex, codes.log_variance))


def test_processes_share_the_samples_of_a_step(standin: Path, samples: Path) -> None:
    task = Pix2NphmTask(data(standin, samples))
    drawn: list[list[int]] = []
    task._read = lambda which, _, rows: drawn.append(rows) or ({}, {})  # type: ignore[method-assign,assignment,func-returns-value]
    for world in (1, 2):
        for rank in range(world):
            task.share = Share(rank, world)
            task._part(0, task.registered, 4, 3)
    whole, *halves = drawn
    assert sorted(whole) == [0, 1, 2, 3] and whole == [row for pair in zip(*halves, strict=True) for row in pair]


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        Samples(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no shard"):
        Samples(tmp_path)
    write_shard(tmp_path / "a.tar", [(b"", {"roi": np.zeros(5)})])
    assert Samples(tmp_path).take([0])["roi"].shape == (1, 5)
    packed = (tmp_path / "a.tar").read_bytes().replace(b"PK\x03\x04", b"PK\x00\x00")
    (tmp_path / "a.tar").write_bytes(packed)
    with pytest.raises(InputError, match="damaged"):
        Samples(tmp_path).read(0)


def test_crops_keep_their_size(samples: Path) -> None:
    with Image.open(io.BytesIO(Samples(samples / "images").read(0)["jpeg"].tobytes())) as picture:
        assert picture.size == (CROP_SIZE, CROP_SIZE)
