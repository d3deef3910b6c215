"""A headless Chromium for the tests of pages, spoken to in the WebDriver protocol; the standard library is enough."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WHY_NOT = (
    "no browser here: the page is looked at in a real one only where chromium and chromedriver are installed "
    "(Debian: apt-get install chromium chromium-driver)"
)
DEADLINE_S = 30.0
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


class Browser:
    """One window."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """One command of the protocol."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=DEADLINE_S) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(f"{path}: {json.load(error)['value']['message'].splitlines()[0]}") from None

    def open(self, file: Path, place: str = "") -> None:
        """Loads a file anew."""
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": file.resolve().as_uri() + place})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str) -> Any:
        """What a script returns, once that is true."""
        ends = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends:
            if found := self.run(f"return {script}"):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the browser's own protocol."""
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int, height: int = 900, *, scheme: str = "light") -> None:
        """The size of the window, and which colours the person prefers."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        """A key, wherever the focus is."""
        self.devtools("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        self.devtools("Input.dispatchKeyEvent", type="keyUp", key=key)

    def point(self, selector: str, number: int = 0) -> None:
        """Moves the pointer onto the first line of an element, once that is in view."""
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", **self.middle_of(selector, number))

    def tap(self, selector: str, number: int = 0) -> None:
        """A finger on an element."""
        self.devtools("Input.dispatchTouchEvent", type="touchStart", touchPoints=[self.middle_of(selector, number)])
        self.devtools("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def middle_of(self, selector: str, number: int) -> dict[str, float]:
        """Where an element's first line is."""
        script = (
            "const node = document.querySelectorAll(arguments[0])[arguments[1]];"
            "node.scrollIntoView({block: 'center'}); const box = node.getClientRects()[0];"
            "return {x: box.left + box.width / 2, y: box.top + box.height / 2}"
        )
        found: dict[str, float] = self.run(script, selector, number)
        return found

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]

    def picture(self, file: Path) -> None:
        """Writes what is seen as PNG."""
        file.write_bytes(base64.b64decode(self.call("/screenshot")))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own; ended, with everything that it started, in the end."""
    assert BROWSER is not None
    assert DRIVER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "driver.log"
        with log.open("w") as out:
            driver = subprocess.Popen([DRIVER, "--port=0"], stdout=out, stderr=out)
        try:
            root = f"http://127.0.0.1:{port_of(log)}"
            options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}/profile"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = Browser(root).call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            window = Browser(f"{root}/session/{session}")
            try:
                yield window
            finally:
                window.call("", method="DELETE")
        finally:
            driver.terminate()
            driver.wait(DEADLINE_S)


def port_of(log: Path) -> int:
    """The port that the driver says it listens at."""
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        if found := re.search(r"started successfully on port (\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise URLError(f"the driver did not start: {log.read_text()}")
