"""Whether two runs are the same: one may then go on with what the other left."""

from __future__ import annotations

from pathlib import Path

from nphm_track.errors import OutputError
from nphm_track.tracking.options import IDENTITY_OPTIONS, REFINE_OPTIONS
from nphm_track.tracking.records import RunInfo


def check_same(path: Path, stored: RunInfo | None, fresh: RunInfo, overwrite: bool) -> None:
    """Raises OutputError unless ``fresh`` may take the place of, or go on with, what is stored; None is damaged."""
    if stored is None:
        return
    if stored.input.sha256 != fresh.input.sha256:
        raise OutputError(f"{path} holds the run of another input ({stored.input.path}); choose another with -o")
    changed = difference(stored, fresh)
    if not changed or overwrite or stored.state == "failed":
        return
    if not (adds_refinement(stored, fresh) or (stored.state != "done" and differ_in_identity(stored, fresh))):
        raise OutputError(f"{path} holds a run with other {changed}; pass --overwrite to start over")


def saw_the_same(stored: RunInfo, fresh: RunInfo) -> bool:
    """Whether ``fresh`` may go on from the observations of the clip that the stored run has made."""
    return differ_in_identity(stored, fresh) or adds_refinement(stored, fresh)


def differ_in_identity(stored: RunInfo, fresh: RunInfo) -> bool:
    """Whether two runs of one input saw the same and differ in whose head is fitted to it, if in anything."""
    same = {name: fresh.options.get(name) for name in IDENTITY_OPTIONS}
    return not difference(stored.model_copy(update={"options": stored.options | same}), fresh)


def adds_refinement(stored: RunInfo, fresh: RunInfo) -> bool:
    """Whether ``fresh`` is the stored run with ``refine``, which needs what the run saw and perhaps one model more."""
    if stored.options.get("refine") or not fresh.options.get("refine"):
        return False
    same = {name: fresh.options.get(name) for name in REFINE_OPTIONS}
    update = {"options": stored.options | same, "models": fresh.models | stored.models}
    return not difference(stored.model_copy(update=update), fresh)


def difference(stored: RunInfo, fresh: RunInfo) -> str:
    """What sets two runs of one input apart, in words; empty when nothing does."""
    names = sorted((stored.options.keys() | fresh.options.keys()) - {"identity"})  # its numbers decide, not its place
    changed = [name for name in names if stored.options.get(name) != fresh.options.get(name)]
    if changed:
        told = dict.fromkeys(name.removesuffix("_sha256").replace("_", "-") for name in changed)
        return f"options ({', '.join(told)})"
    if stored.models != fresh.models:
        return "model files"
    return "" if stored.package_version == fresh.package_version else f"software (version {stored.package_version})"
