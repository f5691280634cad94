from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.caching import CompileResultCacheImpl

from nphm_track.rendering.kernels import kernel


def double(x: float) -> float:
    return 2 * x


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def cached(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb[ci]"))


def test_a_kernel_is_compiled_once_for_all_processes(cache: Path) -> None:
    assert kernel()(double)(3.0) == 6
    assert len(cached(cache)) == 2  # an index and the compiled code
    again: Any = kernel()(double)
    assert again(3.0) == 6
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_kernel_works_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    assert kernel()(double)(3.0) == 6


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"neither one nor the other"])
def test_a_kernel_whose_cache_is_damaged_is_compiled_again(cache: Path, content: bytes) -> None:
    assert kernel()(double)(3.0) == 6
    for suffix in (".nbi", ".nbc"):
        next(path for path in cached(cache) if path.suffix == suffix).write_bytes(content)
        assert kernel()(double)(3.0) == 6
    again: Any = kernel()(double)
    assert again(3.0) == 6
    assert sum(again.stats.cache_hits.values()) == 1, "the damaged files were replaced"


def test_a_full_disk_costs_the_cache_and_not_the_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert kernel()(double)(3.0) == 6
    assert not cached(cache)
