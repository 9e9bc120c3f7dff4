"""Our last writes to cache files: so that those of others are noticed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

LAST_WRITES = 4096


@dataclass(frozen=True, slots=True)
class LastWrite:
    """Our last write to a file: the mtime that it left, and how often somebody else had written before it."""

    stamp: int
    strangers: int


class LastWrites:
    """The last writes to the files that were written to lately. One file's is only to be used under `writing`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: OrderedDict[bytes, LastWrite] = OrderedDict()

    def get(self, oid: bytes) -> LastWrite | None:
        """Return the last write to an object's file, if that is remembered."""
        with self._lock:
            return self._writes.get(oid)

    def put(self, oid: bytes, write: LastWrite) -> None:
        """Remember a write."""
        with self._lock:
            self._writes[oid] = write
            self._writes.move_to_end(oid)
            if len(self._writes) > LAST_WRITES:
                self._writes.popitem(last=False)

    def forget(self, oid: bytes) -> None:
        """The file is gone."""
        with self._lock:
            self._writes.pop(oid, None)
