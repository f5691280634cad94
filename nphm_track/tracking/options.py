"""The options of a tracking run: one source for the Python API, the command line's help and run.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nphm_track.errors import InputError

if TYPE_CHECKING:
    from nphm_track.cameras.intrinsics import Intrinsics
    from nphm_track.refine.config import RefineConfig
    from nphm_track.video.presentation import Presentation

IDENTITY_OPTIONS = ("identity", "identity_sha256")
"""What ``TrackOptions.identity`` adds to a fingerprint."""
REFINE_OPTIONS = ("refine", "refine_config", "refine_config_sha256")
"""What ``TrackOptions.refine`` adds to a fingerprint."""
FILE_OPTIONS = ("intrinsics", "identity", "refine_config")
"""Options that are files; ``head_model`` may be one."""

LARGEST_COUNT = 2**31 - 1
"""More frames, faces or streams than any clip has; numpy counts no further everywhere."""


class TrackOptions(BaseModel):
    """How a clip is tracked. Immutable; unknown names are refused.

    Times are seconds, pixels are those of the original (rotation-corrected) frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"device"})
    """Options that change how long a run takes and not what it writes; a run resumes under other values of them."""

    start: float | None = Field(
        default=None, ge=0, description="Track frames from this moment on, seconds after the clip's beginning."
    )
    end: float | None = Field(
        default=None, gt=0, description="Track frames before this moment, seconds after the clip's beginning."
    )
    every: int = Field(default=1, ge=1, description="Track every Nth frame.")
    stream: int | None = Field(
        default=None, ge=0, description="Which video stream of the file, from 0. (default: the one that players show)"
    )
    fps: float | None = Field(
        default=None, gt=0, le=1000, description="Pictures per second of a folder of images. (default: 30)"
    )
    mattes: bool = Field(
        default=False,
        description="Lay the images of a folder over white by their mattes: 0001_mask.png beside 0001.png, or "
        "mask/0001.png beside image/0001.png.",
    )
    face: int | None = Field(
        default=None,
        ge=0,
        description="Follow the Nth face from the left, from 0, of the first frame with faces. (default: the largest)",
    )
    face_at: tuple[float, float] | None = Field(
        default=None, description="Follow the face at this pixel of the first frame with faces, as X,Y."
    )
    face_time: float | None = Field(
        default=None,
        ge=0,
        description="Choose the face at this moment, seconds after the clip's beginning, instead of in the first frame "
        "with faces; before and after it the person is found by looks. --face N@TIME and --face-at X,Y@TIME set it.",
    )
    focal: float | None = Field(
        default=None, gt=0, description="Focal length in pixels. (default: solved from the clip)"
    )
    fov: float | None = Field(
        default=None, ge=1, le=170, description="Horizontal field of view in degrees. (default: solved from the clip)"
    )
    intrinsics: Path | None = Field(
        default=None,
        description="JSON or OpenCV YAML file of the camera: intrinsics, distortion coefficients included.",
    )
    identity: Path | None = Field(
        default=None,
        description="Identity code to keep: a run folder of the same person, or an .npz or .json file with z_id. "
        "(default: solved from the clip)",
    )
    head_model: str = Field(
        default="nphm-small",
        min_length=1,
        description="Head model: the name of one among the released models, a model folder or its file. "
        "One without a regressor beside it is fitted to the landmarks.",
    )
    codes: Literal["image", "landmarks"] = Field(
        default="image",
        description="What codes come from: image features and landmarks, or landmarks alone.",
    )
    smooth: float = Field(
        default=1.0, ge=0, le=1, description="Strength of the zero-lag smoothing over time; 0 is off."
    )
    meshes: bool = Field(default=True, description="Write canonical.ply and one mesh per frame.")
    mesh_format: Literal["ply", "npz"] = Field(
        default="ply",
        description="One .ply per frame, or all meshes in one compressed meshes.npz (rounded to 0.01 mm).",
    )
    mesh_every: int = Field(default=1, ge=1, description="Write the mesh of every Nth tracked frame.")
    overlay: bool = Field(default=True, description="Write overlay.mp4, or overlay.png for an image.")
    report: bool = Field(default=True, description="Write report.html, one offline page about the run.")
    style: Literal["shaded", "wireframe", "normals", "mesh"] = Field(
        default="shaded", description="Look of the overlay; 'mesh' leaves the video out."
    )
    opacity: float | None = Field(
        default=None, ge=0, le=1, description="Opacity of the head in the overlay. (default: the style's own)"
    )
    side_by_side: bool = Field(default=False, description="Show the original beside the overlay.")
    renderer: Literal["numba", "pyrender"] = Field(
        default="numba", description="Overlay renderer; pyrender is an extra."
    )
    reader: Literal["av", "decord"] = Field(default="av", description="Video reader; decord is an extra.")
    device: str = Field(
        default="cpu", min_length=1, description="Torch device of the networks, such as cpu, cuda or cuda:1."
    )
    topology: Literal["template", "isosurface"] = Field(
        default="template",
        description="What meshes are made of: one template with eyes and teeth, the same vertices for everybody, or "
        "the network's zero level. Heads of models without ARKit's expressions have the latter.",
    )
    mesh_resolution: int = Field(
        default=192,
        ge=32,
        le=512,
        description="Density of isosurface meshes; 192: 30,000 vertices, 384: four times as many.",
    )
    refine: bool = Field(
        default=False,
        description="Refine the result against normals and points seen in each frame; half a minute a clip for the "
        "person and about a second a frame. A run that is done is refined without being tracked again.",
    )
    refine_config: Path | None = Field(
        default=None, description="TOML file with other stages and weights for --refine; see Configuration."
    )

    @field_validator("*")
    @classmethod
    def _counts_fit(cls, value: Any) -> Any:
        if isinstance(value, int) and value > LARGEST_COUNT:
            raise ValueError(f"must be at most {LARGEST_COUNT}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrackOptions:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g} s) must come after start ({self.start:g} s)")
        for names in (("focal", "fov", "intrinsics"), ("face", "face_at")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.refine_config is not None and not self.refine:
            raise ValueError("refine_config says how to refine and needs refine")
        return self

    @classmethod
    def build(cls, base: TrackOptions | None = None, **overrides: Any) -> TrackOptions:
        """``base`` (or the defaults) with ``overrides``. Raises InputError naming the first option that is wrong."""
        values = base.model_dump(exclude_unset=True) if base else {}
        try:
            return cls(**(values | overrides))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(f"option {name}: {message}" if name else message) from None

    @property
    def head(self) -> str:
        """The head model's name or, of one that is not released, its absolute path."""
        released, path = type(self).model_fields["head_model"].default, Path(self.head_model)
        return str(path.resolve()) if self.head_model != released and path.exists() else self.head_model

    @property
    def ply_every(self) -> int:
        """Of how many rows of the track one has a PLY file; 0: none has."""
        return self.mesh_every if self.meshes and self.mesh_format == "ply" else 0

    def camera(self, size: tuple[int, int], shown: Presentation | None = None) -> Intrinsics | None:
        """The camera that the options give for frames of ``size`` (width, height) px; None when it is to be solved.

        ``shown`` says how the pictures of a video are stored, of which a file of intrinsics may be. Raises InputError
        when it cannot be used, or no camera has such a focal length.
        """
        from nphm_track.cameras.intrinsics import Intrinsics  # numpy would slow --help down

        if self.intrinsics is not None:
            return Intrinsics.from_file(self.intrinsics, size, shown)
        if self.focal is not None:
            return Intrinsics.from_focal(self.focal, size).checked()
        return None if self.fov is None else Intrinsics.from_fov(self.fov, size)

    def refinement(self) -> RefineConfig:
        """How ``refine`` refines. Raises InputError when the file of ``refine_config`` cannot be used."""
        from nphm_track.refine.config import RefineConfig  # torch would slow --help down

        return RefineConfig() if self.refine_config is None else RefineConfig.from_file(self.refine_config)

    def fingerprint(self) -> dict[str, Any]:
        """JSON values of the options that decide what is written; equal fingerprints may share a run folder."""
        values = self.model_dump(mode="json", exclude=set(self.SPEED_ONLY))
        values["head_model"] = self.head
        if self.intrinsics is not None and self.intrinsics.is_file():  # the numbers decide, not the file's name
            from nphm_track.cameras.calibration_file import LARGEST  # numpy would slow --help down
            from nphm_track.files.reading import read_bytes, reading

            with reading(self.intrinsics, "a camera calibration"):
                values["intrinsics_sha256"] = hashlib.sha256(read_bytes(self.intrinsics, LARGEST)).hexdigest()
        if self.refine_config is not None:
            told = self.refinement().model_dump_json()
            values["refine_config_sha256"] = hashlib.sha256(told.encode()).hexdigest()
        if self.identity is not None:
            from nphm_track.tracking.identity import load_identity  # numpy would slow --help down

            values["identity_sha256"] = load_identity(self.identity).digest
        return values
