"""The head of a live session in the browser, at the pace that the browser takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.errors import OutputError
from nphm_track.heads.template import Template, load_template
from nphm_track.live.capture import Newest
from nphm_track.live.tracker import LiveFrame
from nphm_track.viewer.access import own_page_only
from nphm_track.viewer.app import LEVEL, LIGHT, VANTAGE, load_viser
from nphm_track.viewer.scene import PLAIN

DISTANCE = 0.5
"""Metres from the camera at which the head is looked for before there is one."""
COLOURS = 12
"""Most frequent colours of the head, which the others are near."""


class LiveViewer:
    """A server that shows the newest frame it was given; a thread of its own carries and sends the head.

    Raises InputError when viser is missing, OutputError when the port cannot be had.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8080) -> None:
        viser = load_viser()
        try:
            with own_page_only(host), redirect_stdout(StringIO()):  # viser greets whatever it is told
                self.server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        except OSError as error:
            raise OutputError(f"the viewer cannot use {host}:{port} ({error.strerror or error})") from None
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.server.get_port()}"
        self._template = load_template()
        scene = self.server.scene
        scene.set_up_direction("+y")
        scene.configure_environment_map("studio", environment_intensity=LIGHT)
        scene.configure_default_lights(enabled=False, cast_shadow=False)
        target = LEVEL @ (0, 0, DISTANCE)
        self.server.initial_camera.position, self.server.initial_camera.look_at = target + VANTAGE, target
        self._head = scene.add_frame("/head", show_axes=False, visible=False)
        self._parts = [
            (
                kept,
                scene.add_mesh_simple(f"/head/{i}", self._template.neutral[kept], faces, color=colour, side="double"),
            )
            for i, (colour, kept, faces) in enumerate(by_colour(self._template))
        ]
        self._newest: Newest[LiveFrame] = Newest()
        self._thread = threading.Thread(target=self._show, name="viewer", daemon=True)
        self._thread.start()

    def __call__(self, frame: LiveFrame) -> None:
        """Show a frame, unless a newer one comes before its turn."""
        self._newest.put(frame)

    def close(self) -> None:
        self._newest.end()
        self._thread.join(1.0)
        with redirect_stdout(StringIO()):
            self.server.stop()

    def _show(self) -> None:
        for frame in self._newest:
            if not frame.lost and self.server.get_clients():
                vertices = self._template.cut_at_neck(frame.vertices())
                turn = Rotation.from_matrix(LEVEL @ frame.track.R[0])
                with self.server.atomic():
                    self._head.wxyz, self._head.position = turn.as_quat(scalar_first=True), LEVEL @ frame.track.t[0]
                    self._head.visible = True
                    for kept, mesh in self._parts:
                        mesh.vertices = vertices[kept]


def by_colour(template: Template) -> Iterator[tuple[tuple[int, ...], NDArray[np.int64], NDArray[np.uint32]]]:
    """The head in pieces of one colour each, since a mesh that only moves has one: the colour, which vertices it has
    [N], and its triangles [F, 3] among them."""
    painted = template.painted(PLAIN[0])
    colours, count = np.unique(painted, axis=0, return_counts=True)
    colours = colours[np.argsort(-count)[:COLOURS]].astype(int)
    of_face = painted[template.head_faces].mean(1)
    nearest = ((of_face[:, None] - colours) ** 2).sum(-1).argmin(1)
    for i, colour in enumerate(colours):
        kept, faces = np.unique(template.head_faces[nearest == i], return_inverse=True)
        if len(kept):
            yield tuple(colour.tolist()), kept, faces.reshape(-1, 3).astype(np.uint32)
