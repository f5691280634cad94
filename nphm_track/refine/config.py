"""What a refinement does, as data: its terms, and the stages it goes through (``--refine-config FILE``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from nphm_track.config_file import Strict, parse, read_toml
from nphm_track.refine.terms import Terms


class Stage(Strict):
    """Some Gauss-Newton steps on some pixels."""

    free: tuple[Literal["expression", "identity", "focal"], ...] = Field(
        default=(), description="What moves beside the head poses; identity and focal length only on key frames."
    )
    pixels: int = Field(ge=10, description="Pixels of a frame's geometry maps that are compared.")
    steps: int = Field(ge=0, description="At most; fewer when a step gains less than the tolerance.")
    follow: bool = Field(default=False, description="Follow points of the skin through the frames before.")
    only_followed: bool = Field(default=False, description="Leave the stage out where no points can be followed.")
    terms: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="Other values of some terms' fields in this stage, as in `[terms]`."
    )


PERSON = (
    Stage(pixels=300, steps=1),
    Stage(free=("expression", "identity"), pixels=300, steps=6),
    Stage(free=("expression", "identity"), pixels=400, steps=3, follow=True),
    Stage(free=("expression", "identity"), pixels=400, steps=3, follow=True, only_followed=True),
)
"""Poses first, alone: they are what a new camera or head shifts most, and points tell them at once."""

FRAMES = (
    Stage(pixels=120, steps=1),
    Stage(free=("expression",), pixels=120, steps=3),
    Stage(free=("expression",), pixels=300, steps=3, follow=True, terms={"tracks": {"evidence": 40}}),
)
"""How skin moves between frames is not all the model's to tell, so points that are followed count less than for the
identity (0.1 a point instead of 0.5; ``docs/refine.md`` has the figures)."""


class RefineConfig(Strict):
    """A refinement."""

    renderer: Literal["surface", "volume"] = Field(
        default="surface", description="What the head is seen with; volume is far slower, for comparison."
    )
    key_frames: int = Field(default=10, ge=1, description="Frames the identity is solved on.")
    window: int = Field(default=32, ge=4, description="Frames solved together.")
    overlap: int = Field(default=8, ge=1, description="Frames at the end of a window that the next solves again.")
    track_points: int = Field(default=400, ge=0, description="Points of the skin followed from frame to frame.")
    local_spread: float = Field(
        default=0.05,
        ge=0,
        description="How far a local part of the head leaves the prior, as a share of its spread over people. At 0.3 "
        "noisy maps tear the lips off their landmarks; exact maps can use it.",
    )
    tolerance: float = Field(default=2e-3, gt=0, description="A stage ends when a step gains less than this share.")
    report_pixels: int = Field(default=120, ge=10, description="Pixels of a frame that errors are reported on.")
    terms: Terms = Field(default=Terms(), description="What is minimised.")
    person: tuple[Stage, ...] = Field(
        default=PERSON, min_length=1, description="Stages for the identity, on key frames; an image ends with them."
    )
    frames: tuple[Stage, ...] = Field(
        default=FRAMES, min_length=1, description="Stages for expressions and poses, window by window."
    )

    @model_validator(mode="after")
    def _consistent(self) -> RefineConfig:
        for stage in (*self.person, *self.frames):
            self.terms.changed(stage.terms)
        if any({"identity", "focal"} & set(stage.free) for stage in self.frames):
            raise ValueError("identity and focal are solved by the stages of [[person]] only")
        if any(all(stage.only_followed for stage in stages) for stages in (self.person, self.frames)):
            raise ValueError("[[person]] and [[frames]] each need a stage that does without followed points")
        if self.overlap >= self.window:
            raise ValueError(f"overlap ({self.overlap}) must be less than window ({self.window})")
        return self

    @classmethod
    def from_file(cls, path: str | Path) -> RefineConfig:
        """A TOML file; what it leaves out is as by default. Raises InputError when it cannot be read or is wrong."""
        return parse(cls, read_toml(path, "refine config"), f"refine config {path}")


def groups(stages: tuple[Stage, ...], *, followed: bool) -> list[list[Stage]]:
    """Stages that go on from each other's rays, together; a stage of other pixels or new tracks starts from the mesh.

    ``followed``: points can be followed.
    """
    out: list[list[Stage]] = []
    for stage in stages:
        if stage.only_followed and not followed:
            continue
        if out and out[-1][-1].pixels == stage.pixels and not stage.follow:
            out[-1].append(stage)
        else:
            out.append([stage])
    return out
