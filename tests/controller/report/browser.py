"""A headless Chromium, told what to do over a pipe (the DevTools protocol)."""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0


def chromium() -> str:
    """The browser's program; fails with what to install."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise AssertionError("Chromium is missing: apt-get install --no-install-recommends chromium")


class Page:
    """One page of a browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._count = write, read, 0
        self._buffer = b""
        self._session = ""
        self.requests: list[str] = []  # every address that was asked for
        self.errors: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._receive()).get("id") != self._count:
            self._note(reply)
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            is_there = select.select([self._read], [], [], TIMEOUT_S)[0]
            assert is_there, f"Chromium said nothing for {TIMEOUT_S:.0f} s"
            part = os.read(self._read, 1 << 16)
            assert part, "Chromium ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.errors.append(json.dumps(event["params"]))

    def open(self, file: Path, *, width: int, scheme: str = "light") -> None:
        """Load a file at a width of the screen, in CSS pixels, and a colour scheme."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=800,
                   deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._send("Emulation.setEmulatedMedia", features=[feature])
        self._send("Page.navigate", url=file.resolve().as_uri())
        while (event := self._receive()).get("method") != "Page.loadEventFired":
            self._note(event)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self._send("Page.printToPDF", printBackground=False)["data"])

    def picture(self, height: int | None = None) -> bytes:
        """The whole page as PNG, or its upper end of so many CSS pixels."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "height": height or size["height"], "scale": 1}
        shot = self._send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser that keeps its files in `folder`, ended with the block."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        f"--user-data-dir={folder}", "--no-first-run", "--disable-dev-shm-usage",
    ]  # fmt: skip
    # Chromium reads commands from descriptor 3 and answers on 4
    wire = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "bash", *command]
    process = subprocess.Popen(
        wire,
        pass_fds=(to_read, from_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        process.wait(TIMEOUT_S)
