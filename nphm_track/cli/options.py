"""Command line options made from ``TrackOptions``, so that help, bounds and defaults have one source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from nphm_track.tracking.options import TrackOptions

BREAK_LOCK_OPTION = typer.Option(
    "--break-lock", help="Take the folder over from a process that holds its lock, and hangs or cannot be reached."
)


def with_track_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a ``**options`` parameter one option for each field of ``TrackOptions``."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [_parameter(name, field) for name, field in TrackOptions.model_fields.items()]
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own + made]

    def wrapper(**arguments: Any) -> None:
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
