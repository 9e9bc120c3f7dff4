"""opendir, readdir and their kin, entry by entry, which Python does not offer."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


class _Entry(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long
for _function in (_libc.readdir, _libc.telldir, _libc.rewinddir, _libc.closedir):
    _function.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class DirectoryStream:
    """An open directory, as a context manager. The C library reads it in parts of 32 KiB."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def __enter__(self) -> DirectoryStream:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def next(self) -> tuple[bytes, int] | None:
        """Return the next name and inode number, None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if entry:
            return entry.contents.d_name, entry.contents.d_ino
        if number := ctypes.get_errno():
            raise OSError(number, os.strerror(number))
        return None

    def rest(self) -> Iterator[tuple[bytes, int]]:
        """All entries from here on."""
        while (entry := self.next()) is not None:
            yield entry

    def tell(self) -> int:
        """telldir."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir."""
        _libc.rewinddir(self._stream)
