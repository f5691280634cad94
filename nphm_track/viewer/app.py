"""``nphm-track view``: runs in the browser (viser). Scrub, orbit, switch the shading, compare two runs.

Everything is in metres. Either the camera stands still and the head moves, or the other way round.
A second run stands beside the first or, overlaid, in the same place; the picture behind is the first run's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError, OutputError
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run
from nphm_track.viewer.access import own_page_only
from nphm_track.viewer.scene import PLAIN, SHADINGS, RunScene

BESIDE = 0.35
"""Metres between two runs side by side."""
BEHIND = 0.25
"""Metres from the head to the picture behind it."""
FRUSTUM = 0.03
"""Metres; size of the drawn camera."""
VANTAGE = 0.28, 0.12, 0.62
"""Metres from the head to who looks: aside, so that camera, head and picture are seen."""
LIGHT = 0.55
"""Of the surroundings; at full strength the shape drowns in it."""
LEVEL = np.diag([1.0, -1.0, -1.0])  # camera space -> x right, y up, z towards the viewer
_STATUS = ("tracked", "filled in", "lost")


class Viewer:
    """A server that shows one run or two. ``show`` moves to a row of the first run's track; ``stop`` ends it.

    Raises InputError when viser is missing or a run has nothing to show, OutputError when the port cannot be had.
    """

    def __init__(self, runs: Sequence[Run], *, host: str = "127.0.0.1", port: int = 8080) -> None:
        viser = load_viser()
        self.scenes = [RunScene(run, colour) for run, colour in zip(runs, PLAIN, strict=False)]
        try:
            with own_page_only(host):
                self.server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        except OSError as error:
            raise OutputError(f"the viewer cannot use {host}:{port} ({error.strerror or error})") from None
        self.host = host
        self._lock = threading.Lock()
        self._build()
        self.show(0)

    @property
    def url(self) -> str:
        """Where the browser finds it; the port is another when the one asked for is taken."""
        host = "localhost" if self.host in ("127.0.0.1", "0.0.0.0") else self.host
        return f"http://{host}:{self.server.get_port()}"

    def show(self, row: int) -> None:
        """Show a row of the first run's track, and of the other run's the one at the same time."""
        with self._lock, self.server.atomic():
            for index, scene in enumerate(self.scenes):
                self._draw(index, scene, row if index == 0 else scene.row_at(float(self.scenes[0].track.time[row])))
        self._facts.content = "\n\n".join(self._describe(index, row) for index in range(len(self.scenes)))

    def wait(self) -> None:
        """Serve, and play when asked to, until Ctrl-C."""
        try:
            while True:
                time.sleep(self._step() if self._playing.value else 0.1)
                if self._playing.value:
                    self._row.value = (self._row.value + 1) % len(self.scenes[0].track)
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def stop(self) -> None:
        self.server.stop()

    def _step(self) -> float:
        """Seconds from the frame that is shown to the next."""
        times = self.scenes[0].track.time
        row = min(int(self._row.value), len(times) - 2)
        return float(np.clip(times[row + 1] - times[row], 0.01, 0.5)) if row >= 0 else 0.1

    def _build(self) -> None:
        gui, scene = self.server.gui, self.server.scene
        scene.set_up_direction("+y")
        scene.configure_environment_map("studio", environment_intensity=LIGHT)
        scene.configure_default_lights(cast_shadow=False)
        last = len(self.scenes[0].track) - 1
        self._row = gui.add_slider("Frame", min=0, max=max(last, 1), step=1, initial_value=0, disabled=last == 0)
        self._playing = gui.add_checkbox("Play", False)
        self._shading = gui.add_dropdown("Shading", SHADINGS)
        self._still = gui.add_dropdown("Stands still", ("camera", "head"))
        self._cameras = gui.add_checkbox("Camera", True)
        self._plane = gui.add_checkbox("Picture", True)
        self._beside = gui.add_checkbox("Side by side", True, visible=len(self.scenes) > 1)
        self._facts = gui.add_markdown("")
        for control in (self._row, self._shading, self._cameras, self._plane, self._beside):
            control.on_update(lambda _: self.show(min(int(self._row.value), last)))
        self._still.on_update(lambda _: self._look_and_show())
        self._look()

    def _look_and_show(self) -> None:
        self.show(min(int(self._row.value), len(self.scenes[0].track) - 1))
        self._look()

    def _look(self) -> None:
        """Put those who look before the head, to its side."""
        track = self.scenes[0].track
        place = LEVEL @ np.median(track.t[track.status != Status.LOST], axis=0)
        target = np.zeros(3) if self._still.value == "head" else place
        if len(self.scenes) > 1 and self._beside.value:
            target = target + np.array([BESIDE / 2, 0.0, 0.0])
        position = target + np.array(VANTAGE)
        self.server.initial_camera.position, self.server.initial_camera.look_at = position, target
        for client in self.server.get_clients().values():
            client.camera.position, client.camera.look_at = position, target

    def _draw(self, index: int, scene: RunScene, row: int) -> None:
        track, root, names = scene.track, f"/{'ab'[index]}", self.server.scene
        surface = scene.surface(row, self._shading.value)
        if surface is None:
            names.add_frame(root, show_axes=False, visible=False)
            return
        head_still = self._still.value == "head"
        beside = np.array([BESIDE * index if self._beside.value else 0.0, 0.0, 0.0])
        names.add_frame(root, show_axes=False, wxyz=_wxyz(np.eye(3) if head_still else LEVEL), position=beside)
        R, t = track.R[row], track.t[row]
        head = (np.eye(3), np.zeros(3)) if head_still else (R, t)
        camera = (R.T, -R.T @ t) if head_still else (np.eye(3), np.zeros(3))
        mesh = trimesh.Trimesh(
            surface.vertices,
            surface.faces,
            vertex_normals=surface.normals,
            vertex_colors=np.c_[surface.colours, np.full(len(surface.colours), 255, np.uint8)],
            process=False,
        )
        names.add_mesh_trimesh(f"{root}/head", mesh, wxyz=_wxyz(head[0]), position=head[1])
        self._draw_camera(f"{root}/camera", scene, row, camera, picture=index == 0)

    def _draw_camera(
        self,
        name: str,
        scene: RunScene,
        row: int,
        pose: tuple[NDArray[np.float64], NDArray[np.float64]],
        *,
        picture: bool,
    ) -> None:
        """The camera and, on request, its picture on the plane behind the head, where the head covers itself in it."""
        track, names = scene.track, self.server.scene
        names.add_frame(name, show_axes=False, wxyz=_wxyz(pose[0]), position=pose[1])
        (width, height), K = track.image_size.astype(float), track.K
        names.add_camera_frustum(
            f"{name}/frustum",
            fov=2 * np.arctan(height / (2 * K[1, 1])),
            aspect=width / height,
            scale=FRUSTUM,
            thickness=0.0015,
            visible=self._cameras.value,
        )
        if not picture:
            return
        image = scene.pictures(row) if self._plane.value else None
        depth = float(track.t[row, 2]) + BEHIND
        size = depth * np.array([width / K[0, 0], height / K[1, 1]])
        centre = depth * np.array([(width / 2 - K[0, 2]) / K[0, 0], (height / 2 - K[1, 2]) / K[1, 1], 1.0])
        names.add_image(
            f"{name}/picture",
            np.zeros((1, 1, 3), np.uint8) if image is None else image,
            render_width=float(size[0]),
            render_height=float(size[1]),
            position=centre,
            visible=image is not None,
        )

    def _describe(self, index: int, row: int) -> str:
        track = self.scenes[0].track
        scene = self.scenes[index]
        row = row if index == 0 else scene.row_at(float(track.time[row]))
        track = scene.track
        error = track.landmark_error_px[row]
        measured = f", landmarks {error:.1f} px off" if np.isfinite(error) else ""
        status = _STATUS[int(track.status[row])]
        return (
            f"**{_plain(scene.run.path.name)}**: frame {track.frame[row]}, {track.time[row]:.2f} s, {status}{measured}"
        )


def _plain(text: str) -> str:
    """Any text as markdown that shows it and does nothing else: every sign that could mean something is spelt out."""
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text)


def _wxyz(R: NDArray[np.float64]) -> NDArray[np.float64]:
    return Rotation.from_matrix(R).as_quat(scalar_first=True)


def load_viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise InputError(f"viser is not usable ({error}); pip install 'nphm-track[viewer]'") from None
    return viser
