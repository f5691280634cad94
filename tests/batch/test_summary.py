from __future__ import annotations

import csv
import sys
from html.parser import HTMLParser
from pathlib import Path

from nphm_track.batch.manifest import Job, Manifest, State
from nphm_track.batch.summary import write_summary

sys.path.insert(0, str(Path(__file__).parents[1]))
import browser

LOWEST_CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = numbers(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  return Math.min(...[...document.querySelectorAll("h1, .sums, th, td, a, .state, .error")].map((element) => {
    const style = getComputedStyle(element), [r, g, b, alpha = 1] = numbers(style.backgroundColor);
    const behind = light(ground.map((c, i) => alpha * [r, g, b][i] + (1 - alpha) * c));
    const ink = light(numbers(style.color).slice(0, 3));
    return (Math.max(ink, behind) + 0.05) / (Math.min(ink, behind) + 0.05);
  }));
})()"""
"""WCAG's contrast of the text that stands out least."""


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_and_table(tmp_path: Path) -> None:
    quality = {"frames": 20, "tracked": 18, "filled": 1, "lost": 1, "landmark_error_percent": 1.5}
    good = Job(input="a.mp4", person="Ännä & co", name="50% & b", state=State.DONE, quality=quality, worst=[7, 3])
    good.artefacts, good.seconds = ["overlay.mp4", "report.html", "run.json"], {"observe": 40.0, "track": 80.0}
    bad = Job(input="b.mp4", person="ben", name="b", state=State.FAILED, error="b.mp4: <script>alert(1)</script>")
    pictures = tmp_path / "thumbnails" / good.person / good.name
    pictures.mkdir(parents=True)
    for name in ("head.jpg", "worst_0.jpg"):
        (pictures / name).touch()
    write_summary(tmp_path, Manifest(root=".", jobs=[good, bad]))
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    folder = "%C3%84nn%C3%A4%20%26%20co/50%25%20%26%20b"
    assert [a["href"] for tag, a in page.tags if tag == "a"][1:] == [
        f"{folder}/",
        f"{folder}/report.html",
        f"{folder}/overlay.mp4",
    ]
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert images == [f"thumbnails/{folder}/head.jpg", f"thumbnails/{folder}/worst_0.jpg"]
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert "b.mp4: <script>alert(1)</script>" in page.text and "2.0 min of work" in page.text and "1.50 %" in page.text
    with open(tmp_path / "quality.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "failed"]
    assert (rows[0]["lost"], rows[0]["worst_frames"], rows[0]["seconds"], rows[1]["frames"]) == (
        "1",
        "7 3",
        "120.0",
        "",
    )


def test_can_be_read_in_light_and_dark(tmp_path: Path) -> None:
    jobs = [
        Job(input=f"{state}.mp4", person="anna", name=state, state=state, error="no face" * (state is State.FAILED))
        for state in State
    ]
    write_summary(tmp_path, Manifest(root=".", jobs=jobs))
    browser.find_chromium()
    grounds = set()
    with browser.Page() as page:
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open((tmp_path / "index.html").as_uri())
            assert page.ask(LOWEST_CONTRAST) > 4.5, scheme
            grounds.add(page.ask("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
