from __future__ import annotations

from typing import Any

import av
import pytest

from nphm_track import doctor


def test_the_self_test_of_video_passes_here() -> None:
    assert doctor._attempt(doctor._try_video).ok


def test_the_self_test_of_video_reads_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_interface(file: Any, mode: str = "r", **options: Any) -> Any:
        if mode == "r":
            raise TypeError("open() got an unexpected keyword argument")
        return opened(file, mode, **options)

    opened = av.open
    monkeypatch.setattr(av, "open", another_interface)
    check = doctor._attempt(doctor._try_video)
    assert not check.ok
    assert "unexpected keyword" in check.detail
