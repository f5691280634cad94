"""The viewer, started on a free port with a small made-up run, asked over HTTP, stopped."""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nphm_track import Run
from nphm_track.errors import InputError
from nphm_track.viewer.scene import Pictures, RunScene


def test_colours(run: Run) -> None:
    scene = RunScene(run)
    plain, normals, error = (scene.surface(0, shading) for shading in ("plain", "normals", "error"))
    assert plain is not None and normals is not None and error is not None
    assert (plain.colours == scene.plain).all() and scene.surface(3, "plain") is None
    np.testing.assert_allclose(normals.colours / 127.5 - 1, normals.normals, atol=0.01)
    changed = (error.colours != plain.colours).any(1)
    assert 0.05 < changed.mean() < 0.9
    assert plain.vertices[changed, 2].mean() > 0.02  # the side that the camera sees


def test_pictures_in_any_order(run: Run) -> None:
    pictures = Pictures(run)
    for row in (2, 0, 3, 1):
        picture = pictures(row)
        assert picture is not None and picture[0, 0, 0] == 40 * row


def test_a_run_without_meshes_is_refused(run: Run) -> None:
    bare = Run(run.path, run.info.model_copy(update={"options": run.info.options | {"meshes": False}}))
    with pytest.raises(InputError, match="without meshes"):
        RunScene(bare)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


def test_viewer_serves_and_follows_its_controls(run: Run, port: int) -> None:
    pytest.importorskip("viser")
    from nphm_track.viewer.app import Viewer

    viewer = Viewer([run, run], port=port)
    try:
        with urllib.request.urlopen(viewer.url, timeout=20) as page:
            assert page.status == 200 and b"<html" in page.read()
        for shading in ("normals", "error"):
            viewer._shading.value = shading
        viewer._still.value = "head"
        for row in range(len(run.track)):
            viewer.show(row)
        assert "lost" in viewer._facts.content
        viewer.show(1)
        assert viewer._facts.content.count("frame 1, 0.04 s, tracked, landmarks 1.0 px off") == 2
    finally:
        viewer.stop()


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("localhost:{port}", None, True),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", True),
        ("localhost:9000", "http://localhost:9000", True),  # a forwarded port
        ("[::1]:{port}", "http://[::1]:{port}", True),
        ("localhost:{port}", "http://evil.example", False),
        ("localhost:{port}", "http://localhost:3000", False),  # another server of this machine
        ("localhost:{port}", "null", False),  # a file, a sandboxed frame
        ("rebound.example:{port}", "http://rebound.example:{port}", False),
        ("rebound.example:{port}", None, False),
        ("localhost.evil.example", None, False),
        ("", None, False),
    ],
)
def test_it_answers_its_own_page_only(served: Any, host: str, origin: str | None, answered: bool) -> None:
    port = served.server.get_port()
    headers = [f"Host: {host.format(port=port)}"] + ([f"Origin: {origin.format(port=port)}"] if origin else [])
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    for asked in (headers, [*headers, *upgrade, key]):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall("\r\n".join(["GET / HTTP/1.1", *asked, "", ""]).encode())
            status = int(connection.recv(4096).split()[1])
        assert (status in (101, 200)) == answered, (asked, status)
        assert answered or status == 403


@pytest.fixture(scope="module")
def served(run: Run) -> Iterator[Any]:
    pytest.importorskip("viser")
    from nphm_track.viewer.app import Viewer

    viewer = Viewer([run], port=0)
    yield viewer
    viewer.stop()


def test_the_name_of_a_run_is_text(run: Run) -> None:
    pytest.importorskip("viser")
    from nphm_track.viewer.app import _plain

    name = """<iframe srcdoc="<script>x</script>"> {alert(1)} [a](javascript:b) `c` **d** 顔\udce9"""
    assert html.unescape(_plain(name[:-1])) == name[:-1]
    assert re.fullmatch(r"([^\W_]| |&#\d+;)*", _plain(name))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_it_cleanly(run: Run, port: int) -> None:
    pytest.importorskip("viser")
    command = [sys.executable, "-m", "nphm_track", "view", str(run.path), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored when the tests run in the background
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert any("Ctrl-C ends" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in errors
    finally:
        process.kill()
