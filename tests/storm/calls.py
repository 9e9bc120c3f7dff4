"""Calls of one process of a storm on a mount, and what it tells of them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOW_S = 1.0
"""Calls that take longer are events."""


@dataclass(frozen=True)
class Settings:
    """``shared``: sizes of the files that nobody changes, by name."""

    mount: str
    directory: str
    worker: int
    workers: int
    seed: int
    keeper: bool
    shared: dict[str, int]


class Failed(Exception):
    """A call failed; it is an event already."""

    def __init__(self, error: int) -> None:
        super().__init__(os.strerror(error))
        self.error = error


class Calls:
    """Makes calls on a mount, and tells of those that fail or take long."""

    def __init__(self, settings: Settings) -> None:
        base = Path(settings.directory)
        self._mount = settings.mount
        self._worker = settings.worker
        self._events = (base / "events").open("a", buffering=1)
        self._calls = (base / "calls").open("a")
        self._now = os.open(base / "now", os.O_CREAT | os.O_RDWR)
        self.made: Counter[str] = Counter()
        self.longest: dict[str, float] = {}
        self.root = -1
        self.generation = 0
        """How many mounts there were."""

    def event(self, **what: Any) -> None:
        """Write an event, and all calls until now."""
        self._events.write(json.dumps({"worker": self._worker, **what}) + "\n")
        self._calls.flush()

    def wrong(self, said: str | None) -> None:
        """Tell that something is wrong, if it is."""
        if said is not None:
            self.event(wrong=said, end=time.monotonic())

    def __call__(self, verb: str, name: str, call: Callable[..., Any], *arguments: Any, fine: tuple[int, ...] = (),
                 **named: Any) -> Any:  # fmt: skip
        """Make a call. An error of ``fine`` is returned as an OSError; raises `Failed` for others."""
        begin = time.monotonic()
        os.pwrite(self._now, f"{begin:.6f} {verb} {name}".ljust(120).encode(), 0)
        error = 0
        try:
            return call(*arguments, **named)
        except OSError as exc:
            error = exc.errno or errno.EIO
            if error in fine:
                error = 0
                return exc
            raise Failed(error) from exc
        finally:
            end = time.monotonic()
            os.pwrite(self._now, b" " * 120, 0)
            self.made[verb] += 1
            self.longest[verb] = max(self.longest.get(verb, 0.0), end - begin)
            self._calls.write(f"{begin:.6f} {end - begin:.6f} {verb} {name} {errno.errorcode.get(error, error)}\n")
            if error or end - begin > SLOW_S:
                self.event(verb=verb, name=name, error=error, begin=begin, end=end)

    def at(self, verb: str, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call about a name below the root."""
        return self(verb, name, call, name, *arguments, dir_fd=self.root, **named)

    def connect(self, give_up_s: float = 120) -> None:
        """Wait until there is a mount, and use it."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
        give_up_at = time.monotonic() + give_up_s
        while time.monotonic() < give_up_at:
            try:
                root = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY)
                here, above = os.fstat(root), os.stat(Path(self._mount).parent)
                if here.st_dev != above.st_dev:
                    os.listdir(root)
                    self.root = root
                    self.generation += 1
                    return
                os.close(root)
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"no mount within {give_up_s:g} s")
