"""Command line options made from ``TrackOptions``, so that help, bounds and defaults have one source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from nphm_track.errors import InputError
from nphm_track.tracking.options import FILE_OPTIONS, TrackOptions

BREAK_LOCK_OPTION = typer.Option(
    "--break-lock", help="Take the folder over from a process that holds its lock, and hangs or cannot be reached."
)


def _take_defaults(ctx: typer.Context, path: Path | None) -> None:
    """Options of a file, below those of the command line."""
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read_options(path)}


OPTIONS_FILE = inspect.Parameter(
    "options_file",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--options",
            metavar="FILE",
            is_eager=True,
            callback=_take_defaults,
            help="TOML or JSON file of the options below; those of the command line come first.",
        ),
    ],
)


def read_options(path: Path) -> dict[str, Any]:
    """Options of a run in a file, as the command line takes them; files in it are beside it.

    Raises InputError when it cannot be read or has an unknown name.
    """
    from nphm_track.files.reading import read_json, read_toml, reading

    readers: dict[str, Callable[[Path], Any]] = {".toml": read_toml, ".json": read_json}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: options are read from {' and '.join(readers)} files")
    with reading(path, "a file of options"):
        values = readers[path.suffix.lower()](path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a table of options")
    options = {str(name).replace("-", "_"): value for name, value in values.items() if value is not None}
    for name, value in options.items():
        if name not in TrackOptions.model_fields:
            close = get_close_matches(name, TrackOptions.model_fields, n=1)
            raise InputError(
                f"{path}: there is no option '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
            )
        if name in FILE_OPTIONS and isinstance(value, str):
            options[name] = str(path.parent / value)
        elif isinstance(value, list):
            options[name] = ",".join(map(str, value))
    return options


def with_track_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a ``**options`` parameter one option for each field of ``TrackOptions``."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [_parameter(name, field) for name, field in TrackOptions.model_fields.items()]
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in [*own, OPTIONS_FILE, *made]]

    def wrapper(**arguments: Any) -> None:
        del arguments[OPTIONS_FILE.name]
        command(**_with_moment(arguments))

    wrapper.__doc__ = command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    settings: dict[str, Any] = {"help": field.description}
    annotation: Any = field.annotation
    flags = (f"--{name.replace('_', '-')}",) if field.default is False else ()  # nothing to switch off
    if name == "face_at":
        annotation, settings = str | None, settings | {"metavar": "X,Y[@TIME]"}
    elif name == "face":
        annotation, settings = str | None, settings | {"metavar": "N[@TIME]"}
    elif name == "head_model":
        settings["metavar"] = "NAME|PATH"
    elif annotation == Path | None:
        settings["metavar"] = "FILE"
    # Bounds stay with the model, which checks them for the Python API too.
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[annotation, typer.Option(*flags, **settings)],
    )


def _with_moment(arguments: dict[str, Any]) -> dict[str, Any]:
    """Options with ``--face N@TIME`` and ``--face-at X,Y@TIME`` taken apart."""
    parsed = dict(arguments)
    for name, parse in (("face", _parse_number), ("face_at", _parse_pixel)):
        text = arguments.get(name)
        if text is None:
            continue
        value, at, moment = text.partition("@")
        parsed[name] = parse(value)
        if at:
            try:
                parsed["face_time"] = float(moment)
            except ValueError:
                raise typer.BadParameter(f"'{moment}' is not a time; write seconds, as in {value}@1.5") from None
    return parsed


def _parse_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not the number of a face; write N or N@TIME, as in 0@1.5") from None


def _parse_pixel(text: str) -> tuple[float, float]:
    """``"320,180"`` to (320, 180)."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a pixel; write X,Y as in 320,180") from None
    return x, y
