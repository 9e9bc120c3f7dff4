"""A cache directory whose disk fails when told: full, read-only, unreadable."""

from __future__ import annotations

import os
from pathlib import Path

from luxfuse.tiers.directory import CacheDirectory


class FailingDirectory(CacheDirectory):
    """Raises OSError ``fail_writing`` or ``fail_reading`` (errno numbers, 0: works) where a real disk would."""

    def __init__(self, base: Path, source_id: str) -> None:
        self.fail_writing = 0
        self.fail_reading = 0
        super().__init__(base, source_id)

    def open(self, oid: bytes, *, create: bool = False) -> int:
        """Fail, or open."""
        code = self.fail_writing if create else self.fail_reading
        if code:
            raise OSError(code, os.strerror(code))
        return super().open(oid, create=create)

    def probe(self) -> bool:
        """Fail, or probe."""
        if self.fail_writing:
            raise OSError(self.fail_writing, os.strerror(self.fail_writing))
        return super().probe()
