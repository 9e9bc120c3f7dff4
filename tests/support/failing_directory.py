"""A cache directory whose disk fails when told: full, read-only, unreadable."""

from __future__ import annotations

import os
from pathlib import Path

from luxfuse.tiers.directory import CacheDirectory


class FailingDirectory(CacheDirectory):
    """Raises OSError ``writing`` or ``reading`` (errno numbers, 0: works) where a real disk would."""

    def __init__(self, base: Path, source_id: str) -> None:
        self.writing = 0
        self.reading = 0
        super().__init__(base, source_id)

    def open(self, oid: bytes, *, create: bool = False) -> int:
        """Fail, or open."""
        code = self.writing if create else self.reading
        if code:
            raise OSError(code, os.strerror(code))
        return super().open(oid, create=create)

    def probe(self) -> bool:
        """Fail, or probe."""
        if self.writing:
            raise OSError(self.writing, os.strerror(self.writing))
        return super().probe()
