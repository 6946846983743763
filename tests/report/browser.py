"""A headless Chromium for tests, spoken to by the WebDriver protocol over its own chromedriver."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--allow-file-access-from-files"),
    "--hide-scrollbars",  # they would cover the edge of a screenshot
)
START_SECONDS = 1500.0  # against hanging alone
SHOTS = 4


def missing_browser() -> str:
    """Return why there is no browser to test in; empty where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


@dataclass(frozen=True)
class Browser:
    """An open session."""

    address: str

    def call(self, path: str, **values: Any) -> Any:
        """Return the answer to one command."""
        return _ask(f"{self.address}/{path}", values)

    def devtools(self, command: str, **values: Any) -> Any:
        """Return the answer to a command of the DevTools protocol."""
        return self.call("goog/cdp/execute", cmd=command, params=values)

    def open(self, page: Path, *, width: int, scheme: Literal["light", "dark"]) -> None:
        """Show a page at a width in CSS pixels, by day or by night."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("url", url=page.resolve().as_uri())

    def run(self, script: str) -> Any:
        """Return what JavaScript returns."""
        return self.call("execute/sync", script=script, args=[])

    def press(self, key: str) -> None:
        """Press and release a key."""
        typed = {"text": "\r"} if key == "Enter" else {}
        for kind, more in (("keyDown", typed), ("keyUp", {})):
            values = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            self.devtools("Input.dispatchKeyEvent", **values, **more)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place in CSS pixels of the window."""
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def console(self) -> list[str]:
        """Return what the page has logged since the last call, errors of loading included."""
        return [entry["message"] for entry in self.call("se/log", type="browser")]

    def screenshot(self, path: Path) -> None:
        """Write the whole page, however long, as PNG."""
        for attempt in range(SHOTS):
            try:
                shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
                break
            except RuntimeError as error:  # Chromium gives up on a frame that a busy machine draws too late
                if "capture screenshot" not in str(error) or attempt == SHOTS - 1:
                    raise
        path.write_bytes(base64.b64decode(shot["data"]))


KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile folder, and end it."""
    port = _free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        _await(base)
        chrome = {"args": [*QUIET, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _ask(f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
        opened = Browser(f"{base}/session/{session['sessionId']}")
        try:
            yield opened
        finally:
            _ask(opened.address, None, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=START_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(base: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        try:
            if _ask(f"{base}/status", None, method="GET")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError("chromedriver did not start")


def _ask(address: str, values: dict[str, Any] | None, *, method: str = "POST") -> Any:
    body = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=START_SECONDS) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{address}: {json.load(error)['value']['message'].splitlines()[0]}") from error
