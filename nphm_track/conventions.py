"""Units, axes and name tables every other module refers to (see docs/architecture.md)."""

from __future__ import annotations

MODEL_UNIT = 0.25
"""Metres in one unit of the head networks (MonoNPHM: FLAME's metric head frame times 4)."""

N_LANDMARKS = 478
"""Points of the face landmark mesh: 468 on the skin, 468..472 right iris, 473..477 left iris (the face's own sides)."""

IBUG68_FROM_478 = (
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,  # jaw, right ear to left ear
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,  # mouth
)  # fmt: skip
"""Index among the 478 points of each iBUG-68 point."""

EYE_CORNERS_478 = (33, 133, 362, 263)
"""Right outer, right inner, left inner, left outer eye corner among the 478 points."""

POINTS7_478 = {
    "r_eye_outer": 33,
    "r_eye_inner": 133,
    "l_eye_inner": 362,
    "l_eye_outer": 263,
    "nose_base": 2,
    "mouth_r": 61,
    "mouth_l": 291,
}
"""The seven points of the NoW protocol among the 478 (r/l are the person's own sides)."""

ARKIT_BLENDSHAPES = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""The 51 ARKit names the landmark network's last stage scores, in its order; its own first output is ``_neutral``."""

BLENDSHAPE_NAMES = ("_neutral", *ARKIT_BLENDSHAPES)
"""The 52 columns of ``blendshapes`` in the order of the landmark network's output."""
