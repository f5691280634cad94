"""The rig of one person: the wrapped template and its shapes, so that a frame is neutral + weights x shapes.

Shapes are ICT-FaceKit's linear ones on the person's own neutral, which is what the head model was trained to deform
like; lids are made to close on this person's eyes. Beside them, two rigid parts move: the lower teeth with the jaw
(gums and tongue in between go part of the way), and each eyeball about its centre. ``heads.inverse`` is the slow twin:
it inverts the network's own deformation. Lengths are metres, head space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.bounded import solve_within
from nphm_track.conventions import ARKIT_BLENDSHAPES, BLENDSHAPE_NAMES
from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import arkit_maps
from nphm_track.heads.template import Template, load_template
from nphm_track.heads.wrap import Eyeball, WrappedHead, wrap

SIDES = ("left", "right")
BOTH_SIDES = ("browInnerUp", "cheekPuff")
"""Shapes that ICT-FaceKit has for each side and ARKit for both at once."""
BEYOND_ARKIT = (*BOTH_SIDES, "cheekRaiser")
"""Shapes that ARKit lacks, or does not have for each side."""
OVERLAP = 0.0002
"""Metres by which the edge of an upper lid passes that of the lower when the eye is closed."""
CLOSING_RANGE = (0.6, 1.6)
"""Factors on a blink that are taken to make a person's lids meet."""
LOOK_ANGLE = np.deg2rad(30.0)
"""Turn of gaze, radians, that a weight of 1 of an eyeLook shape stands for."""
EYE_TURN = 0.71
"""Sine of an eyeball's turn on the template over that of the gaze. The plane of people's irises lies 10.4 mm before the
centre that eyes turn about (13.5 mm behind the cornea); that of the template, whose lids are modelled on larger
eyeballs, 14.6 mm: turned by the whole angle, its irises would leave those of the picture behind."""
ROUNDING = 1e-6
"""Metres: less motion than this is rounding."""
DIFFERENCE = 0.01
"""Of a weight, of which derivatives are taken."""
ROWS = 256
"""Frames whose ARKit weights are solved at once."""
JAW = ("jawOpen", "jawForward", "jawLeft", "jawRight")
TONGUE = "tongueOut"
"""The one of ARKit's shapes that neither ICT-FaceKit nor MediaPipe has."""
TONGUE_OUT = 0.034
"""Metres that the tip of the tongue comes forward at a weight of 1 of tongueOut, which is made for an open mouth."""


