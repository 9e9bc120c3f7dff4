"""Files with secrets: read only where no other user of the machine can."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from luxfuse.errors import ConfigError


def read_private(path: str | Path, where: str, most_bytes: int, hint: str = "") -> bytes:
    """Return the content of a file, at most one byte more than ``most_bytes``.

    ``where``: what names the file, for the one line of the `ConfigError` that says why it cannot be taken; ``hint``: what
    to do where there is none.
    """
    try:
        # Without blocking: a FIFO under this name must be refused, not waited for.
        fd = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ConfigError(f"{where}: {exc.strerror}{hint}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{where}: is no file")
        if status.st_mode & 0o077:
            raise ConfigError(f"{where}: others can get at it; run: chmod 600 {path}")
        return os.read(fd, most_bytes + 1)
    except OSError as exc:
        raise ConfigError(f"{where}: {exc.strerror}") from None
    finally:
        os.close(fd)
