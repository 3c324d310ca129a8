"""A headless Chromium driven over the WebDriver protocol, for the slow test of the report's page."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-dev-shm-usage", "--window-size=1280,1000"]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One page; every method is one WebDriver request."""

    def __init__(self, port: int, profile: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/session"
        chrome = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self._url += "/" + self._ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def open(self, url: str) -> None:
        self._ask("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that JavaScript returns."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def log(self) -> list[str]:
        """What the console has been told since the last call."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        return base64.b64decode(self._ask("/screenshot", None))

    def drag(self, selector: str, dx: int) -> None:
        """Press the mouse on the middle of an element and move it by dx pixels."""
        element = self._ask("/element", {"using": "css selector", "value": selector})
        moves = [
            {"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 50, "origin": "pointer", "x": dx, "y": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._ask("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def click(self, selector: str) -> None:
        element = self._ask("/element", {"using": "css selector", "value": selector})
        self._ask(f"/element/{element[ELEMENT]}/click", {})

    def key(self, selector: str, text: str) -> None:
        element = self._ask("/element", {"using": "css selector", "value": selector})
        self._ask(f"/element/{element[ELEMENT]}/value", {"text": text})

    def close(self) -> None:
        request = urllib.request.Request(self._url, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()

    def _ask(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def chromium(profile: Path, driver: str = "chromedriver") -> Iterator[Browser]:
    """A browser with an empty profile, gone at the end of the with-block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        browser = Browser(port, profile)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
