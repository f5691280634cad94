"""The page's structure and what is embedded in it; how it looks and behaves takes a browser."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nphm_track.errors import OutputError
from nphm_track.export import report
from nphm_track.export.report import write_report


class Page(html.parser.HTMLParser):
    """Elements of a page, with the text of its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def unpack(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture
def with_overlay(made):
    """The made-up run with a video for its overlay: the tracked frames of its clip."""
    import av

    with av.open(str(made.run.path / "overlay.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(len(made.run.track)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 30 * i, np.uint8))))
        container.mux(stream.encode(None))
    return made


def test_nothing_is_fetched(with_overlay) -> None:
    page = Page(write_report(with_overlay.run))
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp|import\(", page.text)
    assert not [a for tag, a in page.tags if tag in ("link", "iframe") or "src" in a or "href" in a]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "http" not in policy
    assert "%" + "DATA" not in page.text and not re.search(r"%[A-Z]{3,}%", page.text)


def test_numbers_are_those_of_the_track(with_overlay) -> None:
    run = with_overlay.run
    data, track = Page(write_report(run)).data, run.track
    np.testing.assert_array_equal(unpack(data["time"], "<f4"), (track.time - track.time[0]).astype("f4"))
    np.testing.assert_array_equal(unpack(data["status"], "u1"), track.status)
    for name in ("confidence", "landmark_error_px", "normal_error_deg"):
        np.testing.assert_array_equal(unpack(data[name], "<f4"), getattr(track, name))
    shapes = unpack(data["blendshapes"], "u1").reshape(len(track), -1)
    assert shapes.shape[1] == len(data["shape_names"]) == 51
    np.testing.assert_allclose(shapes[0] / 254, track.blendshapes[0, 1:], atol=0.003)
    assert (shapes[[2, 3, 6]] == 255).all()
    vertices, faces = run.canonical()
    np.testing.assert_array_equal(unpack(data["mesh"]["vertices"], "<f4").reshape(-1, 3), vertices)
    np.testing.assert_array_equal(unpack(data["mesh"]["faces"], "<u4").reshape(-1, 3), faces)
    assert base64.b64decode(data["overlay"]["base64"]) == run.overlay.read_bytes()
    assert ("focal length", "150.0, 140.0 px") in [tuple(fact) for fact in data["facts"]["Camera"]]


def test_worst_frames_have_the_right_thumbnails(with_overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "WORST_SPACING_S", 0.0)
    run = with_overlay.run
    run.track.landmark_error_px[[0, 1, 4, 5]] = 2, 5, 3, 9
    run.track.landmark_error_px[2] = 50  # not tracked: not judged
    worst = Page(write_report(run)).data["worst"]
    assert [frame["row"] for frame in worst] == [5, 1, 4, 0]
    assert worst[0]["why"] == "9.0 px off"
    for frame in worst:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame["jpeg"]))))
        assert image.mean() == pytest.approx(30 * frame["row"], abs=6)


def test_worst_frames_are_not_neighbours(made) -> None:
    made.run.track.landmark_error_px[[0, 1, 4, 5]] = 2, 5, 3, 4  # at 0, 0.08, 0.32 and 0.4 s
    assert [frame["row"] for frame in Page(write_report(made.run)).data["worst"]] == [1]


def test_run_without_meshes_and_overlay(made) -> None:
    shutil.rmtree(made.run.path / "meshes")
    (made.run.path / "canonical.ply").unlink()
    data = Page(write_report(made.run)).data
    assert data["mesh"] is None and data["overlay"] is None
    assert all(frame["jpeg"] is None for frame in data["worst"])


def test_run_in_which_nothing_was_seen(made) -> None:
    track = made.run.track
    track.status[:] = 2
    for values in (track.blendshapes, track.landmark_error_px, track.t, track.R):
        values[:] = np.nan
    data = Page(write_report(made.run)).data
    assert data["lively"] == [] and data["worst"] == []
    assert ["distance", "no head"] in data["facts"]["Camera"]


def test_image_input(made) -> None:
    made.run.info.input.kind, made.run.info.input.fps = "image", None
    Image.new("RGB", (96, 64), (9, 99, 200)).save(made.run.path / "overlay.png")
    data = Page(write_report(made.run)).data
    assert data["overlay"]["kind"] == "image"
    assert Image.open(io.BytesIO(base64.b64decode(data["overlay"]["base64"]))).size == (96, 64)


def test_large_video_is_linked(with_overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", 100)
    run = with_overlay.run
    assert Page(write_report(run)).data["overlay"] == {"kind": "video", "href": "overlay.mp4"}
    elsewhere = Page(write_report(run, tmp_path / "page.html")).data["overlay"]["href"]
    assert elsewhere == run.overlay.resolve().as_uri()


def test_names_cannot_break_the_page(made) -> None:
    made.run.info.input.path = "/clips/</script><b>%DATA% &.mp4"
    page = Page(write_report(made.run))
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert page.data["facts"]["Input"][0] == ["file", "/clips/</script><b>%DATA% &.mp4"]


def test_scripts_parse(made, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = tmp_path / "page.js"
    script.write_text(Page(write_report(made.run)).scripts[1], encoding="utf-8")
    subprocess.run([node, "--check", str(script)], check=True, capture_output=True)


def test_another_file_is_replaced_on_request_only(made, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_report(made.run, mine)
    assert mine.read_text() == "mine"
    write_report(made.run, mine, overwrite=True)
    assert "nphm-track" in mine.read_text(encoding="utf-8")


def test_is_written_whole(made) -> None:
    path = write_report(made.run)
    before = path.read_bytes()
    made.run.track.time[0] = np.nan  # no number of JSON
    with pytest.raises(ValueError):
        write_report(made.run)
    assert path.read_bytes() == before and not list(made.run.path.glob("*.partial"))
