from __future__ import annotations

from nphm_track.tracking.progress import LineProgress


def test_a_line_every_ten_seconds_says_how_far_it_is() -> None:
    now, lines = 0.0, list[str]()
    progress = LineProgress(lines.append, lambda: now)
    progress.note("60 frames")
    progress.stage("faces", 60)
    for second in range(1, 26):
        now = float(second)
        progress.advance()
    progress.stage("fit")
    now += 20
    progress.advance(5)
    assert lines == [
        "60 frames",
        "faces: 10 of 60, 1/s, 50 s left",
        "faces: 20 of 60, 1/s, 40 s left",
        "fit: 5 done, 0.25/s",
    ]
