"""What a session has come to: ``quality.csv``, and ``index.html`` with pictures, quality and links."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

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
    people = [
        {
            "name": name,
            "identity": identity_line(manifest.identities[name]) if name in manifest.identities else "",
            "takes": [_take(session, job) for job in sorted(jobs, key=_badness)],
        }
        for name, jobs in manifest.people().items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nphm_track.batch", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["value"] = lambda number: "" if number is None else number
    environment.filters["percent"] = lambda number: "" if number is None else f"{number:.2f} %"
    return environment.get_template("session.html").render(
        title=session.resolve().name,
        colours=asset("colours.css"),
        takes=len(manifest.jobs),
        people=people,
        sums=", ".join(f"{manifest.count(state)} {state.value}" for state in State if manifest.count(state)),
        frames=sum(int(job.quality.get("frames") or 0) for job in manifest.jobs),
        duration=_duration(sum(sum(job.seconds.values()) for job in manifest.jobs)),
        table=QUALITY_CSV,
    )


def _badness(job: Job) -> tuple[bool, float, str]:
    return job.state is not State.FAILED, -float(job.quality.get("landmark_error_percent") or 0), job.name


def _take(session: Path, job: Job) -> dict[str, Any]:
    """A take as the template knows it."""
    pictures = session / THUMBNAILS / job.output
    return {
        "job": job,
        "url": _url(job.output),
        "files": [name for name in LINKED if name in job.artefacts],
        "pictures": {entry.name for entry in pictures.iterdir()} if pictures.is_dir() else set(),
        "pictures_url": _url(f"{THUMBNAILS}/{job.output}"),
    }


def identity_line(identity: Person) -> str:
    """How a person's identity came about, in one line."""
    if identity.error:
        return f"identity merged, not refined: {identity.error}"
    if not identity.key_frames:
        return "identity merged over the takes"
    takes = len({frame.rpartition(" ")[0] for frame in identity.key_frames})
    return f"identity merged, then refined on {len(identity.key_frames)} frames of {takes} take{'s' * (takes > 1)}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _url(relative: str) -> str:
    return quote(relative, safe="/")
