"""What a session has come to: ``quality.csv``, and ``index.html`` with pictures, quality and links."""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nphm_track.batch.manifest import INDEX_HTML, QUALITY_CSV, THUMBNAILS, Job, Manifest, Person, State
from nphm_track.export.page import asset
from nphm_track.tracking.records import replacing

COLUMNS = (
    "person", "take", "state", "frames", "tracked", "filled", "lost", "landmark_error_px", "landmark_error_percent",
    "refine_normal_deg_before", "refine_normal_deg_after", "rolled_back", "seconds", "worst_frames", "run", "input",
    "error",
)  # fmt: skip
REPORT = "report.html"
LINKED = (REPORT, "overlay.mp4", "overlay.png", "track.npz", "transforms.json", "canonical.ply")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
body { background: var(--ground); color: var(--ink) } a { color: var(--accent) }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } .sums { color: var(--dim) }
table { border-collapse: collapse; width: 100% } td, th { padding: .45rem .6rem; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid var(--line) } th { color: var(--dim); font-weight: 500; font-size: .85rem }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { height: 72px; border-radius: 4px; vertical-align: top } img.worst { height: 44px; margin: 0 2px }
.state { padding: .1rem .5rem; border-radius: 1rem; font-size: .85rem; background: #8883 }
.done { background: #3b53 } .failed { background: #f443 } .running { background: #38f3 }
.error { color: var(--wrong); font-size: .9rem }
"""


def write_summary(session: Path, manifest: Manifest) -> None:
    """Write both files atomically. Raises OSError."""
    with replacing(session / QUALITY_CSV) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for job in manifest.jobs:
            table.writerow({name: _inert(value) for name, value in quality_row(manifest, job).items()})
    with replacing(session / INDEX_HTML) as partial:
        partial.write_text(page(session, manifest), encoding="utf-8")


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def quality_row(manifest: Manifest, job: Job) -> dict[str, Any]:
    """One take as a row of ``quality.csv``; what is not known is empty."""
    return {
        "person": job.person,
        "take": job.name,
        "state": job.state.value,
        **{name: job.quality.get(name) for name in COLUMNS[3:12]},
        "seconds": round(sum(job.seconds.values()), 1) or None,
        "worst_frames": " ".join(map(str, job.worst)),
        "run": job.output,
        "input": job.input,
        "error": job.error,
    }


def page(session: Path, manifest: Manifest) -> str:
    """The page, people one after the other, each with the worst takes first."""
    people = "".join(
        _person(session, name, jobs, manifest.identities.get(name)) for name, jobs in manifest.people().items()
    )
    sums = ", ".join(f"{manifest.count(state)} {state.value}" for state in State if manifest.count(state))
    seconds = sum(sum(job.seconds.values()) for job in manifest.jobs)
    frames = sum(int(job.quality.get("frames") or 0) for job in manifest.jobs)
    title, style = html.escape(session.resolve().name), asset("colours.css") + _STYLE
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style}</style>\n<h1>{title}</h1>\n"
        f'<p class="sums">{len(manifest.jobs)} takes of {len(manifest.people())} people: {sums}. {frames} frames, '
        f'{_duration(seconds)} of work. <a href="{QUALITY_CSV}">{QUALITY_CSV}</a></p>\n{people}</html>\n'
    )


def _person(session: Path, name: str, jobs: list[Job], identity: Person | None) -> str:
    def badness(job: Job) -> tuple[bool, float, str]:
        return job.state is not State.FAILED, -float(job.quality.get("landmark_error_percent") or 0), job.name

    head = "<tr><th><th>take<th>state<th>frames<th>lost<th>landmark error<th>look at<th>files</tr>\n"
    rows = "".join(_row(session, job) for job in sorted(jobs, key=badness))
    text = f'<p class="sums">{html.escape(identity_line(identity))}</p>\n' if identity else ""
    return f"<h2>{html.escape(name)}</h2>\n{text}<table>{head}{rows}</table>\n"


def identity_line(identity: Person) -> str:
    """How a person's identity came about, in one line."""
    if identity.error:
        return f"identity merged, not refined: {identity.error}"
    if not identity.key_frames:
        return "identity merged over the takes"
    takes = len({frame.rpartition(" ")[0] for frame in identity.key_frames})
    return f"identity merged, then refined on {len(identity.key_frames)} frames of {takes} take{'s' * (takes > 1)}"


def _row(session: Path, job: Job) -> str:
    pictures = f"{THUMBNAILS}/{job.output}"
    run = _url(job.output)

    def picture(name: str, kind: str, text: str) -> str:
        if not (session / pictures / name).is_file():
            return ""
        text = html.escape(text)
        return f'<img class="{kind}" src="{_url(pictures)}/{name}" alt="{text}" title="{text}" loading="lazy">'

    error = job.quality.get("landmark_error_percent")
    worst = "".join(picture(f"worst_{k}.jpg", "worst", f"frame {frame}") for k, frame in enumerate(job.worst[:3]))
    numbers = ", ".join(map(str, job.worst))
    links = " ".join(f'<a href="{run}/{name}">{name}</a>' for name in LINKED if name in job.artefacts)
    text = f'<div class="error">{html.escape(job.error)}</div>' if job.error else ""
    cells = (
        picture("head.jpg", "head", job.name),
        (f'<a href="{run}/">{html.escape(job.name)}</a>' if job.artefacts else html.escape(job.name)) + text,
        f'<span class="state {job.state.value}">{job.state.value}</span>',
        (job.quality.get("frames"), job.quality.get("lost"), None if error is None else f"{error:.2f} %"),
        f"{worst}<div>{numbers}</div>" if job.worst else "",
        links,
    )
    html_cells = (
        "".join(f'<td class="number">{"" if value is None else value}' for value in cell)
        if isinstance(cell, tuple)
        else f"<td>{cell}"
        for cell in cells
    )
    return f"<tr>{''.join(html_cells)}</tr>\n"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _url(relative: str) -> str:
    return quote(relative, safe="/")
