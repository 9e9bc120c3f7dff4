"""Tells of all requests as they are answered: `luxfuse trace`. While nobody asks, nothing is noted.

What Python answers is noted here, what lanes answer in their buffer (`lane/trace.c`). Neither waits for the watcher: what
does not fit any more is dropped, and counted. A watcher costs so much at most: `MOST_AT_ONCE` events each `INTERVAL_S`.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import trio

from luxfuse.errors import MountError
from luxfuse.fuse.accesses import SILENT, Access, Programs, access_of, note_size
from luxfuse.fuse.errnos import UNKNOWN, Running
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.noting import note
from luxfuse.fuse.operations import Operations
from luxfuse.vfs.paths import name_in, path_of, source_of

INTERVAL_S = 0.25
MOST_KEPT = 20_000
"""Events of Python that wait to be told."""
MOST_AT_ONCE = 4096
NOTED = 5
"""So often within that it is noted what requests wait for that have taken `SLOW_S` or more."""
SLOW_S = 0.02
_PIECE = 400
"""Events in a line: no more than the client takes, with the longest paths."""
_WHOSE = ("pid", "uid")
_OPERATIONS = {1: "lookup", 3: "getattr", 14: "open", 15: "read", 16: "write"}
"""Names of the kernel's numbers, of requests that lanes answer."""


class Tracing:
    """Traces of one mount: one at a time."""

    def __init__(self, operations: Operations, kernel: KernelSide) -> None:
        self._operations = operations
        self._kernel = kernel
        self._events: deque[Access] = deque()
        self._dropped = 0
        self._programs = Programs()
        self._on = False

    async def watch(self, path: str, pid: int | None) -> AsyncGenerator[dict[str, object], None]:
        """Yield ``events`` and how many were ``dropped``, until closed: those at and below ``path``, of a process if given.

        Raises `MountError` if there is a watcher already.
        """
        if self._on:
            raise MountError("this mount is being traced already; end that first")
        self._on = True
        try:
            passthrough.trace(True)
            self._operations.observers.append(self._observe)
            watcher = _Watcher(self, path, pid)
            while True:
                for _ in range(NOTED):
                    await trio.sleep(INTERVAL_S / NOTED)
                    self._collect()
                    note(self._operations, time.perf_counter() - SLOW_S, INTERVAL_S / NOTED)
                for _ in range(MOST_AT_ONCE // _PIECE):
                    more, told = watcher.next()
                    yield told
                    if not more:
                        break
        finally:
            passthrough.trace(False)
            if self._observe in self._operations.observers:
                self._operations.observers.remove(self._observe)
            self._events.clear()
            self._on = False

    def _observe(self, running: Running, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        if running.name in SILENT:
            return
        if len(self._events) >= MOST_KEPT:
            self._dropped += 1
            return
        in_kernel = self._kernel.passthrough
        self._add(access_of(self._operations, running, arguments, result, code, in_kernel=in_kernel))

    def _add(self, access: Access) -> None:
        access.process, access.program = self._programs.of(access.thread)  # it may have ended a moment later
        self._events.append(access)

    def _collect(self) -> None:
        """Take what lanes have noted, as long as there is room for it; what stays may be dropped by them."""
        for _ in range(MOST_AT_ONCE // NOTED // _PIECE + 1):
            if len(self._events) > MOST_KEPT - _PIECE:
                return
            answered, dropped = passthrough.take_traced()
            self._dropped += dropped
            for each in answered:
                self._add(self._of_lane(each))
            if len(answered) < _PIECE:
                return

    def take(self) -> tuple[list[Access], int]:
        """Return the next events, and how many were dropped since the last call."""
        found = [self._events.popleft() for _ in range(min(_PIECE, len(self._events)))]
        dropped, self._dropped = self._dropped, 0
        return found, dropped

    def _of_lane(self, each: tuple[int, int, int, int, int, int, int, int, bool, bytes | None]) -> Access:
        began_ns, took_ns, inode, offset, size, thread, user, number, in_kernel, missing = each
        volumes, name = self._operations.volumes, _OPERATIONS.get(number, str(number))
        path = path_of(volumes, inode) if missing is None else name_in(volumes, inode, missing)
        found = Access(name, path, thread, user, began_ns / 1e9, took_ns / 1e9, offset=offset, bytes=size)
        found.way = "passthrough" if in_kernel else "dataplane"
        if missing is not None:
            found.code = errno.ENOENT
        elif name == "open":
            note_size(found, volumes, inode)
        elif name == "read" and (source := source_of(volumes, inode)) is not None:
            found.sources = {source: size}
        return found


class _Watcher:
    def __init__(self, tracing: Tracing, path: str, pid: int | None) -> None:
        self._tracing = tracing
        self._path = path
        self._pid = pid
        self._wall_s = time.time() - time.perf_counter()

    def next(self) -> tuple[bool, dict[str, object]]:
        """Return whether there may be more, and what to tell now."""
        found, dropped = self._tracing.take()
        wanted = [each for each in found if each.is_below(self._path) and self._pid in (None, each.process)]
        events = [event(each, self._wall_s) for each in wanted]
        return len(found) == _PIECE, {"events": events, "dropped": dropped}


def event(access: Access, wall_s: float) -> dict[str, object]:
    """Return an access as JSON has it: ``time`` is when it began, seconds of the wall clock; what is empty is left out.

    None: that is not known, of ``path``, ``pid`` and ``uid``.
    """
    told = {
        "time": round(access.began_s + wall_s, 6), "op": access.operation, "path": access.path, "to": access.to,
        "pid": None if access.process == UNKNOWN else access.process, "program": access.program,
        "uid": None if access.user == UNKNOWN else access.user,
        "took_s": round(access.took_s, 7), "queued_s": round(access.queued_s, 7),
        "offset": access.offset, "bytes": access.bytes, "sources": access.sources, "way": access.way,
        "waited": access.waited, "error": access.error,
    }  # fmt: skip
    return {name: value for name, value in told.items() if value or name == "path" or (value is None and name in _WHOSE)}
