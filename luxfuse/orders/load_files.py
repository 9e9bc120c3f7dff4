"""The files of a load: those that are being fetched, and small ones that are put by until there are enough of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.index.entries import Entry

TOGETHER_BYTES = 2 << 20
"""So many bytes of small files at most are fetched in one turn of a thread: a slow line brings them in time."""


@dataclass(slots=True)
class File:
    """A file whose pages are being fetched."""

    directory: int
    path: str
    entry: Entry
    obj: CachedObject
    missing_bytes: int
    again: bool
    flights: int = 1
    """Requests on their way, and one as long as not all have been made."""
    error: Exception | None = None
    waited_for: set[Flight] = field(default_factory=set)
    """Of parts of it, those that are on their way: its own and those of others."""


class Together:
    """Small files that are to be fetched in one turn of a thread."""

    def __init__(self) -> None:
        self._files: list[File] = []
        self._bytes = 0
        self.at_once = 1
        """How many files are enough."""

    def put_by(self, file: File) -> list[File]:
        """Add a file; returns those to be fetched now, if there are enough."""
        size = file.obj.size
        full = self.take() if self._bytes + size > TOGETHER_BYTES else []
        self._files.append(file)
        self._bytes += size
        if not full and (len(self._files) >= self.at_once or self._bytes >= TOGETHER_BYTES):
            return self.take()
        return full

    def take(self) -> list[File]:
        """Return all of them, to be fetched now."""
        files, self._files, self._bytes = self._files, [], 0
        return files
