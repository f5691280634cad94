"""The viewer in a headless Chromium: it connects, draws the head, and follows the frame."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nphm_track import Run

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import PATIENCE, Page, find_chromium


@pytest.fixture(scope="module")
def viewer(run: Run) -> Iterator[Any]:
    pytest.importorskip("viser")
    find_chromium()
    from nphm_track.viewer.app import Viewer

    viewer = Viewer([run, run], port=8479)
    viewer.server.scene.configure_environment_map(None)  # it costs a processor that draws for itself many seconds
    yield viewer
    viewer.stop()


def test_shows_the_heads(viewer: Any) -> None:
    with Page(800, 500) as page:
        page.open(viewer.url)
        assert page.wait("document.body.innerText.includes('frame 0, 0.00 s, tracked')")

        def settled(changes_from: np.ndarray | None = None) -> np.ndarray:
            """The window once two looks agree, and not with the picture given."""
            end, before = time.monotonic() + PATIENCE, None
            while time.monotonic() < end:
                seen = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
                seen = seen[150:, :450]  # without messages and controls
                still = before is not None and (seen == before).all() and seen.std() > 5
                if still and (changes_from is None or np.abs(seen - changes_from).max() > 40):
                    return seen
                before = seen
                time.sleep(0.3)
            raise AssertionError("nothing is drawn, or it never settles")

        plain = settled()
        viewer._shading.value = "normals"
        coloured = settled(plain)
        assert np.ptp(coloured, axis=2).max() > 60  # colours, not grey
        viewer.show(3)  # lost: no head
        page.wait("document.body.innerText.includes('lost')")
        settled(coloured)
        outside = [url for url in page.requests if not url.startswith((viewer.url, "data:", "blob:", "ws://localhost"))]
        assert not outside and not page.errors
