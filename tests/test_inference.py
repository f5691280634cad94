"""The engine of networks gives what torch gives, whatever became of its cache."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nphm_track import inference
from nphm_track.inference import Engine

pytest.importorskip("openvino")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.conv(x)).flatten(1)
        return self.line(h), h.mean(1) + y


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(inference.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(inference.ENGINE, raising=False)
    inference.name.cache_clear()
    yield tmp_path / "cache"
    inference.release()
    inference.name.cache_clear()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


EXAMPLE = [torch.zeros(1, 3, 5, 5), torch.zeros(1)]
INPUT = (torch.linspace(-1, 1, 4 * 75).reshape(4, 3, 5, 5), torch.arange(4.0))


def check(engine: Engine, net: Net) -> list[Tensor]:
    out = engine(*INPUT)
    assert engine.uses_openvino
    for mine, other in zip(out, net(*INPUT), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    return list(out)


def test_it_gives_what_torch_gives_and_each_row_by_itself(net: Net) -> None:
    engine = Engine(net, EXAMPLE)
    whole = check(engine, net)
    for row in range(4):
        alone = engine(INPUT[0][row : row + 1], INPUT[1][row : row + 1])
        assert all(torch.equal(a[0], w[row]) for a, w in zip(alone, whole, strict=True))
    assert engine(INPUT[0][:0], INPUT[1][:0])[0].shape == (0, 5)


def test_a_converted_network_is_kept_and_gives_the_same_numbers(net: Net, cache: Path) -> None:
    first = check(Engine(net, EXAMPLE), net)
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    inference.release()
    assert all(map(torch.equal, check(Engine(net, EXAMPLE), net), first))
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"x" * 1000, None])
def test_a_damaged_one_is_converted_again(net: Net, cache: Path, content: bytes | None) -> None:
    first = check(Engine(net, EXAMPLE), net)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)
    inference.release()
    assert all(map(torch.equal, check(Engine(net, EXAMPLE), net), first))
    assert inference._unpacked(kept.read_bytes())


def test_other_weights_are_another_network(net: Net, cache: Path) -> None:
    check(Engine(net, EXAMPLE), net)
    net.line.bias.data += 1
    check(Engine(net, EXAMPLE), net)
    assert len(list(cache.iterdir())) == 2


def test_nothing_needs_to_be_kept(net: Net, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    check(Engine(net, EXAMPLE), net)


def test_threads_share_an_engine(net: Net) -> None:
    engine, found = Engine(net, EXAMPLE), []
    threads = [threading.Thread(target=lambda: found.append(engine(*INPUT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(one[0], found[0][0]) for one in found)


def test_torch_runs_what_openvino_does_not_take(net: Net) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1(x)

    engine = Engine(Odd(), [torch.ones(1, 2)])
    assert torch.equal(engine(torch.ones(3, 2))[0], torch.special.i1(torch.ones(3, 2)))
    assert not engine.uses_openvino


def test_torch_is_taken_where_it_is_wanted(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inference.ENGINE, "torch")
    engine = Engine(net, EXAMPLE)
    assert not engine.uses_openvino
    assert torch.equal(engine(*INPUT)[0], net(*INPUT)[0])


def test_openvino_tells_nobody_of_its_use() -> None:
    code = "import sys; from nphm_track import inference; print(inference.name(), 'openvino_telemetry' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["openvino", "False"]
