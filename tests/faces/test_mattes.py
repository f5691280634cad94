"""Mattes of person and hair: against MediaPipe's own runtime, on a photograph, at the borders of the frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from nphm_track.errors import ModelError
from nphm_track.faces.graph_network import GraphNetwork
from nphm_track.faces.mattes import HAIR_SIZE, PERSON_SIZE, MatteNetworks, around

GOLDEN = np.load(Path(__file__).with_name("golden_mattes.npz"))
"""Mattes by mediapipe 0.10.21 of ``portrait()`` (see ``training/convert_mattes.py``), mean of each of 64 x 64 cells."""


def portrait() -> np.ndarray:
    return data.astronaut()[:300, 90:390]


def oval(height: int, width: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    v, u = np.mgrid[:height, :width]
    return (u - centre[0]) ** 2 + 0.7 * (v - centre[1]) ** 2 < radius**2


@pytest.fixture(scope="module")
def networks() -> MatteNetworks:
    return MatteNetworks.from_pretrained()


@pytest.mark.parametrize(("name", "side"), [("person", PERSON_SIZE), ("hair", HAIR_SIZE)])
def test_networks_say_what_their_own_runtime_says(networks, name: str, side: int) -> None:
    image = np.asarray(Image.fromarray(portrait()).resize((side, side), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]
    if name == "hair":
        pixels = torch.cat([pixels, torch.zeros(1, 1, side, side)], 1)
    with torch.inference_mode():
        seen = networks.networks[name](pixels)
    matte = (seen[0, 0] if name == "person" else seen.softmax(1)[0, 1]).numpy()
    cells = matte.reshape(64, side // 64, 64, side // 64).mean((1, 3))
    np.testing.assert_allclose(cells, GOLDEN[name], atol=1e-3)


def test_person_and_hair_of_a_photograph(networks) -> None:
    image, head = portrait(), oval(300, 300, (132, 108), 62)
    person = networks.person(image, head)
    hair = networks.hair(image, head, person)
    assert person.shape == hair.shape == (300, 300) and person.dtype == hair.dtype == np.float32
    assert person[100:150, 110:160].min() > 0.95 and person[:60, 220:].max() < 0.05  # the face; the background
    assert hair[100:150, 115:150].max() < 0.1  # no hair on the face
    assert hair[30:55, 110:160].mean() > 0.8
    assert (hair <= person + 1e-6).all()


def test_the_close_look_leaves_no_seam_and_the_rest_as_it_was(networks) -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    image[60:140, 100:200] = portrait()[60:140, 90:190]
    head = oval(200, 300, (150, 100), 25)
    x0, y0, x1, y1 = around(head)
    whole, both = networks.person(image), networks.person(image, head)
    outside = np.ones((200, 300), bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(both[outside], whole[outside])
    step = np.abs(both - whole)[y0, x0:x1]
    assert step.max() < 0.2 * max(1, np.abs(both - whole).max())


def test_the_square_around_a_head_ends_with_the_frame() -> None:
    assert around(np.zeros((40, 60), bool)) is None
    corner = np.zeros((40, 60), bool)
    corner[:10, 50:] = True
    assert around(corner) == (47, 0, 60, 13)


def test_same_padding_puts_the_odd_pixel_right_and_below() -> None:
    step = {"op": "conv", "inputs": ["x"], "outputs": ["y"], "constants": [[1, 1, 3, 3], [1]]}
    network = GraphNetwork([step | {"stride": 2, "dilation": 1, "same": True}], "x", "y")
    network.constants["0_0"].data[:] = torch.arange(9.0).reshape(1, 1, 3, 3)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    torch.testing.assert_close(network(x), torch.zeros(1, 1, 2, 2))  # the kernel's first weight
    x[0, 0, 3, 3] = 1
    assert network(x)[0, 0, 1, 1] == 4


def test_another_model_is_no_model_of_mattes() -> None:
    with pytest.raises(ModelError, match="is not a model of mattes"):
        MatteNetworks.from_pretrained("face_landmarker")
