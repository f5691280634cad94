"""``--json``: one JSON object on stdout, however the command ends."""

from __future__ import annotations

import json
import sys
from typing import Any

told = False
"""Whether the command has printed its object."""


def print_json(values: Any) -> None:
    """Print the object that is the command's answer."""
    global told
    told = True
    print(json.dumps(values))


def print_failure(message: str, exit_code: int) -> None:
    """Print ``{"error", "exit_code"}`` when JSON was asked for and the command has printed no object of its own."""
    if "--json" in sys.argv and not told:
        print_json({"error": message, "exit_code": exit_code})
