"""Turns: one call at a time for each volume, mount or path."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import grpc

from luxfuse.csi.refusals import Refused

PATIENCE_S = 10.0
"""How long a call waits for another one of the same volume; a caller that is sent away comes again."""


class Turns:
    """Locks by name, each there only while somebody has it or waits for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def of(self, name: str, give_up_at: float) -> Iterator[None]:
        """Have the turn for a block. Raises `Refused`, ABORTED, if it does not come soon; ``give_up_at``: monotonic."""
        with self._mutex:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            if not lock.acquire(timeout=max(0.0, min(PATIENCE_S, give_up_at - time.monotonic()))):
                raise Refused(grpc.StatusCode.ABORTED, "another call for the same volume is still at work; call again")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._mutex:
                lock, users = self._locks[name]
                if users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = lock, users - 1
