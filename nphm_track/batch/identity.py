"""One identity code for all takes of a person."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import Arrays, finite_array, reading
from nphm_track.tracking.identity import Identity, load_identity, merge_identity
from nphm_track.tracking.records import durable

SATURATION = 30.0
"""Weight at which a take's say reaches half its limit, about a second of frontal, certain frames: the frames of one
take share its light and lens, so that a longer one is more certain of the same error."""


def merge_votes(paths: Iterable[Path]) -> Identity:
    """The weighted geometric median of what the frames of several takes say.

    A frame's weight is how certain and how frontal it is; a take's sum W counts as W / (1 + W / SATURATION). A single
    take gives the identity it has when it is tracked alone. The result does not depend on the order of the takes.

    Raises InputError naming the file that cannot be read, or that belongs to another head model.
    """
    codes: list[NDArray[np.float32]] = []
    weights: list[NDArray[np.float32]] = []
    model = None
    for path in sorted(paths):
        z_id, weight, made_for = _read(path)
        if codes and (made_for != model or z_id.shape[1] != codes[0].shape[1]):
            raise InputError(f"{path}: its votes belong to another head model")
        model = made_for
        codes.append(z_id)
        weights.append(weight / (1 + weight.sum() / SATURATION))
    return Identity(merge_identity(np.concatenate(codes), np.concatenate(weights)), model)


def save_identity(path: Path, identity: Identity) -> None:
    """Write a file that ``load_identity`` reads. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable(path) as partial, open(partial, "wb") as file:
        if identity.model is None:
            np.savez(file, z_id=identity.z_id)
        else:
            np.savez(file, z_id=identity.z_id, model=np.array(identity.model))


def keep_identity(path: Path, runs: list[tuple[Path, str]]) -> str | None:
    """Digest of the identity a person has, None when there is none yet.

    Args:
        path: its file; lost or damaged it is restored from one of the runs made with it.
        runs: run folders and the digests of their identities.
    """
    try:
        return load_identity(path).digest
    except InputError:
        pass
    for folder, digest in runs:
        try:
            identity = load_identity(folder)
        except InputError:
            continue
        if identity.digest == digest:
            save_identity(path, identity)
            return digest
    return None


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], str | None]:
    with reading(path, "a file of votes on an identity"), Arrays(path) as file:
        z_id = finite_array(file["z_id"], (None, None), np.float32)
        weight = finite_array(file["weight"], (len(z_id),), np.float32)
        model = str(file["model"]) if "model" in file else None
        if not len(z_id) or not (weight > 0).all():
            raise ValueError(f"shapes {z_id.shape} and {weight.shape}")
    return z_id, weight, model
