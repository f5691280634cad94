"""What ``docs/faults.md`` promises is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_each_promise_names_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| What", "|---"))]
    assert len(rows) > 30
    assert not [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row)]


def test_the_tests_are_there() -> None:
    missing = [f"{f}::{n}" for f, n in NAMED if not re.search(rf"def {n}\(", (ROOT / f).read_text(encoding="utf-8"))]
    assert not missing
