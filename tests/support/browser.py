"""Chromium without a window, given orders by its DevTools protocol on a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 180.0


def missing() -> str | None:
    """Why there is no browser here; None if there is one."""
    return None if _program() else "chromium is not installed (Debian: chromium-headless-shell, or chromium)"


def _program() -> str | None:
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


class Browser:
    """A browser with one page. ``complaints`` are its errors: of scripts, of what was not loaded, of the policy."""

    def __init__(self, directory: Path) -> None:
        """``directory``: for its profile, and what it says."""
        (orders, self._orders), (self._answers, answers) = _pipe(), _pipe()
        self._log = directory / "browser.log"
        command = [
            _program() or "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--remote-debugging-pipe", f"--user-data-dir={directory}/profile",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{orders} 4>&{answers} {orders}<&- {answers}>&-', "bash", *command],
                pass_fds=(orders, answers), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        for fd in (orders, answers):
            os.close(fd)
        self._numbers = itertools.count(1)
        self._received = bytearray()
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order, and return what it yields."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._received:
            readable, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"the browser does not answer: {self._log.read_text(errors='replace')}"
            part = os.read(self._answers, 1 << 20)
            assert part, f"the browser ended: {self._log.read_text(errors='replace')}"
            self._received += part
        line, _, rest = self._received.partition(b"\0")
        self._received = bytearray(rest)
        return dict(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif event.get("method") == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.complaints.append(given["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.complaints.append(" ".join(str(each.get("value")) for each in given["args"]))

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {script}\n{self.complaints}"
            time.sleep(0.05)

    def show(self, url: str, *, width: int, height: int = 900, dark: bool = False, touch: bool = False) -> None:
        """Load a page in a window of a size, for people who like it light or dark."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.ask("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page, as PNG."""
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        file.write_bytes(base64.b64decode(picture))

    def close(self) -> None:
        """End it."""
        self._session = None
        with contextlib.suppress(OSError, AssertionError):
            self.ask("Browser.close")
        for fd in (self._orders, self._answers):
            os.close(fd)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends have numbers that bash can give to others: above those that it uses itself."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in ends)
    for fd in ends:
        os.close(fd)
    return high[0], high[1]