@dataclass(frozen=True)
class Rig:
    """One person's head, ready to be posed.

    Attributes:
        template: whose topology it has.
        neutral: [V, 3].
        shapes: [K, V, 3] displacements at weight 1, in the order of ``template.expression_names``.
        eyes: left and right eyeball.
    """

    template: Template
    neutral: NDArray[np.float32]
    shapes: NDArray[np.float32]
    eyes: tuple[Eyeball, Eyeball]

    @classmethod
    def of(cls, template: Template, head: WrappedHead) -> Rig:
        shapes = template.expression.copy()
        for side, edge in zip("LR", template.lid_edges, strict=True):
            k = template.expression_names.index(f"eyeBlink_{side}")
            shapes[k] *= closing(head.vertices, shapes[k], edge)[:, None]
        return cls(template, head.vertices, shapes, head.eyes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.template.expression_names

    @property
    def faces(self) -> NDArray[np.int32]:
        return self.template.faces

    def weights(
        self, model: NphmDecoder, z_ex: Tensor, gaze: NDArray[np.floating] | None = None
    ) -> NDArray[np.float32]:
        """Weights [..., K] of expression codes z_ex [..., D_ex], with the eyes' directions ``gaze`` [..., 2, 3].

        Both lids follow the eye, which opens as far as the code says; a blink goes no further than to close it. Raises
        ModelError for a model without a map of expression weights.
        """
        known = model.config.expression_names
        if not set(known) <= set(self.names):
            raise ModelError(f"head model '{model.config.name}' has expressions that the template lacks")
        found = (z_ex @ torch.linalg.pinv(model.expression_basis).T.to(z_ex)).cpu().numpy()
        w = np.zeros((*found.shape[:-1], len(self.names)), np.float32)
        w[..., [self.names.index(n) for n in known]] = found
        return self.with_gaze(w, gaze)

    def with_gaze(self, w: NDArray[np.float32], gaze: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
        """Weights ``w`` [..., K] with lids that follow the eyes' directions ``gaze`` [..., 2, 3], in place."""
        slopes, blinks = self._openings
        if gaze is not None:
            before = w @ slopes.T
            for i, side in enumerate("LR"):
                for name, weight in look_weights(gaze[..., i, :], side).items():
                    w[..., self.names.index(f"{name}_{side}")] = weight
                w[..., blinks[i]] += (before[..., i] - w @ slopes[i]) / slopes[i, blinks[i]]
        for slope, blink, side in zip(slopes, blinks, "LR", strict=True):
            too_far = np.minimum(w @ slope - slope[blink], 0)  # of the opening, below that of a full blink
            w[..., blink] -= too_far / slope[blink]
            wide, opened = self.names.index(f"eyeWide_{side}"), np.minimum(w[..., blink], 0)
            w[..., wide] += opened * slope[blink] / slope[wide]  # no blink below 0: software clamps it
            w[..., blink] -= opened
        return w

    def vertices(self, weights: NDArray[np.floating], gaze: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
        """The head [..., V, 3] of weights [..., K], eyes looking along ``gaze`` [..., 2, 3], left first.

        These are unit vectors; +z is straight ahead: the pose of ICT-FaceKit's eyes at rest, whose axes point a little
        outwards as people's do.
        """
        w: NDArray[np.float32] = np.asarray(weights, np.float32)
        frames = w.shape[:-1]
        out = (w @ self.shapes.reshape(len(self.shapes), -1)).reshape(*frames, *self.neutral.shape)
        out += self.neutral
        mouth = self.template.mouth
        rest, share = self.neutral[mouth], self.template.jaw[mouth, None]
        for frame in np.ndindex(frames):
            v = out[frame]
            rotation, shift = self.jaw_motion(w[frame])
            v[mouth] = rest + share * (rest @ (rotation - np.eye(3, dtype=np.float32)).T + shift)
            if gaze is not None and np.isfinite(gaze[frame]).all():
                for eye, side, direction in zip(self.eyes, SIDES, gaze[frame], strict=True):
                    own = self.template.part(f"eye_{side}")
                    v[own] = (self.neutral[own] - eye.centre) @ eye_turn(direction).T + eye.centre
        return out

    @cached_property
    def _jaw(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Of the shapes of the jaw: their places, the shift of the lower teeth's mean under each [J, 3], the products
        [J, 3, 3] of their displacements with the teeth's places, and those places' own [3, 3]."""
        own = self.template.part("teeth_lower")
        index = np.array([self.names.index(n) for n in JAW])
        moved, x = self.shapes[index, own].astype(np.float64), self.neutral[own].astype(np.float64)
        x = x - x.mean(0)
        return index, moved.mean(1), np.einsum("jvc,vd->jcd", moved, x), x.T @ x

    def jaw_motion(self, weights: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rotation [3, 3] and translation [3] that move the lower teeth most like their linear shapes (Kabsch)."""
        index, shift, product, own = self._jaw
        w = np.asarray(weights, np.float64)[index]
        u, _, vt = np.linalg.svd(own + np.tensordot(w, product, 1))
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        centre = self.neutral[self.template.part("teeth_lower")].mean(0)
        return rotation.astype(np.float32), (centre + w @ shift - rotation @ centre).astype(np.float32)

    @cached_property
    def _openings(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What each shape adds to the height of each eye's opening [2, K], and the places [2] of the blinks."""
        slopes = np.zeros((2, len(self.names)), np.float32)
        for i, edge in enumerate(self.template.lid_edges):
            upper, lower = split_lids(self.neutral, edge)
            middle = upper[len(upper) // 4 : -(len(upper) // 4)]
            away = np.abs(self.neutral[lower, 0] - self.neutral[middle, 0, None])
            below = lower[away.argmin(1)]
            slopes[i] = (self.shapes[:, middle, 1] - self.shapes[:, below, 1]).mean(1)
        return slopes, np.array([self.names.index(f"eyeBlink_{side}") for side in "LR"])

    def arkit_shapes(self) -> dict[str, NDArray[np.float32]]:
        """Displacements [V, 3] at weight 1 by ARKit's names, then those of shapes that ARKit lacks.

        Teeth go with the jaw; eyeLook moves lids alone, since eyes turn. :meth:`arkit_weights` are the weights for
        them, where tongueOut, which the head model does not know, is 0.
        """
        eye = np.eye(len(self.names), dtype=np.float32)
        combine = arkit_maps(self.names)[0].astype(np.float32)
        named = {name: combine[:, BLENDSHAPE_NAMES.index(name)] for name in ARKIT_BLENDSHAPES}
        named |= {_arkit_name(n): eye[self.names.index(n)] for n in self.names if n.startswith(BEYOND_ARKIT)}
        moved = self.vertices(np.stack(list(named.values()))) - self.neutral
        moved[np.abs(moved).max(2) <= ROUNDING] = 0
        out = dict(zip(named, moved, strict=True))
        return {name: self._tongue_out() if name == TONGUE else out[name] for name in self.arkit_names}

    @cached_property
    def _arkit_products(self) -> NDArray[np.float64]:
        """Inner products [51, 58] of the shapes of ``ARKIT_BLENDSHAPES`` and all of :meth:`arkit_shapes`."""
        shapes = np.stack(list(self.arkit_shapes().values()))
        flat = shapes.reshape(len(shapes), -1)
        return (flat[: len(ARKIT_BLENDSHAPES)] @ flat.T).astype(np.float64)

    @property
    def arkit_names(self) -> tuple[str, ...]:
        """The 52 of ARKit, then those of shapes that it lacks."""
        return (*ARKIT_BLENDSHAPES, TONGUE, *(_arkit_name(n) for n in self.names if n.startswith(BEYOND_ARKIT)))

    def _tongue_out(self) -> NDArray[np.float32]:
        """Displacements [V, 3] that put the tongue out, over the lower teeth and down at its tip; thinner on the way.

        From its root at z = 0 of the template to its tip.
        """
        template, out = self.template, np.zeros_like(self.neutral)
        own = template.tongue
        x, y, z = template.neutral[own].T
        along = np.clip(z / z.max(), 0, 1)
        thin = 0.5 * np.clip(along / 0.6, 0, 1)
        out[own, 0] = -0.25 * along * x
        out[own, 1] = thin * (y.max() - y) + 0.006 * np.sin(np.pi * np.minimum(along / 0.7, 1) / 2) - 0.012 * along**4
        out[own, 2] = TONGUE_OUT * along**1.2
        return out

    def arkit_weights(self, weights: NDArray[np.floating]) -> NDArray[np.float32]:
        """Weights [..., 58] of :meth:`arkit_shapes` for the rig's own [..., K].

        What ARKit has once for both sides gets the smaller of both; the rest of the larger goes to that side's own.
        """
        names = self.arkit_names
        out = np.zeros((*weights.shape[:-1], len(names)), np.float32)
        for i, name in enumerate(self.names):
            out[..., names.index(_arkit_name(name))] = weights[..., i]
        for name in BOTH_SIDES:
            left, right = names.index(f"{name}Left"), names.index(f"{name}Right")
            both = np.minimum(out[..., left], out[..., right])
            out[..., names.index(name)] = both
            out[..., left] -= both
            out[..., right] -= both
        return out

    def bounded_arkit_weights(self, weights: NDArray[np.floating]) -> NDArray[np.float32]:
        """Weights [T, 51] of ``ARKIT_BLENDSHAPES`` alone, within 0 and 1, for the rig's own [T, K].

        They move the head most like the rig's own do: least squares over all vertices. What a shape may not do below 0
        or beyond 1, and shapes that ARKit lacks, others do as far as they can.
        """
        gram, n = self._arkit_products, len(ARKIT_BLENDSHAPES)
        wanted = self.arkit_weights(weights)
        out = np.zeros((len(wanted), n), np.float32)
        moving = np.flatnonzero(gram[:, :n].diagonal())
        for k in range(0, len(wanted), ROWS):
            some = wanted[k : k + ROWS] @ gram[moving].T
            out[k : k + ROWS, moving] = solve_within(gram[np.ix_(moving, moving)], some, 0, 1)
        return out


def knows_arkit(model: NphmDecoder) -> bool:
    """Whether a model's codes are linear in ARKit's expressions by name, so that a rig may stand for its landmarks."""
    names = set(model.config.expression_names)
    return bool(names) and names <= set(load_template().expression_names)


def open_rig(model: NphmDecoder, z_id: NDArray[np.floating]) -> Rig:
    """The rig of the person z_id [D_id]; of the last one it is kept."""
    return _rig_of(model, np.asarray(z_id, np.float32).tobytes())


@lru_cache(maxsize=1)
def _rig_of(model: NphmDecoder, code: bytes) -> Rig:
    template = load_template()
    z_id = torch.from_numpy(np.frombuffer(code, np.float32).copy()).to(model.mean_anchors.device)
    return Rig.of(template, wrap(template, model, z_id))


class RigLandmarks:
    """Some of the 478 landmarks of a rigged head, ready to be posed: linear in its weights.

    Args:
        model: whose expression codes are given.
        rig: the person's.
        points: which landmarks; those of the eyeballs stay at rest.
    """

    def __init__(self, model: NphmDecoder, rig: Rig, points: Sequence[int]) -> None:
        self.model, self.rig = model, rig
        some = list(points)
        self.neutral = rig.template.landmarks(rig.neutral)[some]
        self.shapes = rig.template.landmarks(rig.shapes)[:, some]

    def __call__(self, z_ex: Tensor) -> Tensor:
        """Points [B, N, 3], metres, head space, for expressions z_ex [B, D_ex]."""
        weights = self.rig.weights(self.model, z_ex)
        return torch.from_numpy(self.neutral + np.tensordot(weights, self.shapes, 1)).to(z_ex)

    def by_expression(self, z_ex: Tensor) -> Tensor:
        """Motion [B, E, N, 3] of the points for a unit of each of the model's expressions; exact, being linear up to
        where lids are shut or at rest."""
        basis = DIFFERENCE * self.model.expression_basis.detach().mT.to(z_ex)
        moved = self((z_ex[:, None] + basis).flatten(0, 1)).unflatten(0, (len(z_ex), len(basis)))
        return (moved - self(z_ex)[:, None]) / DIFFERENCE


def look_weights(gaze: NDArray[np.floating], side: str) -> dict[str, NDArray[np.floating]]:
    """Weights [...] of the eyeLook shapes of an eye, "L" or "R", that looks along unit vectors [..., 3]."""
    ahead = np.where(np.isfinite(gaze), gaze, (0, 0, 1))
    yaw, pitch = np.arctan2(ahead[..., 0], ahead[..., 2]), np.arcsin(np.clip(ahead[..., 1], -1, 1))
    outward, upward = (yaw if side == "L" else -yaw) / LOOK_ANGLE, pitch / LOOK_ANGLE  # +x is the face's left
    turns = {"Out": outward, "In": -outward, "Up": upward, "Down": -upward}
    return {f"eyeLook{name}": np.clip(turn, 0, 1) for name, turn in turns.items()}


def _arkit_name(name: str) -> str:
    """ICT-FaceKit's name of a shape as ARKit would write it."""
    return name.replace("_L", "Left").replace("_R", "Right")


def closing(
    vertices: NDArray[np.floating], blink: NDArray[np.floating], edge: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Factors [V] on a blink's displacements [V, 3] that let the lids of a head [V, 3] meet along their ``edge``.

    They vary with the place across the eye alone, and act on what moves down: the lower lid keeps its motion.
    """
    upper, lower = split_lids(vertices, edge)
    shut = vertices + blink
    lower = lower[np.argsort(shut[lower, 0])]
    meeting = np.interp(shut[upper, 0], shut[lower, 0], shut[lower, 1]) - OVERLAP
    travel, needed = -blink[upper, 1], vertices[upper, 1] - meeting
    x0, reach = vertices[edge, 0].mean(), np.ptp(vertices[edge, 0]) / 2
    factor = np.clip(needed / np.maximum(travel, 1e-5), *CLOSING_RANGE)
    curve = np.polynomial.Polynomial.fit((vertices[upper, 0] - x0) / reach, factor, 3, domain=[-1, 1], w=travel)
    across = np.clip((vertices[:, 0] - x0) / reach, -1, 1)
    downward = np.clip(-blink[:, 1] / 0.002, 0, 1)
    return (1 + (np.clip(curve(across), *CLOSING_RANGE) - 1) * downward).astype(np.float32)


def split_lids(
    vertices: NDArray[np.floating], edge: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices of ``edge`` on the upper and on the lower lid, ascending in x, without the corners of the eye."""
    order = edge[np.argsort(vertices[edge, 0])].astype(np.int64)
    first, *inner, last = order.tolist()
    chord = np.interp(vertices[inner, 0], vertices[[first, last], 0], vertices[[first, last], 1])
    above = vertices[inner, 1] > chord
    return np.array(inner)[above], np.array(inner)[~above]


def eye_turn(gaze: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rotation [3, 3] of the template's eyeball for a gaze along a unit vector [3]."""
    x, y = EYE_TURN * np.asarray(gaze, np.float64)[:2]
    return looking_along(np.array([x, y, np.sqrt(1 - x * x - y * y)]))


def looking_along(direction: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rotation [3, 3] that turns +z to a unit vector [3], first up or down, then to the side, without a roll."""
    x, y, z = np.asarray(direction, np.float64)
    yaw, pitch = np.arctan2(x, z), np.arcsin(np.clip(y, -1, 1))
    (c, s), (d, e) = (np.cos(yaw), np.sin(yaw)), (np.cos(pitch), np.sin(pitch))
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, d, e], [0, -e, d]])
    return turn.astype(np.float32)
