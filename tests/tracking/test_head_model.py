"""The tracker with head models that no regressor knows: a converted MonoNPHM, and one that somebody trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nphm_track import Run, track
from nphm_track.conventions import ANCHOR_LANDMARKS
from nphm_track.errors import InputError, ModelError, OutputError
from nphm_track.heads.import_mononphm import import_mononphm
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mononphm import AnchoredDecoder
from nphm_track.models import read_weights, resolve, sha256, write_weights
from nphm_track.tracking import code_fit, pipeline
from nphm_track.tracking.identity import load_identity
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.pipeline import has_regressor, models_of
from nphm_track.tracking.validate import validate_run
from nphm_track.video.writer import VideoWriter

FRAMES = 3
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in models_of(TrackOptions(codes="landmarks", refine=True)):
        try:
            resolve(name)
        except ModelError as error:
            pytest.skip(str(error))
    monkeypatch.setattr(code_fit, "STEPS", 12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of the astronaut's face, which moves across them; 160x120 at 25 frames/s."""
    from skimage import data
    from skimage.transform import resize

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    photograph = data.astronaut()
    with VideoWriter(path, (160, 120), frame_rate_hint=25) as writer:
        for i in range(FRAMES):
            part = photograph[10 + 2 * i : 220 + 2 * i, 85 + 4 * i : 365 + 4 * i]
            writer.write((resize(part, (120, 160), anti_aliasing=True) * 255).round().astype(np.uint8), i / 25)
    return path


def linear(state: State, name: str, weight: Tensor) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = weight, torch.zeros(len(weight))


def ensemble(state: State, prefix: str, first: int, out: int, normals: Tensor) -> None:
    """36 MLPs that pass on the height over a plane through their anchor: softplus(h) - softplus(-h) = h."""
    widths = [first, 200, 200, 200, 200, out]
    sign = torch.tensor([1.0, -1.0])
    for member, normal in enumerate(normals):
        for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
            weight = torch.zeros(fan_out, fan_in)
            if k == 0:
                weight[:2, -5:-2] = sign[:, None] * normal
            else:
                weight[:2, :2] = (sign[:, None] * sign)[: min(2, fan_out)]
            linear(state, f"{prefix}.layers.{member}.layers.{2 * k}", weight)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like the public one: planes through the anchors make a head, random weights deform it."""
    folder = tmp_path_factory.mktemp("public") / "pretrained_mononphm"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "configs.yaml").write_text("decoder:\n  id:\n    nneigh: 12\n    blend_std: 3.75\n")
    generator = torch.Generator().manual_seed(0)

    def random(out: int, fan_in: int, gain: float = 1.0) -> Tensor:
        return torch.randn(out, fan_in, generator=generator) * gain * (2 / fan_in) ** 0.5

    anchors = load_head_model().mean_anchors
    np.save(folder / "anchors_65.npy", anchors.numpy())
    outward = torch.nn.functional.normalize(anchors - torch.tensor([0.0, 0.1, -0.25]), dim=1)
    identity: State = {}
    normals = torch.cat([outward[:60:2], outward[60:], torch.zeros(1, 3)])
    ensemble(identity, "deepSDFensemble", 101, 1, normals)
    identity["deepSDFensemble.layers.35.layers.8.bias"] += 0.3  # far from all anchors is outside
    ensemble(identity, "aggr_app", 112, 3, torch.zeros(36, 3))
    linear(identity, "communcation_bottleneck1", random(16, 200))
    linear(identity, "communcation_bottleneck2", random(16, 16))
    for k, out in ((0, 64), (2, 64), (4, 195)):
        linear(identity, f"mlp_pos.{k}", random(out, 64))
    expression: State = {}
    linear(expression, "compressor.0", random(16, 2371))
    widths = [(400, 119), (400, 400), (400, 400), (400, 519), (400, 400), (400, 400), (5, 400)]
    for k, (out, fan_in) in enumerate(widths):
        linear(expression, f"defDeepSDF.lin{k}", random(out, fan_in, 0.05 if k == 6 else 1.0))
    tables = {kind: torch.randn(7, dim, generator=generator) * dim**-0.5 for kind, dim in CODES.items()}
    codes = {f"codebook.{kind}.embedding.weight": table for kind, table in tables.items()}
    checkpoint = {"id_decoder": identity, "ex_decoder": expression, "latent_codes": codes}
    torch.save(checkpoint, folder / "checkpoints" / "checkpoint_epoch_2500.tar")
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """What is fitted need not be fitted well here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_fit, "STEPS", 12)
        yield


CODES = {"geo": 2176, "app": 2176, "exp": 100}


