"""Typed configuration in TOML files: unknown keys and values out of bounds are refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nphm_track.errors import InputError


class Strict(BaseModel):
    """Immutable values that refuse unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Strict)


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Contents of a TOML file. Raises InputError that calls it ``what`` when it cannot be read."""
    from nphm_track.files import reading  # numpy would slow --help down

    with reading.reading(path, f"a {what}"):
        return reading.read_toml(path)


def parse(model: type[Model], values: dict[str, Any], what: str) -> Model:
    """``values`` as a model. Raises InputError, one line that begins with ``what``, for the first that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{what}: {'.'.join(map(str, first['loc']))}: {message}") from None


def to_toml(model: BaseModel) -> str:
    """A model of numbers, strings, tuples and further models as TOML, tables after plain values."""
    return _table(model.model_dump(mode="json"), "").strip() + "\n"


def _table(values: dict[str, Any], path: str) -> str:
    plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, dict) and not _is_array(v)}
    lines = [f"{name} = {_value(value)}" for name, value in plain.items()]
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{path}{name}]", _table(value, f"{path}{name}.").strip("\n")]
        elif _is_array(value):
            for entry in value:
                lines += ["", f"[[{path}{name}]]", _table(entry, f"{path}{name}.").strip("\n")]
    return "\n".join(lines) + "\n"


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
