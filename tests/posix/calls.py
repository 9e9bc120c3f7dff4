"""System calls that Python lacks, and short forms of those that most tests make."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE_RANGE, FALLOC_ZERO_RANGE = 1, 2, 8, 16
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
KIB, MIB = 1 << 10, 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_Path = str | bytes | os.PathLike[str]


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which no two blocks of 4 KiB are the same."""
    words = (size + 7) // 8
    return struct.pack(f">{words}Q", *range(seed << 40, (seed << 40) + words))[:size]


def make(path: _Path, data: bytes = b"", mode: int = 0o644) -> Any:
    """Create a file of this content and exactly this mode; returns the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, data)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return path


def write_all(fd: int, data: bytes) -> None:
    """Write at the file's position, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read(path: _Path) -> bytes:
    """Return a file's content through a new descriptor."""
    return Path(os.fsdecode(path)).read_bytes()


def read_fd(fd: int) -> bytes:
    """Return the content of an open file, wherever its position is."""
    parts: list[bytes] = []
    offset = 0
    while part := os.pread(fd, MIB, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


@contextlib.contextmanager
def opened(path: _Path, flags: int = os.O_RDONLY, mode: int = 0o644, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor for a block."""
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # a test may close it itself
            os.close(fd)


@contextlib.contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """The block must raise OSError with one of these errnos."""
    wanted = " or ".join(errno.errorcode[number] for number in numbers)
    try:
        yield
    except OSError as exc:
        if exc.errno not in numbers:
            pytest.fail(f"{errno.errorcode.get(exc.errno or 0, exc.errno)} instead of {wanted}: {exc}")
        return
    pytest.fail(f"no error instead of {wanted}")


def unless_refused(call: Callable[[], Any], *numbers: int) -> Any:
    """Return what the call returns, None if it is refused with one of these errnos."""
    try:
        return call()
    except OSError as exc:
        if exc.errno not in numbers:
            raise
    return None


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(source: _Path, target: _Path, flags: int) -> None:
    """renameat2(2) with absolute paths."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); unlike `os.posix_fallocate` with its modes, and without the fallback that writes zeros."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _checked(_libc.syncfs(fd))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """sync_file_range(2)."""
    _checked(_libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(flags)))


def link_fd(fd: int, target: _Path) -> None:
    """Give a name to an open file, as programs do with O_TMPFILE."""
    source = f"/proc/self/fd/{fd}".encode()
    _checked(_libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW))


def utimensat(path: _Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds), where nanoseconds may be UTIME_NOW and UTIME_OMIT."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


COARSE = 5
"""CLOCK_REALTIME_COARSE of linux/time.h: the clock of time stamps, which moves in steps of some milliseconds."""


def tick() -> None:
    """Wait until a time stamp of the file system would differ."""
    for _ in range(2):
        before_ns = now_ns()
        while now_ns() == before_ns:
            time.sleep(0.002)


def now_ns() -> int:
    """A time that no stamp of a change from now on is before."""
    return time.clock_gettime_ns(COARSE)


def exists(path: _Path) -> bool:
    """Whether lstat finds it; unlike `os.path.lexists`, errors other than ENOENT are raised."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def names(path: _Path) -> list[str]:
    """The names that a new listing has, sorted; none may come twice."""
    found = os.listdir(os.fsdecode(path))
    assert len(found) == len(set(found)), f"names came twice: {sorted(found)}"
    return sorted(found)
