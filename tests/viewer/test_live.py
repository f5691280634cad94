"""The viewer of live sessions, asked over HTTP."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest

from nphm_track.heads.template import load_template

pytest.importorskip("viser")


def test_it_serves_its_page_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from nphm_track.viewer.live import LiveViewer

    viewer = LiveViewer(port=0)
    try:
        with urllib.request.urlopen(viewer.url, timeout=20) as page:
            assert page.status == 200
    finally:
        viewer.close()
    assert capsys.readouterr().out == ""


def test_the_pieces_of_a_colour_make_up_the_head() -> None:
    from nphm_track.viewer.live import by_colour

    template = load_template()
    pieces = list(by_colour(template))
    together = np.concatenate([kept[faces] for _, kept, faces in pieces])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(template.head_faces, axis=0))
    assert max(len(kept) for _, kept, _ in pieces) > 5000  # the skin
    assert len({colour for colour, _, _ in pieces}) == len(pieces) > 5
