"""A headless Chromium, spoken to over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless", "--no-sandbox", "--remote-debugging-port=0", "--enable-unsafe-swiftshader", "--disable-gpu",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--mute-audio", "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required", "--disable-features=Translate",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds to wait for anything."""


def find_chromium() -> str:
    """Path of a Chromium: $CHROMIUM, or one on the PATH; skips the test when there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found (on Debian: apt-get install chromium-headless-shell), nor named by $CHROMIUM")
    return path


class Page:
    """One page of a browser of its own; a context manager."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        connect = pytest.importorskip("websockets.sync.client").connect
        program = find_chromium()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._count = 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._log = Path(self._profile.name, "log")
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [program, *SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={self._profile.name}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._socket = connect(self._address(), max_size=None)
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise

    _session: str | None = None

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # on Debian the program is a script that starts the browser
        self._process.wait()
        self._profile.cleanup()

    def _address(self) -> str:
        """Of its debugging socket, from what it says when it has started."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            if found := re.search(r"listening on (ws://\S+)", self._log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.05)
        pytest.skip(f"Chromium does not start: {self._log.read_text(errors='replace')[-300:]}")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result; what the page does meanwhile is noted."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event.get("method") == "Network.webSocketCreated":
            self.requests.append(values["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and values["type"] == "error":
            self.errors.append(" ".join(str(part.get("value", part)) for part in values["args"]))

    def open(self, url: str) -> None:
        """Load a page and wait until all of it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.ask(expression)):
            assert time.monotonic() < end, f"still not true: {expression}"
            time.sleep(0.05)
        return value

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        for part in (0.5, 1.0):
            place = {"x": x + part * dx, "y": y + part * dy}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **place, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, button="left", clickCount=1)

    def screenshot(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        picture = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        if path is not None:
            path.write_bytes(picture)
        return picture
