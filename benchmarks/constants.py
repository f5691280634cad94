"""Numbers that somebody chose, by room of the package: named constants, fields of settings, and bare floats."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import Out, Report, table

PLAIN = {0.0, 0.5, 1.0, 2.0}
GUARD = 1e-5
"""Floats that are arithmetic, not choices; smaller ones keep a division from failing."""
KINDS = ("constants", "fields", "bare floats")


def run(
    out: Out,
    room: Annotated[list[str], typer.Option(help="Room to count; may be given again.")] = ["tracking", "refine"],  # noqa: B006
    package: Path = Path("nphm_track"),
) -> Report:
    """A row a room; the numbers themselves are in the JSON file."""
    del out
    found: dict[str, dict[str, list[str]]] = {name: {kind: [] for kind in KINDS} for name in room}
    for name in room:
        for path in sorted((package / name).rglob("*.py")):
            for kind, line, text in numbers(ast.parse(path.read_text(encoding="utf-8"))):
                found[name][kind].append(f"{path.name}:{line} {text}")
    rows: list[list[Any]] = [[name, *(len(kinds[kind]) for kind in KINDS)] for name, kinds in found.items()]
    rows.append(["all", *(sum(row[k] for row in rows) for k in range(1, 4))])
    return Report({"numbers": found}, [table(["room", *KINDS], rows)])


def numbers(tree: ast.Module) -> list[tuple[str, int, str]]:
    """Kind, line and text of each number of a module. Whole numbers within functions are counts and indices."""
    found: list[tuple[str, int, str]] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and part.value and (text := _chosen(part.value)):
                    found.append(("fields", part.lineno, f"{ast.unparse(part.target)} = {text}"))
        elif isinstance(node, ast.Assign) and (text := _chosen(node.value)):
            names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            found += [("constants", node.lineno, f"{ast.unparse(name)} = {text}") for name in names]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            constants = [n for n in ast.walk(function) if isinstance(n, ast.Constant)]
            floats = [(n.lineno, n.value) for n in constants if isinstance(n.value, float)]
            chosen = [(line, value) for line, value in floats if value > GUARD and value not in PLAIN]
            found += [("bare floats", line, str(value)) for line, value in chosen]
    return found


def _chosen(value: ast.expr) -> str:
    """The text of a number, of a tuple of some, or of a field whose default is one; empty otherwise."""
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func)
        if name == "Field":
            defaults = [k.value for k in value.keywords if k.arg == "default"] + value.args[:1]
            return _chosen(defaults[0]) if defaults else ""
        return ast.unparse(value) if name.startswith("np.deg2rad") else ""
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    leaves = [leaf for part in parts for leaf in ast.walk(part) if isinstance(leaf, ast.expr)]
    numeric = bool(parts) and all(isinstance(leaf, ast.Constant | ast.BinOp | ast.UnaryOp) for leaf in leaves)
    numeric = numeric and all(
        isinstance(leaf.value, int | float) and not isinstance(leaf.value, bool)
        for leaf in leaves
        if isinstance(leaf, ast.Constant)
    )
    return ast.unparse(value) if numeric else ""
