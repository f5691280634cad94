"""The head of a live session in the browser, at the pace that the browser takes it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from nphm_track.errors import OutputError
from nphm_track.heads.template import load_template
from nphm_track.live.capture import Newest
from nphm_track.live.tracker import LiveFrame
from nphm_track.viewer.access import own_page_only
from nphm_track.viewer.app import LEVEL, LIGHT, VANTAGE, load_viser
from nphm_track.viewer.scene import PLAIN

DISTANCE = 0.5
"""Metres from the camera at which the head is looked for before there is one."""


class LiveViewer:
    """A server that shows the newest frame it was given; a thread of its own carries and sends the head.

    Raises InputError when viser is missing, OutputError when the port cannot be had.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8080) -> None:
        viser = load_viser()
        try:
            with own_page_only(host):
                self.server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        except OSError as error:
            raise OutputError(f"the viewer cannot use {host}:{port} ({error.strerror or error})") from None
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.server.get_port()}"
        self._template = load_template()
        self._kept, faces = np.unique(self._template.head_faces, return_inverse=True)
        scene = self.server.scene
        scene.set_up_direction("+y")
        scene.configure_environment_map("studio", environment_intensity=LIGHT)
        scene.configure_default_lights(cast_shadow=False)
        target = LEVEL @ (0, 0, DISTANCE)
        self.server.initial_camera.position, self.server.initial_camera.look_at = target + VANTAGE, target
        self._head = scene.add_mesh_simple(
            "/head",
            self._template.neutral[self._kept],
            faces.reshape(-1, 3).astype(np.uint32),
            color=self._template.painted(PLAIN[0])[self._kept],
            visible=False,
        )
        self._newest: Newest[LiveFrame] = Newest()
        self._thread = threading.Thread(target=self._show, name="viewer", daemon=True)
        self._thread.start()

    def __call__(self, frame: LiveFrame) -> None:
        """Show a frame, unless a newer one comes before its turn."""
        self._newest.put(frame)

    def close(self) -> None:
        self._newest.end()
        self._thread.join(1.0)
        self.server.stop()

    def _show(self) -> None:
        for frame in self._newest:
            if not frame.lost and self.server.get_clients():
                vertices = self._template.cut_at_neck(frame.vertices())[self._kept]
                turn = Rotation.from_matrix(LEVEL @ frame.track.R[0])
                with self.server.atomic():
                    self._head.vertices = vertices
                    self._head.wxyz, self._head.position = turn.as_quat(scalar_first=True), LEVEL @ frame.track.t[0]
                    self._head.visible = True
