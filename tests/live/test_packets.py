"""What is sent, read back by readers of their own; and the filter before it."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.live import vmc
from nphm_track.live.livelink import LiveLinkFace
from nphm_track.live.one_euro import OneEuro, Settings
from nphm_track.live.sending import split_address
from tests.live.packets import read_live_link, read_osc

FRONTAL = np.diag([1.0, -1.0, -1.0])


def test_live_link_packets_are_read_as_the_app_s():
    device, values = uuid.UUID(int=7), np.linspace(-1, 1, 61)
    read = read_live_link(LiveLinkFace("Zoë", device).packet(83.4, values))
    assert (read["version"], read["name"]) == (6, "Zoë")
    assert read["device"] == str(device).upper()
    assert read["time"] == pytest.approx(83.4, abs=1e-4)
    np.testing.assert_allclose(read["values"], values, atol=1e-7)


def test_a_long_name_does_not_make_the_packet_longer_than_readers_take():
    assert len(read_live_link(LiveLinkFace("é" * 300).packet(0, [0.0] * 61))["name"].encode()) <= 255


def test_vmc_bundles_hold_the_face():
    turned = FRONTAL @ Rotation.from_euler("y", 30, degrees=True).as_matrix()  # to the face's own left
    messages = read_osc(vmc.packet({"jawOpen": 0.25, "eyeBlinkLeft": 1.0}, turned))
    assert messages[0] == ("/VMC/Ext/OK", [1, 3, 0, 1])
    assert messages[2:] == [
        ("/VMC/Ext/Blend/Val", ["jawOpen", 0.25]),
        ("/VMC/Ext/Blend/Val", ["eyeBlinkLeft", 1.0]),
        ("/VMC/Ext/Blend/Apply", []),
    ]
    address, (bone, *numbers) = messages[1]
    assert (address, bone, numbers[:3]) == ("/VMC/Ext/Bone/Pos", "Head", [0, 0, 0])
    # Unity turns from z to x, which is to its own right, for a positive angle: to the left is below 0.
    np.testing.assert_allclose(numbers[3:], [0, -np.sin(np.pi / 12), 0, np.cos(np.pi / 12)], atol=1e-6)


def test_vmc_says_when_there_is_no_face():
    assert read_osc(vmc.packet({}, None)) == [("/VMC/Ext/OK", [1, 3, 0, 0])]


@pytest.mark.parametrize(
    ("text", "address"),
    [("studio", ("studio", 9)), ("10.0.0.2:77", ("10.0.0.2", 77)), ("::1", ("::1", 9)), ("[::1]:77", ("::1", 77))],
)
def test_addresses(text, address):
    assert split_address(text, 9) == address


@pytest.mark.parametrize("text", ["host:port", "host:0", ":77"])
def test_wrong_addresses(text):
    with pytest.raises(InputError):
        split_address(text, 9)


SETTINGS = Settings(cutoff=1.0, opening=5.0, speed_cutoff=1.0)


def filtered(values, strength=1.0, settings=SETTINGS):
    one_euro = OneEuro(settings, strength)
    return np.array([one_euro(np.atleast_1d(value), i / 30) for i, value in enumerate(values)])


def test_what_stands_still_is_smoothed():
    noise = 0.01 * np.random.default_rng(0).standard_normal(300)
    assert filtered(noise)[30:].std() < 0.6 * noise.std()


def test_fast_motion_passes():
    ramp = np.arange(60) / 3.0  # 10 a second
    late = (ramp - filtered(ramp)[:, 0])[-1] / 10
    assert late < 0.01  # s
    assert (ramp - filtered(ramp, settings=Settings(1.0, 0.0, 1.0))[:, 0])[-1] / 10 > 0.1


def test_strength_0_changes_nothing_and_a_reset_forgets():
    values = np.random.default_rng(0).standard_normal((20, 3))
    np.testing.assert_array_equal(filtered(values, strength=0.0), values)
    one_euro = OneEuro(SETTINGS)
    one_euro(np.zeros(3), 0.0)
    one_euro.reset()
    np.testing.assert_array_equal(one_euro(np.ones(3), 0.1), np.ones(3))


def test_values_that_go_together_open_by_their_common_speed():
    moving = np.stack([np.arange(30) / 3.0, np.random.default_rng(0).standard_normal(30)], 1)
    apart, together = (filtered(moving, settings=Settings(1.0, 5.0, 1.0, flag)) for flag in (False, True))
    assert np.abs(together - moving)[10:, 0].max() <= np.abs(apart - moving)[10:, 0].max()
