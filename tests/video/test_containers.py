from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nphm_track.video.containers import open_container


def test_a_title_that_is_not_utf8_does_not_cost_the_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Un café, une clé"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 64, "yuv420p", Fraction(1, 25)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert "café".encode() in content
    path.write_bytes(content.replace("é".encode(), b"\xe9\xff"))  # invalid, and as long
    with open_container(path) as opened:
        assert opened.metadata["title"].startswith("Un caf")
        assert sum(1 for _ in opened.decode(video=0)) == 1
