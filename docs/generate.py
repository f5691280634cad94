"""MkDocs hook: reference pages say what the code says.

A line ``<!-- generate: NAME [ARGUMENT] -->`` of a page is replaced by what the function ``NAME`` below returns.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROLE = re.compile(r":(?:class|meth|func):(?=<code>)")
DIRECTIVE = re.compile(r"^<!-- generate: (\w+)(?: (\S+))? -->$", re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page. An unknown name is a KeyError, which ends the build."""
    return DIRECTIVE.sub(lambda found: GENERATORS[found[1]](*filter(None, [found[2]])), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page: docstrings have roles of Sphinx, which are no Markdown."""
    return ROLE.sub("", content)


def options(where: str) -> str:
    """Table of a pydantic model's fields; ``where`` is ``module:Class``."""
    module, name = where.split(":")
    rows = [("name", "type", "default", "meaning")]
    for field_name, field in getattr(import_module(module), name).model_fields.items():
        kind = field.annotation if isinstance(field.annotation, str) else _type_name(field.annotation)
        bounds = ", ".join(_bound(limit) for limit in field.metadata if _bound(limit))
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append((f"`{field_name}`", f"{kind} {bounds}".strip(), default, field.description or ""))
    return _table(rows)


def terms() -> str:
    """Table of the refinement's terms, their fields and what they are."""
    from nphm_track.refine.terms import Terms

    rows = [("term", "field", "default", "meaning")]
    for name, term in Terms().named():
        rows.append((f"`{name}`", "", "", (type(term).__doc__ or "").strip()))
        for field_name, field in type(term).model_fields.items():
            rows.append(("", f"`{field_name}`", f"`{field.default:.4g}`", field.description or ""))
    return _table(rows)


def refinement() -> str:
    """The default refinement as a TOML file."""
    from nphm_track.config_file import to_toml
    from nphm_track.refine.config import RefineConfig

    return f"```toml\n{to_toml(RefineConfig())}```"


def commands() -> str:
    """Usage, arguments and options of every command."""
    from nphm_track.cli.commands import COMMANDS, load_command

    parts = [text for name in COMMANDS for text in _command(load_command(name), f"nphm-track {name}", 2)]
    return "\n\n".join(parts)


def exit_codes() -> str:
    """Table of the errors and the exit codes they end with."""
    from nphm_track.errors import NphmTrackError

    known = {0: ("", "Done."), 1: ("any other", "A bug; please report the traceback.")}
    for error in NphmTrackError.__subclasses__():
        known[error.exit_code] = (f"`{error.__name__}`", (error.__doc__ or "").strip())
    known[130] = (
        "`KeyboardInterrupt`",
        "Interrupted (143: by SIGTERM, 129: by SIGHUP); the same command goes on where it stopped.",
    )
    return _table([("code", "exception", "meaning"), *((str(code), *told) for code, told in sorted(known.items()))])


def models() -> str:
    """Table of the released models."""
    from nphm_track.doctor import released_models

    rows = [
        (f"`{m.name}`", f"{m.size / 1e6:.1f} MB", m.licence, f"`{m.recipe}`", f"`{m.sha256[:12]}`")
        for m in released_models()
    ]
    return _table([("model", "size", "licence", "recipe", "SHA-256"), *rows])


def extras() -> str:
    """Table of the optional packages."""
    from nphm_track.doctor import EXTRAS

    rows = [(f"`{name}`", f"`{package}`", purpose) for name, (package, _, purpose) in EXTRAS.items()]
    return _table([("extra", "brings", "for"), *rows])


def _default(value: Any) -> str:
    """A default as one would write it; tables are shown elsewhere."""
    nested = isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel))
    return "see below" if nested else f"`{value!r}`"


GENERATORS = {f.__name__: f for f in (options, terms, refinement, commands, exit_codes, models, extras)}


def _command(command: Any, path: str, level: int) -> Iterator[str]:
    """Markdown blocks of a command and those below it."""
    yield f"{'#' * level} `{path}`"
    yield html.escape((command.help or "").strip(), quote=False)
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _command(below, f"{path} {name}", level + 1)
        return
    rows = []
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        argument = parameter.param_type_name == "argument"
        names = (
            [parameter.metavar or parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
        )
        given = (
            parameter.default not in (None, False, True) and not parameter.required and not callable(parameter.default)
        )
        told = (parameter.help or "") + (f" (default: {parameter.default})" if given else "")
        rows.append((" ".join(f"`{name}`" for name in names), html.escape(told, quote=False)))
    yield _table([("argument or option", "meaning"), *rows])


def _type_name(annotation: Any) -> str:
    """A type as one would write it: ``float | None``, ``image or landmarks``."""
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.Literal\[(.*?)\]", lambda m: m[1].replace(", ", " or ").replace("'", ""), text)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace(" | None", "")


def _bound(limit: Any) -> str:
    """A bound of a number as text; empty for other constraints."""
    signs = {"ge": "≥", "gt": "&gt;", "le": "≤", "lt": "&lt;"}
    return " ".join(f"{sign} {getattr(limit, name):g}" for name, sign in signs.items() if hasattr(limit, name))


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
