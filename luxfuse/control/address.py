"""Unix socket addresses of any length: the kernel allows 107 bytes, a directory descriptor has no such limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_address(socket_path: str | Path) -> Iterator[str]:
    """Yield a short address of the same socket, valid inside the block. Raises OSError if its directory is missing."""
    path = Path(socket_path)
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