@pytest.fixture(scope="module")
def mononphm(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_mononphm(public, tmp_path_factory.mktemp("imported") / "mononphm").parent


@pytest.fixture(scope="module")
def mononphm_run(clip: Path, mononphm: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run with it, coarse."""
    return track(clip, tmp_path_factory.mktemp("run") / "run", head_model=str(mononphm), mesh_resolution=32)


class TestMonoNphm:
    def test_loaded_with_its_code_statistics(self, mononphm: Path) -> None:
        model = load_head_model(mononphm)
        assert isinstance(model, AnchoredDecoder) and model.identity_codes and model.expression_codes
        assert model.identity_codes.mean.shape == (2176,) and model.expression_codes.norm_bound == 1

    def test_run_is_valid(self, mononphm_run: Run) -> None:
        assert validate_run(mononphm_run.path) == []
        made = mononphm_run.track
        assert made.z_id.shape == (2176,) and made.z_ex.shape == (FRAMES, 100)
        assert np.linalg.norm(made.z_id) <= 1.0001 and (np.linalg.norm(made.z_ex, axis=1) <= 1.0001).all()
        assert (mononphm_run.path / "report.html").is_file() and mononphm_run.overlay.is_file()

    def test_landmarks_are_those_of_the_anchors(self, mononphm_run: Run) -> None:
        made = mononphm_run.track
        known = np.isfinite(made.landmarks_fit).all((0, 2))
        assert set(np.flatnonzero(known)) == set(ANCHOR_LANDMARKS.values())
        eyes = np.linalg.norm(made.landmarks[:, 33, :2] - made.landmarks[:, 263, :2], axis=1)
        assert (made.landmark_error_px < 0.15 * eyes).all()

    def test_lost_anchor_is_found_by_the_validator(self, mononphm_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from nphm_track.tracking.checks import track_problems

        made = mononphm_run.track
        broken = made.landmarks_fit.copy()
        broken[1, 36] = np.nan
        monkeypatch.setattr(made, "landmarks_fit", broken)
        assert any(
            "landmarks_fit is not finite in 1 frames" in line for line in track_problems(mononphm_run.info, made)
        )
        monkeypatch.setattr(made, "landmarks_fit", np.full_like(broken, np.nan))
        assert "landmarks_fit is empty" in list(track_problems(mononphm_run.info, made))

    def test_run_names_the_model(self, mononphm_run: Run, mononphm: Path) -> None:
        record = json.loads((mononphm_run.path / "run.json").read_text())
        assert record["options"]["head_model"] == str(mononphm)
        assert record["models"][str(mononphm)] == sha256(resolve(mononphm))
        assert "image-regressor" not in record["models"] and "nphm-small" not in record["models"]

    def test_another_head_model_does_not_go_on_with_it(self, mononphm_run: Run, clip: Path) -> None:
        with pytest.raises(OutputError, match=r"other options \(head-model\)"):
            track(clip, mononphm_run.path, mesh_resolution=32)

    def test_its_identity_belongs_to_it(self, mononphm_run: Run, mononphm: Path, clip: Path, tmp_path: Path) -> None:
        assert load_identity(mononphm_run.path).model == sha256(resolve(mononphm))
        with pytest.raises(InputError, match="another head model"):
            track(clip, tmp_path / "run", identity=mononphm_run.path, codes="landmarks")
        options = {"head_model": str(mononphm), "meshes": False, "overlay": False}
        again = track(clip, tmp_path / "same", identity=mononphm_run.path, **options)
        np.testing.assert_array_equal(again.track.z_id, mononphm_run.track.z_id)
        assert validate_run(again.path) == []

    def test_refinement(
        self, mononphm: Path, clip: Path, tmp_path: Path, quick_refinement: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nphm_track.refine.clip.DETAIL", 0.2)
        options = {"head_model": str(mononphm), "meshes": False, "overlay": False, "refine": True}
        options |= {"refine_config": str(quick_refinement)}
        run = track(clip, tmp_path / "run", **options)
        assert validate_run(run.path) == []
        assert np.isfinite(run.track.refine_after).all() and np.isfinite(run.track.normal_error_deg).all()


class TestOwnModel:
    """A head model of nphm-small's kind, trained by somebody: the released one with a changed weight."""

    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        tensors, config = read_weights("nphm-small")
        tensors["mean_anchors"] = tensors["mean_anchors"] + 1e-4
        write_weights(tmp_path / "own" / "model.safetensors", tensors, config)
        return tmp_path / "own"

    def test_goes_without_regressor(self, own: Path, clip: Path, tmp_path: Path) -> None:
        run = track(clip, tmp_path / "run", head_model=str(own), meshes=False, overlay=False)
        assert validate_run(run.path) == []
        assert np.isfinite(run.track.landmarks_fit).all()
        assert set(run.info.models) == {"face_landmarker", str(own)}

    def test_released_one_is_known_by_any_name(self, own: Path, tmp_path: Path) -> None:
        (tmp_path / "copy.safetensors").write_bytes(resolve("nphm-small").read_bytes())
        for name, known in (("nphm-small", True), (str(tmp_path / "copy.safetensors"), True), (str(own), False)):
            assert has_regressor(TrackOptions(head_model=name)) == known

    def test_its_place_is_recorded_whole(self, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(own.parent)
        options = TrackOptions(head_model="own")
        assert options.head == options.fingerprint()["head_model"] == str(own.resolve())
        assert str(own.resolve()) in models_of(options)
        assert TrackOptions().fingerprint()["head_model"] == "nphm-small"

    def test_a_take_of_a_session_has_one_vote_with_the_weight_of_its_frames(
        self, own: Path, clip: Path, tmp_path: Path
    ) -> None:
        _, votes = pipeline.observe(clip, tmp_path / "run", options=TrackOptions(head_model=str(own)))
        assert votes.z_id.shape == (1, load_head_model(own).config.identity_dim)
        assert np.isfinite(votes.z_id).all() and 0 < votes.weight[0] <= FRAMES

    def test_missing_and_foreign_models_are_refused(self, clip: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="nobody"):
            track(clip, tmp_path / "run", head_model="nobody")
        with pytest.raises(ModelError, match="not a head model"):
            track(clip, tmp_path / "run", head_model="geometry")
