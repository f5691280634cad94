"""Imports run downwards only: the rooms of ``docs/architecture.md`` stand one above the other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "nphm_track"
FLOORS = """
__main__ cli
batch doctor evaluation scans viewer live
__init__ tracker
export
tracking
training refine
regressor
geometry
faces heads
rendering cameras video
inference overlap models transformer locking _runtime
rigid robust bounded landmark_model expression_prior config_file kd_tree
files
conventions version errors
"""
"""From the top down; a room is a folder or a file of the package, and those of one floor stand in order, too."""
ROOMS = FLOORS.split()
FILES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions and for types only."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [(f"{node.module}.{alias.name}", str(node.module)) for alias in node.names]
    candidates = ((full, module, f"{module}.__init__") for full, module in names)
    return {next((place for place in places if place in FILES), "") for places in candidates} - {""}


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_floor():
    assert {room(name) for name in FILES} == set(ROOMS)


def test_imports_run_downwards():
    place = {name: ROOMS.index(room(name)) for name in FILES}
    assert not [f"{name} imports {other}" for name in FILES for other in IMPORTS[name] if place[other] < place[name]]


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter(IMPORTS).prepare()
