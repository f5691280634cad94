"""``python -m benchmarks [NAME [OPTIONS]]``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path

import typer

from benchmarks.harness import Report
from nphm_track.errors import NphmTrackError


def names() -> dict[str, str]:
    """Names of the benchmarks and the first line of what they say of themselves; none is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def application(name: str) -> typer.Typer:
    """The command line of one benchmark."""
    module = import_module(f"benchmarks.{name.replace('-', '_')}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=module.__doc__)(_reported(name, module.run))
    return app


def _reported(name: str, run: Callable[..., Report]) -> Callable[..., None]:
    """``run``, whose report is printed, written to its ``out`` and made the exit code."""

    @wraps(run)
    def command(out: Path, **options: object) -> None:
        report = run(out=out, **options)
        report.save(out, name)
        raise typer.Exit(0 if report.passed else 1)

    command.__annotations__ = run.__annotations__ | {"return": None}
    return command


def main(arguments: list[str]) -> None:
    known = names()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, known))
        print("\n".join(["python -m benchmarks NAME [OPTIONS]", *(f"  {k:{width}}  {v}" for k, v in known.items())]))
        return
    name, *options = arguments
    if name not in known:
        sys.exit(f"benchmarks: there is no benchmark '{name}'; choose from {', '.join(known)}")
    try:
        application(name)(options, prog_name=f"python -m benchmarks {name}")
    except NphmTrackError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
