"""Train the variants of a recipe that tables 5 and 6 of the paper compare, and print their table.

    python training/ablations.py training/recipes/pix2nphm.toml -o runs/ablations [KEY=VALUE ...]
    python training/ablations.py training/recipes/pix2nphm.toml -o runs/ablations --print

Each variant is a run of its own that goes on where it stopped; the same variant in two tables is trained once. --print
trains nothing. --only takes names of tables. Values are the held-out figures of the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import tomllib
from pathlib import Path

from nphm_track.models import WEIGHTS_NAME, read_config
from nphm_track.training.cli import train

VARIANTS = Path(__file__).with_suffix(".toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("values", nargs="*", help="KEY=VALUE for all variants")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--variants", type=Path, default=VARIANTS)
    parser.add_argument("--only", nargs="*", help="tables")
    parser.add_argument("--print", action="store_true", help="print what there is")
    args = parser.parse_args()
    tables = tomllib.loads(args.variants.read_text(encoding="utf-8"))
    tables = {name: rows for name, rows in tables.items() if not args.only or name in args.only}
    runs = {
        (name, variant): (args.out / run_name(changes), changes)
        for name, rows in tables.items()
        for variant, changes in rows.items()
    }
    if not args.print:
        for folder, changes in dict(runs.values()).items():
            train(args.recipe, folder, resume=True, overrides=[*args.values, *changes])
    print(table({key: figures(folder) for key, (folder, _) in runs.items()}))


def run_name(changes: list[str]) -> str:
    """The folder of a variant: a variant without changes is the recipe itself."""
    return hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8] if changes else "whole"


def figures(folder: Path) -> dict[str, float]:
    """Held-out figures of a finished run; nothing where there is none."""
    if not (folder / WEIGHTS_NAME).is_file():
        return {}
    training = read_config(folder / WEIGHTS_NAME)["training"]
    return {k: v for k, v in training.items() if k not in ("steps", "hours")}


def table(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Markdown: a row for each variant."""
    names = list(dict.fromkeys(k for values in found.values() for k in values))
    lines = [f"| table | variant | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for (name, variant), values in found.items():
        cells = [f"{values[k]:.3f}" if k in values else "-" for k in names]
        lines.append(f"| {' | '.join((name, variant, *cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
