"""Mattes of person and hair (MediaPipe's segmentation networks, in torch; weights: ``models/mattes``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nphm_track.faces.graph_network import GraphNetwork
from nphm_track.models import load_network

KIND = "mattes"
PERSON_SIZE, HAIR_SIZE = 256, 512
"""Side of the networks' input; pictures of other shapes are squeezed into it."""
AROUND_HEAD = 1.5
"""Side of the square that is looked at closely, in sizes of the head."""
FEATHER = 0.1
"""Of that square's side: width over which the close look replaces the look at the whole frame."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels, the ends outside."""


class MatteNetworks:
    """Person and hair of one frame; images are uint8 RGB [H, W, 3], mattes float32 [H, W] in 0..1.

    Every frame is looked at by itself, so that a matte does not depend on which frames were asked for before.
    """

    def __init__(self, networks: nn.Module, device: torch.device | str = "cpu") -> None:
        self.networks, self.device = networks, torch.device(device)

    @classmethod
    def from_pretrained(cls, name_or_path: str = "mattes", *, device: torch.device | str = "cpu") -> MatteNetworks:
        """The released networks. Raises ModelError when the file is missing, damaged or of another architecture."""
        return cls(load_network(name_or_path, KIND, "a model of mattes", build_networks, device), device)

    def person(self, image: NDArray[np.uint8], head: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Everybody in the foreground, with what they wear and hold; finer around ``head`` [H, W], a silhouette."""
        matte = self._look(image, "person", (0, 0, image.shape[1], image.shape[0]))
        box = None if head is None else around(head)
        if box is not None:
            x0, y0, x1, y1 = box
            weight = _feather(box, image.shape[1], image.shape[0])
            matte[y0:y1, x0:x1] += weight * (self._look(image, "person", box) - matte[y0:y1, x0:x1])
        return matte

    def hair(
        self, image: NDArray[np.uint8], head: NDArray[np.bool_], person: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Hair near the silhouette ``head`` [H, W], within the matte ``person`` [H, W]."""
        matte, box = np.zeros_like(person), around(head)
        if box is not None:
            x0, y0, x1, y1 = box
            matte[y0:y1, x0:x1] = self._look(image, "hair", box) * person[y0:y1, x0:x1]
        return matte

    @torch.inference_mode()
    def _look(self, image: NDArray[np.uint8], name: str, box: Box) -> NDArray[np.float32]:
        """Matte of a part of the image, [y1 - y0, x1 - x0]."""
        x0, y0, x1, y1 = box
        side = PERSON_SIZE if name == "person" else HAIR_SIZE
        part = torch.from_numpy(np.ascontiguousarray(image[y0:y1, x0:x1])).to(self.device)
        pixels = _resize(part.permute(2, 0, 1)[None].float() / 255, side, side)
        if name == "hair":  # the fourth channel is the last frame's matte: none
            pixels = F.pad(pixels, (0, 0, 0, 0, 0, 1))
        seen = self.networks[name](pixels)  # type: ignore[index]
        matte = seen.softmax(1)[:, 1:] if name == "hair" else seen
        return np.asarray(_resize(matte, y1 - y0, x1 - x0)[0, 0].cpu().numpy())


def around(silhouette: NDArray[np.bool_]) -> Box | None:
    """The square around a head, cut off at the borders of the frame; None where nothing of it is in the frame."""
    rows, columns = np.flatnonzero(silhouette.any(1)), np.flatnonzero(silhouette.any(0))
    if not len(rows):
        return None
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    reach = AROUND_HEAD * (high - low).max() / 2
    low, high = (low + high) / 2 - reach, (low + high) / 2 + reach
    x0, y0 = np.maximum(low, 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(high), silhouette.shape[::-1]).astype(int).tolist()
    return x0, y0, x1, y1


def _feather(box: Box, width: int, height: int) -> NDArray[np.float32]:
    """[y1 - y0, x1 - x0] weights that fall to 0 at the box's sides, but where these are the frame's."""
    x0, y0, x1, y1 = box
    soft = max(1.0, FEATHER * max(x1 - x0, y1 - y0))

    def ramp(begin: int, end: int, size: int) -> NDArray[np.float32]:
        place = np.arange(begin, end) + 0.5
        from_begin = (place - begin) / soft if begin else np.ones_like(place)
        to_end = (end - place) / soft if end < size else np.ones_like(place)
        return np.minimum(np.minimum(from_begin, to_end), 1).astype(np.float32)

    return np.minimum(ramp(y0, y1, height)[:, None], ramp(x0, x1, width)[None])


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)


def build_networks(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """``person`` and ``hair`` of the step lists in ``config``, without weights."""
    return nn.ModuleDict({name: GraphNetwork(**config[name]) for name in ("person", "hair")})
