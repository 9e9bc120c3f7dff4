"""A cache directory whose disk fails when told: full, read-only, unreadable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from luxfuse.tiers.directory import CacheDirectory, FileSystemSpace, Unreadable


class FailingDirectory(CacheDirectory):
    """Raises OSError ``fail_writing``, ``fail_reading`` or ``fail_looking`` (errno numbers, 0: works) where a disk would.

    ``dead``: nothing works.
    """

    def __init__(self, base: Path, source_id: str) -> None:
        self.dead = False
        self.fail_writing = 0
        self.fail_reading = 0
        self.fail_looking = 0
        super().__init__(base, source_id)

    def open(self, oid: bytes, *, create: bool = False) -> int:
        """Fail, or open."""
        code = errno.EIO if self.dead else self.fail_writing if create else self.fail_reading
        if code:
            raise OSError(code, os.strerror(code))
        return super().open(oid, create=create)

    def look(self) -> FileSystemSpace:
        """Fail, or look."""
        if code := errno.EIO if self.dead else self.fail_looking:
            raise Unreadable(code, os.strerror(code))
        return super().look()

    def remove(self, oid: bytes) -> None:
        """Fail, or remove."""
        if self.dead:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().remove(oid)

    def probe(self) -> bool:
        """Fail, or probe."""
        if self.fail_writing:
            raise OSError(self.fail_writing, os.strerror(self.fail_writing))
        return super().probe()
