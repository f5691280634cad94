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

ANCHOR_LANDMARKS = {
    0: 0, 1: 16, 38: 2, 39: 14, 2: 4, 3: 12, 4: 6, 5: 10, 60: 8, 10: 31, 11: 35, 62: 30, 61: 27, 6: 17, 7: 26,
    12: 36, 13: 45, 14: 39, 15: 42, 16: 48, 17: 54, 18: 50, 19: 52, 20: 58, 21: 56, 44: 49, 45: 53, 46: 59, 47: 55,
    48: 38, 49: 43, 50: 41, 51: 46, 52: 21, 53: 22,
}  # fmt: skip
"""Anchor of MonoNPHM's head -> iBUG-68 point, for the 35 of its 65 anchors that are one."""

EYE_CORNERS_478 = (33, 133, 362, 263)
"""Right outer, right inner, left inner, left outer eye corner among the 478 points."""
OUTER_EYE_CORNERS = (33, 263)
NOSE_TIP, CHIN = 1, 152
LIDS = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,  # right
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,  # left
)  # fmt: skip
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,  # outer rim
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,  # inner rim
)  # fmt: skip
LOWER_LIP = (
    95, 88, 178, 87, 14, 317, 402, 318, 324,  # inner rim
    96, 89, 179, 86, 15, 316, 403, 319, 325,
    77, 90, 180, 85, 16, 315, 404, 320, 307,
    146, 91, 181, 84, 17, 314, 405, 321, 375,  # outer rim
)  # fmt: skip
"""Points of the lower lip without the corners."""
LIP_RIMS = ((191, 80, 81, 82, 13, 312, 311, 310, 415), (95, 88, 178, 87, 14, 317, 402, 318, 324))
"""The inner rims of upper and lower lip without the corners, from the face's right to its left."""
INNER_LIPS = (78, *LIP_RIMS[0], 308, *LIP_RIMS[1])
"""The inner rim of both lips."""
BROWS = (
    70, 63, 105, 66, 107, 55, 65, 52, 53, 46,  # right
    300, 293, 334, 296, 336, 285, 295, 282, 283, 276,  # left
)  # fmt: skip

FACE_OUTLINE = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Points of the face's outline: they slide along the silhouette as the head turns and are no points of the skin."""

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
