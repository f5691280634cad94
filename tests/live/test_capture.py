"""Where pictures come from, and which of them are dropped."""

from __future__ import annotations

import threading

import pytest

from nphm_track.errors import InputError
from nphm_track.live.capture import Capture, Newest
from tests.live.conftest import FRAMES, RATE


class ByHand:
    """A clock that stands still until it is set; ``reached`` waits until somebody waits for a later moment."""

    def __init__(self) -> None:
        self.time, self.waiting = 0.0, -1.0
        self.changed = threading.Condition()

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        with self.changed:
            self.waiting = moment
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.time >= moment, 10)

    def set(self, time: float) -> None:
        with self.changed:
            self.time = time
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.waiting > time, 10)


def test_an_item_that_nobody_took_gives_way():
    newest: Newest[int] = Newest()
    for item in (1, 2, 3):
        assert newest.put(item)
    items = iter(newest)
    assert next(items) == 3
    assert newest.dropped == 2
    newest.put(4)
    newest.end()
    assert list(items) == [4]
    assert not newest.put(5)


def test_an_error_comes_after_the_last_item():
    newest: Newest[int] = Newest()
    newest.put(1)
    newest.end(ValueError("broken"))
    items = iter(newest)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_a_file_is_played_at_its_own_pace_and_what_is_late_is_dropped(clip):
    clock = ByHand()
    with Capture(str(clip), clock=clock) as capture:
        assert capture.size == (384, 288)
        pictures = iter(capture)
        clock.set(0.5 / RATE)
        assert next(pictures).index == 0
        clock.set(1.5 / RATE)
        second = next(pictures)
        assert (second.index, second.arrived) == (1, 1.5 / RATE)
        clock.set(6.5 / RATE)  # while one was looked at, five came
        late = next(pictures)
        assert (late.index, late.time, capture.dropped) == (6, pytest.approx(6 / RATE), 4)
        assert capture.develop(late).image.shape == (288, 384, 3)
        clock.time = FRAMES / RATE
        with clock.changed:
            clock.changed.notify_all()
        assert [picture.index for picture in pictures][-1] == FRAMES - 1
        assert capture.warning == ""


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("77", "camera 77 cannot be opened|no camera 77"),
        ("/dev/video77", "cannot be opened"),
        ("there_is_no.mp4", "no such file"),
        ("http://127.0.0.1:9/x.mp4", "nothing to read there"),
        ("file:///etc/hostname", "begin with one of rtsp"),
        ("gopher://host", "begin with one of rtsp"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_line(where, words):
    with pytest.raises(InputError, match=words) as error:
        Capture(where)
    assert "\n" not in str(error.value)


def test_size_and_rate_are_for_cameras(clip):
    with pytest.raises(InputError, match="cameras"):
        Capture(str(clip), size=(640, 480))


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(InputError, match="not a video"):
        Capture(str(tmp_path / "clip.mp4"))
