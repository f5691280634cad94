"""Virtual Motion Capture protocol (VMC): what VTuber programs listen for, OSC messages over UDP port 39539.

A face is a ``/VMC/Ext/Blend/Val`` for each of ARKit's shapes, ``/VMC/Ext/Blend/Apply`` and the turn of the bone
``Head``, in one OSC bundle. Unity's axes are left-handed: x to the right of who looks out of the face, y up, z out of
the face.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.tracking.transforms import OPENGL_FROM_OPENCV

PORT = 39539
AT_ONCE = 1
"""OSC's time tag of a bundle that is to take effect when it arrives."""
_UNITY = np.diag([-1.0, 1.0, 1.0])  # from x to the face's own left, which is how heads are stored


def packet(weights: Mapping[str, float], R: NDArray[np.float64] | None) -> bytes:
    """The bundle of a frame: weights by ARKit's names and the head's pose ``R`` [3, 3] (head to camera, OpenCV axes).

    Without a pose, in a frame in which no face was seen, it says that tracking is lost, and nothing else.
    """
    if R is None:
        return bundle(message("/VMC/Ext/OK", 1, 3, 0, 0))
    turn = _UNITY @ OPENGL_FROM_OPENCV @ R @ _UNITY
    messages = [message("/VMC/Ext/OK", 1, 3, 0, 1)]  # loaded, calibrated, an ordinary calibration, tracking
    messages.append(message("/VMC/Ext/Bone/Pos", "Head", 0.0, 0.0, 0.0, *Rotation.from_matrix(turn).as_quat().tolist()))
    messages += [message("/VMC/Ext/Blend/Val", name, float(value)) for name, value in weights.items()]
    return bundle(*messages, message("/VMC/Ext/Blend/Apply"))


def message(address: str, *values: str | int | float) -> bytes:
    """An OSC message."""
    tags, data = ",", b""
    for value in values:
        if isinstance(value, str):
            tags, data = tags + "s", data + _padded(value)
        elif isinstance(value, int):
            tags, data = tags + "i", data + struct.pack(">i", value)
        else:
            tags, data = tags + "f", data + struct.pack(">f", value)
    return _padded(address) + _padded(tags) + data


def bundle(*messages: bytes) -> bytes:
    """An OSC bundle of messages."""
    sized = [struct.pack(">i", len(data)) + data for data in messages]
    return _padded("#bundle") + struct.pack(">Q", AT_ONCE) + b"".join(sized)


def _padded(text: str) -> bytes:
    """A string of OSC: ended by a zero, and filled up with more to a multiple of four bytes."""
    data = text.encode() + b"\0"
    return data + b"\0" * (-len(data) % 4)
