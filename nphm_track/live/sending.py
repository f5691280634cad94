"""Frames as packets to other programs, over UDP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.errors import InputError
from nphm_track.export.blendshapes import app_values
from nphm_track.live import livelink, vmc
from nphm_track.live.tracker import LiveFrame

Packets = Callable[[LiveFrame], bytes | None]
"""What is said of a frame; None: nothing."""


class Sender:
    """Sends what ``packets`` say to an address ``HOST[:PORT]``. Raises InputError when there is no such host."""

    def __init__(self, packets: Packets, address: str, port: int) -> None:
        self.packets = packets
        host, asked = split_address(address, port)
        try:
            found = socket.getaddrinfo(host, asked, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise InputError(f"{address}: no such host ({error.strerror or error})") from None
        self.address: Any = found[4]
        self._socket = socket.socket(found[0], socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # what cannot be sent now is of no use later
        self.failed = 0

    def __call__(self, frame: LiveFrame) -> None:
        """Send a frame; what the network does not take is counted in ``failed``."""
        packet = self.packets(frame)
        if packet is not None:
            try:
                self._socket.sendto(packet, self.address)
            except OSError:
                self.failed += 1

    def close(self) -> None:
        self._socket.close()


def live_link(subject: str) -> Packets:
    """As the Live Link Face app does; of a frame without a face nothing, so that receivers hold the last one."""
    link = livelink.LiveLinkFace(subject)
    return lambda frame: None if frame.lost else link.packet(float(frame.track.time[0]), app_values(frame.track)[0])


def virtual_motion_capture() -> Packets:
    """As performers of the VMC protocol do."""

    def packets(frame: LiveFrame) -> bytes:
        if frame.lost:
            return vmc.packet({}, None)
        weights = dict(zip(ARKIT_BLENDSHAPES, frame.track.arkit[0].tolist(), strict=True))
        return vmc.packet(weights, frame.track.R[0])

    return packets


def split_address(text: str, port: int) -> tuple[str, int]:
    """``HOST``, ``HOST:PORT`` or ``[HOST]:PORT`` taken apart, with ``port`` where none is given."""
    host, colon, number = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "")
    if colon and not (number.isdecimal() and 0 < int(number) < 65536):
        raise InputError(f"{text}: '{number}' is no port")
    host = host.strip("[]")
    if not host:
        raise InputError(f"'{text}' is no address; write HOST or HOST:PORT")
    return host, int(number) if colon else port
