"""A folder laid out like the public one, with seeded weights and short code tables, becomes a model of ours."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nphm_track.cli import main
from nphm_track.errors import ModelError, OutputError
from nphm_track.heads.import_mononphm import import_mononphm
from nphm_track.heads.loading import load_head_model
from nphm_track.models import read_weights

CHECKPOINT = Path("checkpoints/checkpoint_epoch_2500.tar")
CONFIG = "decoder:\n  ex:\n    nhyper: 2\n  id:\n    nneigh: 12 #8\n    nloc: 65\n    blend_std: 3.75\n"


@pytest.fixture(scope="module")
def checkpoint(public_state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    tables = {
        "geo": torch.randn(5, 2176, generator=generator) * 0.01,
        "exp": torch.randn(9, 100, generator=generator) * 0.02,
    }
    tables["app"] = tables["geo"].flip(0).clone()
    tables["exp"][0] = 3.0  # never looked up since its last step, so never cut to length 1
    state = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-4}]}
    return {
        "epoch": 2500,
        "id_decoder": public_state[0],
        "ex_decoder": public_state[1],
        "optimizer": state,
        "latent_codes": {f"codebook.{kind}.embedding.weight": table for kind, table in tables.items()},
        "optimizer_lat": (state,),
    }


@pytest.fixture(scope="module")
def pristine(checkpoint: dict[str, Any], golden: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public") / "pretrained_mononphm"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "configs.yaml").write_text(CONFIG)
    np.save(folder / "anchors_65.npy", golden["anchors_mean"].numpy())
    torch.save(checkpoint, folder / CHECKPOINT)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage; the checkpoint is a link until a test replaces it."""
    copy = tmp_path / "public" / "pretrained_mononphm"
    (copy / "checkpoints").mkdir(parents=True)
    for name in ("configs.yaml", "anchors_65.npy"):
        shutil.copy(pristine / name, copy)
    (copy / CHECKPOINT).symlink_to(pristine / CHECKPOINT)
    return copy


def replace_checkpoint(folder: Path, content: Any) -> None:
    (folder / CHECKPOINT).unlink()
    if isinstance(content, bytes):
        (folder / CHECKPOINT).write_bytes(content)
    else:
        torch.save(content, folder / CHECKPOINT)


