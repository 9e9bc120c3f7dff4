"""Files that outlive a power cut: writing small ones, and bringing new names to the disk; copies. All of it blocks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW = ".new"
_COPY_BYTES = 64 << 20


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_all(source: int, target: int) -> None:
    """Copy a whole file, from its beginning, to where another one stands. Raises OSError."""
    at = 0
    while done := os.sendfile(target, source, at, _COPY_BYTES):
        at += done


def copy_with_times(source: int, target: int) -> None:
    """As `copy_all`, and give the copy the times of the source. Raises OSError."""
    status = os.fstat(source)
    copy_all(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file, for us alone, and bring its content to the disk. Raises OSError, also if there is such a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(fd)


@contextmanager
def on_behalf_of(path: Path) -> Iterator[None]:
    """Have each OSError name ``path``, the file that is wanted, and not the one that is written until it is whole."""
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole or, whatever happens meanwhile, leave the old one. Raises OSError, which names it."""
    fresh = path.with_name(f".{path.name}{_NEW}")
    with on_behalf_of(path):
        fresh.unlink(missing_ok=True)  # of a run that was killed
        write_synced(fresh, data)
        fresh.replace(path)


def is_unfinished(name: str) -> bool:
    """Whether a file of that name is what `replace_file` leaves where the process is killed: of no use to anybody."""
    return name.startswith(".") and name.endswith(_NEW)


def make_private(path: Path) -> None:
    """Make a directory for us alone; one that is there already is closed to others if it is ours. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = path.stat()
    if st.st_uid == os.geteuid() and stat.S_IMODE(st.st_mode) != 0o700:
        path.chmod(0o700)
