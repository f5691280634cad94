"""Which regressor knows a head model: the released ones know the released head, any other head brings its own.

Beside a head model's ``X/model.safetensors`` lies its regressor as ``X-regressor/model.safetensors`` or, in one bundle,
as ``X/regressor.safetensors``. Both name the head and the geometry networks that they were trained on by SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nphm_track.errors import ModelError
from nphm_track.heads.loading import DEFAULT
from nphm_track.models import WEIGHTS_NAME, read_config, resolve, sha256

GEOMETRY = "geometry"
"""The geometry networks that are used where a head model brings none."""


@dataclass(frozen=True)
class Regressor:
    """Names or paths of an image regressor and of the geometry networks whose tokens it reads."""

    name: str
    geometry: str = GEOMETRY


RELEASED = Regressor("image-regressor")


def is_released(head_model: str) -> bool:
    """Whether a head model is the released one, by whatever name it goes."""
    if head_model == DEFAULT:
        return True
    weights = resolve(head_model)
    try:
        return sha256(weights) == sha256(resolve(DEFAULT))
    except ModelError:  # a models folder without it
        return False


def find_regressor(head_model: str) -> Regressor | None:
    """The image regressor of a head model (a name or a path); None where none lies beside it.

    Raises ModelError for one that was trained on other weights than those beside it.
    """
    if is_released(head_model):
        return RELEASED
    head = resolve(head_model)
    path = _beside(head, "regressor")
    if path is None:
        return None
    geometry = _beside(head, GEOMETRY) or resolve(GEOMETRY)
    trained_on = read_config(path).get("trained_on", {})
    for what, weights in (("head", head), ("geometry", geometry)):
        if trained_on.get(what) not in (None, sha256(weights)):
            raise ModelError(f"{path} was trained on another {what} model than {weights}")
    return Regressor(str(path), GEOMETRY if geometry == resolve(GEOMETRY) else str(geometry))


def _beside(head: Path, what: str) -> Path | None:
    """``what`` in the head model's own folder, or in one beside it that has the head's name and ``what``'s."""
    folder, name = (head.parent.parent, head.parent.name) if head.name == WEIGHTS_NAME else (head.parent, head.stem)
    places = (head.with_name(f"{what}.safetensors"), folder / f"{name}-{what}" / WEIGHTS_NAME)
    return next((place for place in places if place.is_file()), None)
