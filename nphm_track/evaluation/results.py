"""What every evaluation writes: ``results.json`` and ``results.md`` with version, models and command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nphm_track.errors import OutputError
from nphm_track.tracking.records import replacing
from nphm_track.version import __version__

RESULTS_JSON, RESULTS_MD = "results.json", "results.md"


def provenance(command: str, models: dict[str, str]) -> dict[str, Any]:
    """Where numbers come from: version of this package, command line, models by name with the SHA-256 of the file."""
    return {
        "version": __version__,
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "models": dict(sorted(models.items())),
    }


def provenance_text(facts: dict[str, Any]) -> str:
    models = ", ".join(f"{name} {digest[:12]}" for name, digest in facts["models"].items())
    return f"nphm-track {facts['version']}, {facts['date']}\n\n    {facts['command']}\n\nModels: {models or 'none'}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; None and NaN are a dash."""
    lines = [list(header), ["---"] * len(header), *([_text(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(folder: Path, facts: dict[str, Any], markdown: str) -> Path:
    """Write both files atomically; returns the markdown's path. Raises OutputError when that fails."""
    text = json.dumps(_finite(facts), indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((RESULTS_JSON, text), (RESULTS_MD, markdown + "\n")):
            with replacing(folder / name) as partial:
                partial.write_text(content, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from None
    return folder / RESULTS_MD


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value).replace("|", "/")


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
