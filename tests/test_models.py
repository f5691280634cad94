"""Model files that were damaged or tampered with are refused with one line, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.models import read_weights, released_models, sha256, write_weights


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_weights(tmp_path / "model.safetensors", {"w": torch.arange(600.0).reshape(20, 30)}, {"width": 30})
    return tmp_path / "model.safetensors"


def refused(path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_weights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("size", [0, 4, 8, 40, 200, 2000])
def test_truncated(weights: Path, size: int) -> None:
    weights.write_bytes(weights.read_bytes()[:size])
    refused(weights)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refused(path)
    torch.save({"w": Bomb(mark)}, path)
    refused(path)
    assert not mark.exists()


def header_of(data: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: object, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [-4, 2396]},
        {"shape": [1 << 40, 30]},
        {"shape": [20, 31]},
        {"dtype": "F13"},
        {"dtype": "F64"},
    ],
)
def test_headers_that_lie(weights: Path, change: dict[str, object]) -> None:
    header, rest = header_of(weights.read_bytes())
    header["w"] |= change
    weights.write_bytes(with_header(header, rest))
    refused(weights)


@pytest.mark.parametrize("metadata", [{}, {"config": "{"}, {"config": "no JSON"}])
def test_configurations_that_are_missing_or_damaged(weights: Path, metadata: dict[str, str]) -> None:
    header, rest = header_of(weights.read_bytes())
    weights.write_bytes(with_header(header | {"__metadata__": metadata}, rest))
    refused(weights)


def test_random_damage(weights: Path) -> None:
    data, rng = weights.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(0, 160, 3):
            damaged[at] = rng.integers(256)
        weights.write_bytes(damaged)
        try:
            read_weights(weights)
        except ModelError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("config", ["[]", "3", "[" * 100_000, "{", '{"a": NaN}'])
def test_a_configuration_that_is_none(weights: Path, config: str) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, str(weights), metadata={"config": config})
    refused(weights)


def test_weights_that_are_not_finite(weights: Path) -> None:
    write_weights(weights, {"w": torch.tensor([1.0, float("nan")])}, {})
    refused(weights)


def test_a_released_model_with_a_flipped_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    weights = tmp_path / "mine" / "model.safetensors"
    write_weights(weights, {"w": torch.ones(100)}, {"kind": "x"})
    entry = {"size": weights.stat().st_size, "sha256": sha256(weights), "licence": "MIT"}
    (tmp_path / "index.json").write_text(json.dumps({"mine": entry}))
    monkeypatch.setenv("NPHM_TRACK_MODELS", str(tmp_path))
    assert read_weights("mine")[1] == {"kind": "x"}
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    for name in ("mine", weights):
        with pytest.raises(ModelError, match="not the file that was released"):
            read_weights(name)


@pytest.mark.parametrize("index", ["", "[]", '{"mine": 3}', "[" * 100_000])
def test_a_damaged_list_of_models_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    (tmp_path / "index.json").write_text(index)
    monkeypatch.setenv("NPHM_TRACK_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match=r"index\.json is not a list of models"):
        released_models()
