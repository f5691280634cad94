"""The report in a headless Chromium: nothing is fetched, the video plays, the head is there, the time line seeks."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nphm_track import read_run
from nphm_track.export.report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Page, find_chromium

INSIDE = ("file:", "data:", "blob:")
GREY = """(() => {
  const context = document.createElement("canvas").getContext("2d");
  context.drawImage(video, 0, 0, 96, 64);
  return context.getImageData(48, 32, 1, 1).data[0];
})()"""
"""Brightness in the middle of the frame that is shown."""


@pytest.fixture(scope="module")
def page(_made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report of the made-up run with an overlay, opened away from the run."""
    find_chromium()
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(_made.run.path, folder / "run")
    run = read_run(folder / "run")
    with av.open(str(run.overlay), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(len(run.track)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 30 * i, np.uint8))
            frame.pts = 2 * i  # every second frame of the clip, as its track says
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = write_report(run, folder / "report.html")
    shutil.rmtree(run.path)
    with Page() as page:
        page.open(report.as_uri())
        page.wait("document.querySelector('video').readyState >= 2")
        yield page


@pytest.fixture(autouse=True)
def clean(page: Page) -> Iterator[None]:
    yield
    assert not page.errors
    assert page.requests and all(url.startswith(INSIDE) for url in page.requests), page.requests


def box(page: Page, selector: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of an element in the window, after scrolling to it."""
    x, y, width, height = page.ask(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    return x, y, width, height


def picture_of(page: Page, selector: str) -> np.ndarray:
    x, y, width, height = (round(value) for value in box(page, selector))
    page.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    window = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return window[y + 2 : y + height - 2, x + 2 : x + width - 2]  # without its border


def test_video_plays(page: Page) -> None:
    page.ask("document.querySelector('video').play().then(() => 1)")
    page.wait("document.querySelector('video').currentTime > 0.1")
    page.wait("row > 0")  # the time line follows
    page.ask("document.querySelector('video').pause()")
    assert page.ask("[video.videoWidth, video.videoHeight]") == [96, 64]


def test_click_on_the_time_line_seeks(page: Page) -> None:
    x, y, width, height = box(page, "#timeline canvas")
    for row in (4, 1):
        part = float(page.ask(f"xOf(clock[{row}], {width})"))
        page.click(x + part, y + height / 2)
        page.wait(f"!video.seeking && Math.abs(video.currentTime - clock[{row}]) < 0.01")
        assert page.ask("row") == row and f"frame {2 * row} " in page.ask("readout.textContent")
        assert abs(page.ask(GREY) - 30 * row) < 12  # the picture of that frame


def test_head_is_drawn_and_turns(page: Page) -> None:
    page.ask("show(0)")
    seen = picture_of(page, "#head canvas").astype(int)
    drawn = np.abs(seen - seen[4, 60]).max(2) > 12
    assert 0.1 < drawn.mean() < 0.9 and seen[drawn].std() > 10  # neither blank nor full, and shaded
    assert not drawn[:9, 20:-20].any() and not drawn[20:-20, :9].any()  # all of it is in the picture
    x, y, width, height = box(page, "#head canvas")
    page.drag(x + width / 2, y + height / 2, 90, 0)
    assert np.abs(picture_of(page, "#head canvas") - seen).max() > 40


def test_head_performs(page: Page) -> None:
    switch = "document.querySelector('[data-switch={}]').click()"
    page.ask("show(0)")
    first = picture_of(page, "#head canvas").astype(int)
    page.ask("show(5)")
    moved = picture_of(page, "#head canvas")
    assert np.abs(moved - first).max() > 25
    page.ask("show(6)")  # lost there: it stays
    assert (picture_of(page, "#head canvas") == moved).all()
    for name in ("normals", "pose"):
        before = picture_of(page, "#head canvas").astype(int)
        page.ask(switch.format(name))
        assert np.abs(picture_of(page, "#head canvas") - before).max() > 40
        page.ask(switch.format(name))


def test_worst_frames_and_curves_answer(page: Page) -> None:
    page.ask("show(5)")
    page.ask("document.querySelector('#worst figure').click()")
    assert page.ask("data.worst[0].row") != 5
    page.wait("!video.seeking && row === data.worst[0].row")
    drawn = picture_of(page, "#timeline canvas").astype(int)
    page.ask("document.querySelectorAll('#curves button[aria-pressed=true]')[0].click()")
    assert np.abs(picture_of(page, "#timeline canvas") - drawn).max() > 40


CONTRAST = """(() => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = light(getComputedStyle(find("#timeline")).backgroundColor);
  return [...document.querySelectorAll("#curves button")].map((chip) => light(getComputedStyle(chip).color))
    .map((ink) => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));
})()"""
"""WCAG's contrast of the names of the curves, in their curves' colours where they are chosen."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_can_be_read_in_light_and_dark(page: Page, scheme: str) -> None:
    off = "document.querySelectorAll('#curves button[aria-pressed=false]')"
    before = page.ask("chosen.size")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        page.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        page.ask(f"[...{off}].slice(0, 8).forEach((chip) => chip.click())")
        assert page.ask("chosen.size") == before + 8
        assert min(page.ask(CONTRAST)) > 4.5
    finally:
        page.ask("[...chosen].slice(-8).forEach((shape) => document.querySelectorAll('#curves button')[shape].click())")
        page.call("Emulation.setEmulatedMedia", features=[])


def test_worst_frames_answer_the_keyboard(page: Page) -> None:
    page.ask("show(5)")
    page.ask("document.querySelector('#worst figure').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
    page.wait("!video.seeking && row === data.worst[0].row")


def test_fits_a_telephone(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        assert page.wait("document.documentElement.scrollWidth <= 390")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
