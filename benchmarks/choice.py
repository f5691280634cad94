"""Settings compared on scanned people, from what ``scans`` wrote for each: paired differences, and an honest choice.

A person counts once and only where every setting has a figure; clay and painted pictures apart. The last row of
a group takes for each person the setting that is best for all the others: what the choice is worth on new people.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness import Out, Report, table
from benchmarks.scans import SCORED_VIEWS
from nphm_track.errors import InputError


def run(
    out: Out, results: Annotated[list[Path], typer.Option(help="scans.json; the first one is the base.")]
) -> Report:
    """A setting is named after the folder of its file."""
    read = {str(path.parent.name or path): people(path) for path in results}
    if len(read) < len(results):
        raise InputError("results must lie in folders of different names")
    facts: dict[str, Any] = {}
    lines: list[list[Any]] = []
    for group in sorted(set.intersection(*(set(r) for r in read.values()))):
        shared = sorted(set.intersection(*(set(r[group]) for r in read.values())))
        values = np.array([[r[group][person] for person in shared] for r in read.values()])  # [settings, people, 2]
        rows = compare(list(read), values)
        facts["/".join(group)] = {"people": shared, "settings": rows}
        lines += [[*group, len(shared), *row.values()] for row in rows]
    header = ["picture", "camera", "people", "setting", "median mm", "ratio to the mean head", "mean head better for",
              "difference", "standard error", "better for"]  # fmt: skip
    return Report({"groups": facts}, [table(header, lines)])


def people(path: Path) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Median and the mean head's (mm), means over the scored views, by kind of picture and camera, and by person.

    Raises InputError when the file is not what ``scans`` writes.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result of the benchmark scans ({error})") from None
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for r in rows:
        if "failure" not in r and r["views"] in SCORED_VIEWS:
            group = found.setdefault((r["kind"], r["camera"]), {})
            group.setdefault(r["person"], []).append((r["median"], r["mean_head"]))
    return {
        group: {person: tuple(np.mean(pairs, 0).tolist()) for person, pairs in own.items()}  # type: ignore[misc]
        for group, own in found.items()
    }


def compare(names: list[str], values: NDArray[np.float64]) -> list[dict[str, Any]]:
    """One row a setting from values [settings, people, 2]: its median and the mean head's; and one of the choice."""
    ours, mean = values[..., 0], values[..., 1]
    chosen = left_out(ours)
    rows = []
    for name, own, head in zip([*names, "chosen without the person"], [*ours, chosen], [*mean, mean[0]], strict=True):
        difference = own - ours[0]
        error = difference.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.nan
        rows.append({
            "setting": name, "median": float(own.mean()), "ratio": float(own.mean() / head.mean()),
            "mean_head_better": int((head < own).sum()), "difference": float(difference.mean()), "error": float(error),
            "better": int((difference < 0).sum()),
        })  # fmt: skip
    return rows


def left_out(ours: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each person the figure [people] of the setting that is best for all others, of figures [settings, people]."""
    if ours.shape[1] < 2:
        return ours[0]
    others = ours.sum(1, keepdims=True) - ours
    best: NDArray[np.float64] = np.take_along_axis(ours, others.argmin(0)[None], 0)[0]
    return best
