"""A headless Chromium, driven through its DevTools protocol: what tests of pages share."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-first-run",
    # Software rendering, for surfaces are drawn by WebGL.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
_PATIENCE = 180.0
"""Seconds."""


class Browser:
    """One tab of a browser, a context manager.

    ``problems``: what the pages told the console as an error, exceptions, and failed requests.
    """

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._ids = itertools.count(1)
        self._profile = tempfile.mkdtemp(prefix="browser-")
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Browser:
        try:
            port, path = self._address()
            self._socket = websocket.create_connection(
                f"ws://127.0.0.1:{port}{path}", timeout=_PATIENCE
            )
            self._tab: str | None = None
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
            self._tab = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=_PATIENCE)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _address(self) -> tuple[str, str]:
        file = Path(self._profile) / "DevToolsActivePort"
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            if file.is_file() and len(lines := file.read_text().split()) == 2:
                return lines[0], lines[1]
            time.sleep(0.02)
        raise RuntimeError(f"{CHROMIUM} did not start")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol; return its result."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._tab is not None:
            message["sessionId"] = self._tab
        self._socket.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.problems.append(json.dumps(parameters["args"])[:2000])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(json.dumps(parameters["entry"])[:2000])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if method is not None:
            self._events.append(message)
        return message

    def open(self, page: Path, *, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Load a page from disk in a window so many pixels wide; wait until it has settled."""
        self.problems.clear()
        self.requests.clear()
        self._events.clear()
        self.resize(width)
        self.dark(dark)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        if scripts:
            self.settle()

    def resize(self, width: int) -> None:
        """Give the window another width, in pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def dark(self, dark: bool) -> None:
        """Prefer dark colours, or light ones."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def settle(self) -> None:
        """Wait for two frames: what is drawn at once is drawn then."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.evaluate(f"{frames}.then(() => true)")

    def evaluate(self, script: str) -> Any:
        """Return what a script comes to, as JSON values; of a promise what it resolves to."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse there, and click where it is asked to."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at a place, move it to another and let it go there."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        moves = [("mouseMoved", start), ("mousePressed", start), ("mouseMoved", middle)]
        for kind, (x, y) in [*moves, ("mouseMoved", end), ("mouseReleased", end)]:
            held = {"button": "left", "clickCount": 1, "buttons": 1}
            options = held if kind != "mouseMoved" or (x, y) != start else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def wait_for(self, script: str) -> None:
        """Wait until a script comes to something true."""
        end = time.monotonic() + _PATIENCE
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def screenshot(self, *, whole: bool = True) -> bytes:
        """Return a picture (PNG) of the whole page, or of what is in the window."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "scale": 1, "width": size["width"], "height": size["height"]}
            picture = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(picture["data"])
