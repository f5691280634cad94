"""What renders for training are drawn from: the sampling, as data (``[data.renders]`` of a recipe)."""

from __future__ import annotations

from pydantic import Field

from nphm_track.training.recipe import Strict

Range = tuple[float, float]


def _share(default: float, description: str) -> float:
    value: float = Field(default, ge=0, le=1, description=description)
    return value


class Renders(Strict):
    """Shares are of all renders if nothing else is said. What is not explained was not compared."""

    painted: float = _share(0.22, "heads in paint or clay, without a photo: their picture and shape agree exactly")
    follow: float = _share(0.45, "photos whose surroundings move with the head, so that hair and neck stay on it")
    own_light: float = _share(0.1, "of photos: in their own light, which does not know the head they are put on")
    smooth_light: float = _share(0.2, "of photos: in smooth light without shadows; all others stand under lamps")
    even_light: float = _share(0.0, "of heads under lamps: lit evenly, which hides shape as a flash does")
    mixed: float = _share(
        0.85,
        "of photos in another light: soft colours are a mixture of several people's, since a photo's own hold what its "
        "light made of its shape, which is not the shape that it is drawn on",
    )
    dented: float = _share(0.5, "heads with smooth dents and swellings that no ICT head has")
    cut_out: float = _share(0.35, "heads that end around the face, as scans do, unless surroundings follow them")
    occluded: float = _share(0.12, "with something in front of the face")
    glasses: float = _share(0.1, "with glasses")

    spread: float = Field(
        default=1.0, ge=0, description="of identities about the people in the photos, in units of the prior"
    )
    near_photo: Range = Field(
        default=(0.3, 0.15), description="shares of identities 0.8 and 0.3 of that from the photo's own"
    )
    own_expression: Range = Field(
        default=(0.15, 0.2), description="shares with the photo's expression, alone and mixed in"
    )

    wide: float = _share(0.4, "seen under wide angles")
    yaw: Range = Field(default=(30.0, 60.0), description="degrees at most, usual and wide")
    pitch: Range = Field(default=(15.0, 30.0), description="the same")
    roll: float = Field(default=12.0, ge=0, description="degrees at most")
    field_of_view: Range = Field(default=(20.0, 75.0), description="degrees, from telephoto to selfie")
    fill: Range = Field(default=(0.16, 0.65), description="share of the frame that a face takes")
