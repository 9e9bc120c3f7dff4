"""What the cause of a wrong answer can be found from: kept when the first one is told.

In the directory are then the daemon's log and its status, the journal and its copy, what is staged, what the bucket has,
what was asked of the mount (`luxfuse trace`), and, from the end of the storm on, all calls of each process with their
times, and when what was broken. ``about.json`` says what was wrong, and how the clocks differ: processes tell the
monotonic one, traces and logs that of the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from luxfuse.control.client import ControlClient
from luxfuse.errors import LuxError
from tests.storm.report import StormMount
from tests.storm.verdict import Window

TRACED = 100_000
"""The last requests that are kept."""


class Evidence:
    """Of one storm, in the directory ``kept``."""

    def __init__(self, base: Path, mount: StormMount, bucket: Path, ended: threading.Event) -> None:
        self.kept = base / "found"
        self._base, self._mount, self._bucket, self._ended = base, mount, bucket, ended
        self._traced: deque[str] = deque(maxlen=TRACED)

    def trace(self) -> None:
        """Note what is asked of each daemon."""
        while not self._ended.is_set():
            with suppress(OSError, LuxError, ValueError, KeyError, StopIteration):
                for batch in ControlClient(self._mount.directory() / "control.sock", deadline_s=10).trace("", None):
                    self._traced.extend(map(json.dumps, batch["events"]))
                    if self._ended.is_set():
                        return
            self._ended.wait(0.05)

    def take(self, wrong: Sequence[str]) -> None:
        """Keep how everything is now, once."""
        if self.kept.exists():
            return
        self.kept.mkdir()
        clocks = {"machine": time.time(), "monotonic": time.monotonic()}
        self._write("about.json", json.dumps({"wrong": list(wrong), **clocks}, indent=1))
        for name, source in (("journal", self._mount.state / "journal"), ("mounts", self._mount.state / "mounts")):
            _copy(source.rglob("*"), source, self.kept / name)
        _copy(self._mount.cache.glob("*/journal.copy*"), self._mount.cache, self.kept / "cache")
        self._write("staged", "\n".join(_described(self._mount.cache.glob("*/staging/*"), self._mount.cache)))
        self._write("bucket", "\n".join(_described(self._bucket.rglob("*"), self._bucket)))
        with suppress(OSError, LuxError, ValueError, StopIteration):
            self._write("status.json", json.dumps(self._mount.status(), indent=1))
        self._write("trace", "\n".join(tuple(self._traced)))

    def complete(self, windows: Iterable[Window]) -> None:
        """Add what there is at the end, if something was wrong."""
        if not self.kept.exists():
            return
        self._write("windows.json", json.dumps([dataclasses.asdict(window) for window in windows], indent=1))
        self._write("daemon.log", self._mount.log())
        for worker in self._base.glob("worker*"):
            _copy(worker.iterdir(), self._base, self.kept)

    def _write(self, name: str, text: str) -> None:
        (self.kept / name).write_text(text)


def _copy(files: Iterable[Path], root: Path, target: Path) -> None:
    for path in files:
        with suppress(OSError):  # it may go meanwhile
            if path.is_file():
                to = target / path.relative_to(root)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)


def _described(files: Iterable[Path], root: Path) -> list[str]:
    found = []
    for path in sorted(files):
        with suppress(OSError):
            if path.is_file():
                st, digest = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
                found.append(f"{st.st_mtime:.6f} {st.st_size:9} {digest[:16]} {path.relative_to(root)}")
    return found
