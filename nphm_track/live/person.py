"""What is known of who sits before the camera: at first the mean head, after some seconds the person's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nphm_track.cameras.focal import PRIOR_FOCAL
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.rig import Rig, RigLandmarks, open_rig
from nphm_track.tracking.code_fit import mean_identity
from nphm_track.tracking.fit import FIT_POINTS, FrameExpressions, predicted_codes, rest_code, solve_camera
from nphm_track.tracking.progress import NullProgress


@dataclass(frozen=True)
class Person:
    """A head and the camera that sees it.

    Attributes:
        z_id: [D_id] identity code.
        carry: its landmarks, on its rig.
        camera: intrinsics.
        rest: [D_ex] code of the rest expression, to be added to predicted ones.
        expressions: what landmarks of single frames add; None as long as the head is not the person's.
        shared: [E] what they add in all frames, which is not told by one.
    """

    z_id: NDArray[np.float32]
    carry: RigLandmarks
    camera: Intrinsics
    rest: NDArray[np.float32]
    expressions: FrameExpressions | None = None
    shared: NDArray[np.float64] | None = None

    @property
    def rig(self) -> Rig:
        return self.carry.rig


def anybody(
    model: NphmDecoder, size: tuple[int, int], z_id: NDArray[np.float32] | None = None, camera: Intrinsics | None = None
) -> Person:
    """Who is not known yet, seen by a camera of the usual focal length for pictures of ``size`` (width, height) px.

    Identity and camera are those given, where they are. Raises ModelError when no rig can be made of the identity.
    """
    z_id = mean_identity(model) if z_id is None else z_id
    camera = camera or Intrinsics.from_focal(PRIOR_FOCAL * max(size), size)
    return Person(z_id, _landmarks(model, z_id), camera, np.zeros(model.config.expression_dim, np.float32))


def settled(
    model: NphmDecoder,
    log: np.ndarray,
    size: tuple[int, int],
    z_id: NDArray[np.float32] | None = None,
    camera: Intrinsics | None = None,
) -> Person:
    """Who was seen in the frames of a log (``tracking.observe.observation_dtype``), all of which show the face.

    Identity and camera are kept where they are given; the other arguments and errors as in :func:`anybody`.
    """
    codes = predicted_codes(None, log, size, z_id)
    carry = _landmarks(model, codes.z_id)
    camera = camera or solve_camera(carry, log, codes.z_ex, size, NullProgress())
    rest = rest_code(carry, log, log["seen"], codes.z_ex, camera)
    z_ex = codes.z_ex + rest
    expressions = FrameExpressions(carry, camera, z_ex.mean(0))
    shared = expressions(z_ex, log["landmarks"][:, :, :2]).mean(0)
    return Person(codes.z_id, carry, camera, rest, expressions, shared)


def _landmarks(model: NphmDecoder, z_id: NDArray[np.float32]) -> RigLandmarks:
    return RigLandmarks(model, open_rig(model, z_id), FIT_POINTS)
