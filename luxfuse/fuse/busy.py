"""Counts which files are opened and read most: here what Python answers, in the table of the lanes what they do."""

from __future__ import annotations

from typing import Any

from luxfuse.core.busiest import Busiest
from luxfuse.fuse.accesses import inode_at
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.vfs.paths import path_of, size_of

WINDOW_S = 300.0


class BusyFiles:
    """The busiest files of one mount, from `begin` on."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._volumes = operations.volumes
        self._counts = Busiest()
        self._turned_s = 0.0

    def begin(self, now_s: float) -> None:
        """Count from now on; ``now_s``: by any clock."""
        self._turned_s = now_s
        passthrough.take_busy()
        self._operations.observers.append(self._observe)

    def _observe(self, running: Running, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        if code:
            return
        if running.name == "open":
            self._counts.add(arguments[0], 1, 0)
        elif running.name == "read" and (inode := inode_at(self._volumes, arguments[0])) is not None:
            self._counts.add(inode, 0, len(result))

    def collect(self, now_s: float) -> None:
        """Take in what the lanes have counted; files that have left their table meanwhile are missed."""
        for inode, opens, read_bytes in passthrough.take_busy():
            self._counts.add(inode, opens, read_bytes)
        if now_s - self._turned_s >= WINDOW_S:
            self._turned_s = now_s
            self._counts.turn()

    def top(self, most: int) -> list[dict[str, object]]:
        """Return the busiest files: ``path``, ``opens``, ``read_bytes`` (by way of the daemon) and ``size``."""
        found: list[dict[str, object]] = []
        for inode, use in self._counts.top(2 * most):  # some have no name any more
            path = path_of(self._volumes, inode)
            if path is not None and len(found) < most:
                size = size_of(self._volumes, inode)
                found.append({"path": path, "opens": use.opens, "read_bytes": use.read_bytes, "size": size})
        return found
