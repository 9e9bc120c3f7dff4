"""How far something is that takes long: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from luxfuse.cli.errors import say
from luxfuse.core.units import format_age, format_count, format_size

LINE_INTERVAL_S = 5.0
BAR_AFTER_S = 0.5
"""A shorter wait shows no bar."""
WINDOW_S = 20.0
"""The rate is that of the last so many seconds."""
REQUEST_BYTES = 64 << 10
"""A file or delete takes about as long as so many bytes more."""


class Meter:
    """Rate and time left, from what the daemon says. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, int]] = deque()
        self._total = 0.0
        self._done = 0.0
        self.text = ""

    def feed(self, now_s: float, step: Mapping[str, Any]) -> None:
        """Take in a line of progress."""
        items = step["files"] - step["open_files"] + step["deletes"] + step["renames"]
        left = step["bytes"] + items * REQUEST_BYTES
        if not self._samples:
            self._total, self._first_bytes = float(left), step["put_bytes"]
        self._total = max(self._total, left)
        sent = min(step["put_bytes"] - self._first_bytes, self._total - REQUEST_BYTES)
        self._done = max(self._done, self._total - left, sent) if left else self._total
        self._samples.append((now_s, self._done, step["put_bytes"]))
        while now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        self.text = self._describe(step)

    @property
    def fraction(self) -> float:
        """How much is done, between 0 and 1."""
        return min(1.0, self._done / self._total) if self._total else 1.0

    @property
    def rate_bytes_s(self) -> float:
        """Bytes sent to the store a second, lately."""
        (first_s, _, first), (last_s, _, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present pace; None if nothing moves."""
        (first_s, first, _), (last_s, last, _) = self._samples[0], self._samples[-1]
        return (self._total - last) * (last_s - first_s) / (last - first) if last > first else None

    def _describe(self, step: Mapping[str, Any]) -> str:
        parts = [left_text(step)]
        if step["error"] is None or step["stalled_s"] < LINE_INTERVAL_S:
            parts.append(f"{format_size(self.rate_bytes_s)}/s")
            if self.left_s is not None:
                parts.append(f"about {format_age(self.left_s)} left")
        if step["error"] is not None:
            parts.append(f"waiting for the under-store: {step['error']}")
        return ", ".join(parts)


def left_text(step: Mapping[str, Any]) -> str:
    """Return what is left, in words."""
    parts = [f"{format_count(step['files'], 'file')} ({format_size(step['bytes'])})"]
    if step["deletes"]:
        parts.append(format_count(step["deletes"], "delete"))
    if step["renames"]:
        parts.append(format_count(step["renames"], "unfinished rename"))
    return " and ".join(parts)


class LoadMeter:
    """Rate and time left of a load. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()
        self._step: Mapping[str, Any] = {}
        self.text = ""

    def feed(self, now_s: float, step: Mapping[str, Any]) -> None:
        """Take in a line of progress."""
        self._step = step
        self._samples.append((now_s, step["loaded_bytes"], step["loaded_files"]))
        while now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        self.text = self._describe()

    @property
    def _left(self) -> tuple[int, int]:
        """Files and bytes still to come, of those found so far."""
        s = self._step
        files = s["files"] - s["loaded_files"] - s["present_files"] - s["left_out_files"] - s["failed_files"]
        return files, max(0, s["bytes"] - s["loaded_bytes"] - s["present_bytes"] - s["left_out_bytes"])

    @property
    def fraction(self) -> float:
        """How much is done, between 0 and 1, of what was found so far."""
        files, size = self._left
        total = self._step["bytes"] + self._step["files"] * REQUEST_BYTES
        return 1 - (size + files * REQUEST_BYTES) / total if total else 1.0

    @property
    def rates(self) -> tuple[float, float]:
        """Files and bytes fetched a second, lately."""
        (first_s, first_bytes, first_files), (last_s, last_bytes, last_files) = self._samples[0], self._samples[-1]
        seconds = last_s - first_s
        return ((last_files - first_files) / seconds, (last_bytes - first_bytes) / seconds) if seconds > 0 else (0.0, 0.0)

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present pace; None if nothing moves, or it is not known yet how much there is."""
        files, size = self._left
        files_s, bytes_s = self.rates
        pace = bytes_s + files_s * REQUEST_BYTES
        return (size + files * REQUEST_BYTES) / pace if pace > 0 and not self._step["walking"] else None

    def _describe(self) -> str:
        s = self._step
        done = s["loaded_files"] + s["present_files"]
        total = f"at least {s['files']}" if s["walking"] else str(s["files"])
        size = s["loaded_bytes"] + s["present_bytes"]
        parts = [f"{done} of {total} files ({format_size(size)} of {format_size(s['bytes'])})"]
        if s["failed_files"]:
            parts.append(f"{s['failed_files']} failed")
        files_s, bytes_s = self.rates
        if files_s or bytes_s:
            parts.append(f"{format_size(bytes_s)}/s, {files_s:.0f} files/s")
        if self.left_s is not None:
            parts.append(f"about {format_age(self.left_s)} left")
        return ", ".join(parts)


class CheckMeter:
    """Time left of a check. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._step: Mapping[str, Any] = {}
        self.text = ""

    def feed(self, now_s: float, step: Mapping[str, Any]) -> None:
        """Take in a line of progress."""
        self._step = step
        self._samples.append((now_s, step["bytes"] + step["files"] * REQUEST_BYTES))
        while now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        parts = [
            f"{step['files']} of {format_count(step['total_files'], 'file')} checked "
            f"({format_size(step['bytes'])} of {format_size(step['total_bytes'])})"
        ]
        if step["problems"]:
            parts.append(format_count(step["problems"], "problem"))
        if self.left_s:
            parts.append(f"about {format_age(self.left_s)} left")
        self.text = ", ".join(parts)

    @property
    def _total(self) -> int:
        return int(self._step["total_bytes"] + self._step["total_files"] * REQUEST_BYTES)

    @property
    def fraction(self) -> float:
        """How much is done, between 0 and 1."""
        return self._samples[-1][1] / self._total if self._total else 1.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present pace; None if nothing moves."""
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (self._total - last) * (last_s - first_s) / (last - first) if last > first else None


class Gauge(Protocol):
    """The text of a `Display`."""

    text: str

    def feed(self, now_s: float, step: Mapping[str, Any]) -> None:
        """Take in a line of progress."""

    @property
    def fraction(self) -> float:
        """How much is done, between 0 and 1."""


class Display:
    """Shows progress on stderr for the length of a block. ``title`` says of what, where there is no terminal."""

    def __init__(self, title: str, meter: Gauge | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._clock = clock
        self._meter = meter or Meter()
        self._began_s = self._said_s = clock()
        self._bar: Any = None
        self._task: Any = None

    def show(self, step: Mapping[str, Any]) -> None:
        """Show a line of progress."""
        now_s = self._clock()
        self._meter.feed(now_s, step)
        if sys.stderr.isatty():
            if self._bar is None and now_s - self._began_s > BAR_AFTER_S and not step.get("done"):
                self._begin_bar()
            if self._bar is not None:
                self._bar.update(self._task, completed=self._meter.fraction, text=self._meter.text)
        elif now_s - self._said_s >= LINE_INTERVAL_S:
            self._said_s = now_s
            say(f"{self._title}: {self._meter.text}")

    def _begin_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, text="")
        self._bar.start()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
