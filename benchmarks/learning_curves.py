"""Held-out figures along training runs, drawn side by side; needs matplotlib.

    python benchmarks/learning_curves.py RUN [RUN ...] --out curves.png [--labels NAME ...] [--figures shape_mm ...]

Run folders are those of ``nphm-track train``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FIGURES = ("normal_deg", "point_mm", "shape_mm", "posed_mm", "corr_jawOpen", "corr_eyeBlink_L")


def read(run: Path) -> list[dict[str, float]]:
    """Held-out entries of a run's log, names without ``heldout/``."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {key.removeprefix("heldout/"): value for key, value in entry.items()}
        for entry in entries
        if any(key.startswith("heldout/") for key in entry)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", help="of the runs; their folders' names without")
    parser.add_argument("--figures", nargs="+", default=FIGURES)
    args = parser.parse_args()
    labels = args.labels or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"{len(args.runs)} runs, {len(labels)} labels")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(args.figures))
    rows = -(-len(args.figures) // columns)
    sheet, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False, layout="constrained")
    for axis, figure in zip(axes.flat, args.figures, strict=False):
        for run, label in zip(args.runs, labels, strict=True):
            points = [(entry["step"], entry[figure]) for entry in read(run) if figure in entry]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_title(figure, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("steps", fontsize=9)
    sheet.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
