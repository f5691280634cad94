"""What a run says at its end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from nphm_track.files.names import text_of
from nphm_track.tracking.records import lost_words
from nphm_track.tracking.run_folder import (
    CANONICAL_PLY,
    MESHES,
    MESHES_NPZ,
    OVERLAY_MP4,
    OVERLAY_PNG,
    REPORT_HTML,
    RIG_NPZ,
    TRACK_NPZ,
    TRANSFORMS_JSON,
    Run,
)

OUTPUTS = {
    TRACK_NPZ: "poses, codes, landmarks, intrinsics",
    TRANSFORMS_JSON: "cameras (nerfstudio, head-fixed world)",
    CANONICAL_PLY: "the person's neutral head",
    RIG_NPZ: "the person's rig: neutral head, shapes, eyes",
    MESHES: "one head per frame, fixed topology",
    MESHES_NPZ: "one head per frame, fixed topology",
    OVERLAY_MP4: "the head over the video",
    OVERLAY_PNG: "the head over the image",
    REPORT_HTML: "all of it on one page, for any browser",
}


REFINED = (("normals", "normal_deg", "degrees"), ("points", "point_mm", "mm"), ("landmarks", "landmark_px", "px"))
"""Terms of the refinement: what they are called, their keys in ``quality``, their units."""


def summary(run: Run) -> dict[str, Any]:
    """Quality, speed and the files of a run, as JSON values."""
    seconds = sum(run.info.timings.values())
    frames = run.info.quality.get("frames") or 0
    return {
        "run": text_of(run.path),
        "state": run.info.state,
        **run.info.quality,
        "seconds": round(seconds, 3),
        "frames_per_second": round(frames / seconds, 2) if seconds else None,
        "timings": run.info.timings,
        "outputs": [name for name in OUTPUTS if (run.path / name).exists()],
    }


def print_summary(run: Run) -> None:
    """The closing table, on stdout."""
    values = summary(run)
    table = Table.grid(padding=(0, 2))
    frames = f"{values.get('tracked')} tracked, {values.get('filled')} filled in, {lost_words(run.info.quality)}"
    table.add_row("frames", frames)
    if values.get("landmark_error_px") is not None:
        percent = f"{values['landmark_error_percent']:.2f} % of the inter-ocular distance"
        table.add_row("landmark error", f"{values['landmark_error_px']:.2f} px, {percent}")
    for name, term, unit in REFINED:
        if values.get(f"refine_{term}_after") is not None:
            before, after = values[f"refine_{term}_before"], values[f"refine_{term}_after"]
            table.add_row(f"refined {name}", f"{before:.2f} -> {after:.2f} {unit}")
    if values.get("rolled_back"):
        table.add_row("rolled back", f"{values['rolled_back']} frames that the refinement made worse")
    if values["frames_per_second"]:
        table.add_row("speed", f"{values['frames_per_second']:.1f} frames/s ({values['seconds']:.1f} s)")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for name in values["outputs"]:
        console.print(f"{run.path / name}  ({OUTPUTS[name]})", markup=False)