@pytest.fixture(scope="module")
def imported(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_mononphm(pristine, tmp_path_factory.mktemp("imported") / "mononphm")


@torch.no_grad()
def test_the_imported_model_gives_the_golden_numbers(imported: Path, golden: dict[str, Tensor]) -> None:
    assert imported.name == "model.safetensors"
    model = load_head_model(imported)
    some = slice(0, 1065, 25)
    sdf = model.sdf(golden["queries"][some], golden["code_geo"], golden["code_exp"])
    torch.testing.assert_close(sdf, golden["out_sdf"][some, 0], rtol=0, atol=1e-5)


def test_code_statistics_describe_the_codes_as_used(imported: Path, checkpoint: dict[str, Any]) -> None:
    codes = read_weights(imported)[1]["codes"]
    assert {kind: (len(s["mean"]), len(s["spread"]), s["count"], s["norm_bound"]) for kind, s in codes.items()} == {
        "geo": (2176, 2176, 5, 1.0),
        "app": (2176, 2176, 5, 1.0),
        "exp": (100, 100, 9, 1.0),
    }
    table = checkpoint["latent_codes"]["codebook.exp.embedding.weight"].double().numpy()
    table[0] /= np.linalg.norm(table[0])
    np.testing.assert_allclose(codes["exp"]["mean"], table.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(codes["exp"]["spread"], table.std(0), rtol=1e-5)


def test_numbers_only_the_configuration_states_are_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "configs.yaml").write_text(CONFIG.replace("12 #8", "10").replace("3.75", "3.0"))
    config = load_head_model(import_mononphm(folder, tmp_path / "out")).config
    assert (config.nearest, config.sigma_divisor) == (10, 3.0)


@pytest.mark.parametrize("place", ["beside", "assets", "given"])
def test_anchors_are_found(folder: Path, tmp_path: Path, place: str) -> None:
    target = {"beside": folder.parent, "assets": folder.parent / "assets", "given": tmp_path / "elsewhere"}[place]
    target.mkdir(exist_ok=True)
    shutil.move(folder / "anchors_65.npy", target)
    given = target / "anchors_65.npy" if place == "given" else None
    assert import_mononphm(folder, tmp_path / "out", given).is_file()


def test_pickled_code_is_refused_and_never_runs(folder: Path, tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    flag = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(flag),)

    for content in ({**checkpoint, "epoch": Attack()}, pickle.dumps(Attack(), protocol=2)):
        replace_checkpoint(folder, content)
        with pytest.raises(ModelError, match="refused: it holds more than weights"):
            import_mononphm(folder, tmp_path / "out")
        assert not flag.exists()
    pickle.loads((folder / CHECKPOINT).read_bytes())
    assert flag.exists(), "the attack itself must work, or this test shows nothing"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(folder: Path, tmp_path: Path, keep: float) -> None:
    data = (folder / CHECKPOINT).read_bytes()
    replace_checkpoint(folder, data[: int(len(data) * keep)])
    with pytest.raises(ModelError, match=r"checkpoint_epoch_2500\.tar is truncated"):
        import_mononphm(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 not really", b"<!DOCTYPE html><html>quota exceeded</html>", bytes(range(128, 256)) * 9]
)
def test_a_file_that_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    replace_checkpoint(folder, content)
    with pytest.raises(ModelError, match="truncated or not a torch checkpoint"):
        import_mononphm(folder, tmp_path / "out")


def test_another_networks_checkpoint_is_refused(folder: Path, tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    tables = checkpoint["latent_codes"]
    short = {**tables, "codebook.geo.embedding.weight": torch.zeros(2, 1344)}
    broken = {**checkpoint["ex_decoder"], "compressor.0.bias": torch.full((16,), torch.nan)}
    for content, message in (
        (torch.zeros(3), "holds a Tensor"),
        ({"state_dict": {}}, "no table of tensors 'id_decoder'"),
        ({**checkpoint, "latent_codes": None}, "no table of tensors 'latent_codes'"),
        ({**checkpoint, "latent_codes": short}, r"\[2, 1344\] instead of \[codes, 2176\]"),
        ({**checkpoint, "latent_codes": {}}, r"'codebook\.geo\.embedding\.weight' is missing"),
        ({**checkpoint, "ex_decoder": broken}, "not finite"),
    ):
        replace_checkpoint(folder, content)
        with pytest.raises(ModelError, match=message):
            import_mononphm(folder, tmp_path / "out")


def test_an_incomplete_folder_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no configs\.yaml"):
        import_mononphm(tmp_path / "nowhere")
    np.save(folder / "anchors_65.npy", np.zeros((39, 3)))
    with pytest.raises(ModelError, match=r"shape \[39, 3\] instead of anchors \[65, 3\]"):
        import_mononphm(folder, tmp_path / "out")
    np.save(folder / "anchors_65.npy", np.full((65, 3), 80.0))
    with pytest.raises(ModelError, match="model units"):
        import_mononphm(folder, tmp_path / "out")
    (folder / "anchors_65.npy").unlink()
    with pytest.raises(ModelError, match="--anchors"):
        import_mononphm(folder, tmp_path / "out")
    (folder / CHECKPOINT).unlink()
    with pytest.raises(ModelError, match="no checkpoints/"):
        import_mononphm(folder, tmp_path / "out")


def test_an_unwritable_output_is_an_output_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        import_mononphm(folder, tmp_path / "file" / "mononphm")


def test_command_and_default_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("NPHM_TRACK_MODELS", str(tmp_path / "models"))
    assert run(monkeypatch, "models", "import-mononphm", str(folder)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models" / "mononphm" / "model.safetensors")
    assert load_head_model("mononphm").config.name == "mononphm"
    assert run(monkeypatch, "models", "import-mononphm", str(tmp_path)) == 4
    assert "configs.yaml" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["nphm-track", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
