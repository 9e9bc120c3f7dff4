"""SFTP by paramiko: many blocks of a file on their way at once, and writes that replace a file in one step."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from luxfuse.errors import NotFound, StoreUnavailable
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import OnDescribed
from luxfuse.understore.failures import checked, require_version
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.generic.infos import version_of
from luxfuse.understore.generic.writes import beside, listed, put_in_place, rejected
from luxfuse.understore.properties import Properties
from luxfuse.understore.reach import READ_TIMEOUT_S

BLOCKS_AT_ONCE = 64
"""Requests of 32 KiB on their way for one read; OpenSSH queues no more."""

COPY_BYTES = 1 << 20
"""Paramiko's time for one read grows with the square of its size."""

SECOND_NS = 10**9


class SftpDriver(FsspecDriver):
    """An `UnderStore` on SFTP. Versions are size and modification time, which SFTP tells in seconds."""

    def _prepare(self, filesystem: Any) -> None:
        channel = filesystem.ftp.get_channel()
        channel.settimeout(min(READ_TIMEOUT_S, self._timeout_s))
        # Else each request waits for the acknowledgement of the one before.
        channel.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _pages(self, prefix: str, path: str, entries: list[dict[str, Any]]) -> Iterator[ListPage]:
        yield from super()._pages(prefix, path, listed(entries))

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        path = self._file_path(key, what)

        def read(filesystem: Any) -> Buffer:
            with filesystem.ftp.open(path, "rb") as file:
                require_version(_describe(key, file.stat(), what).version, version, what)
                data = b"".join(file.readv(_pieces(start, end), BLOCKS_AT_ONCE))
                return checked(data, end - start, _describe(key, file.stat(), what).version, version, what)

        return self._ask(what, read)

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"PUT {key!r}"
        if key.endswith("/"):
            return self._make_directory(key, what)

        def fill(_filesystem: Any, file: Any) -> int:
            for start, size in _pieces(0, len(data)):
                file.write(bytes(data[start : start + size]))
            return len(data)

        return self._install(key, what, fill)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        def fill(_filesystem: Any, file: Any) -> int:
            with Path(path).open("rb") as source:
                return _copy(source, file)

        return self._install(key, f"PUT {key!r}", fill)

    def _copy_object(self, found: ObjectInfo, target: str, what: str) -> ObjectInfo:
        source = found.key
        from_path = self._target(source, what)

        def fill(filesystem: Any, file: Any) -> int:  # SFTP has no copy: the bytes come here and go back
            with filesystem.ftp.open(from_path, "rb") as reader:
                reader.prefetch(found.size, BLOCKS_AT_ONCE)
                size = _copy(reader, file)
                require_version(_describe(source, reader.stat(), what).version, found.version, what)
                return size

        return self._install(target, what, fill)

    def _install(self, key: str, what: str, fill: Callable[[Any, Any], int]) -> ObjectInfo:
        """Write a file beside ``key`` with ``fill(file system, file)`` and rename it over the present one."""
        path = self._target(key, what)
        temporary = beside(path)

        def install(filesystem: Any) -> ObjectInfo:
            ftp = filesystem.ftp
            old = _stat(ftp, path)
            if old is not None and stat.S_ISDIR(old.st_mode or 0):
                raise rejected(f"{what}: a directory is in the way of a file", errno.EISDIR)
            try:
                with ftp.open(temporary, "wx") as file:
                    file.set_pipelined(True)
                    size = fill(filesystem, file)
                new = ftp.stat(temporary)
                if new.st_size != size:  # paramiko's close keeps quiet about errors
                    raise StoreUnavailable(f"{what}: {new.st_size} bytes of {size} arrived")
                info = self._settle(ftp, key, temporary, old, new)
                _rename(ftp, temporary, path)
            except Exception:
                _remove_quietly(ftp, temporary)
                raise
            return info

        return self._write(what, path, install)

    def _settle(self, ftp: Any, key: str, temporary: str, old: Any, new: Any) -> ObjectInfo:
        """Give the new file the mode of the old one, and a version that differs from its."""
        mtime_s = new.st_mtime
        if old is not None:
            if stat.S_IMODE(old.st_mode) != stat.S_IMODE(new.st_mode):
                ftp.chmod(temporary, stat.S_IMODE(old.st_mode))
            if (old.st_size, old.st_mtime) == (new.st_size, mtime_s):
                mtime_s += 1
                ftp.utime(temporary, (mtime_s, mtime_s))
        return ObjectInfo(key, new.st_size, version_of(new.st_size, mtime_s * SECOND_NS), mtime_s * SECOND_NS)


def _describe(key: str, status: Any, what: str) -> ObjectInfo:
    if not stat.S_ISREG(status.st_mode or 0):
        raise NotFound(f"{what}: is not a file")
    mtime_ns = status.st_mtime * SECOND_NS
    return ObjectInfo(key, status.st_size, version_of(status.st_size, mtime_ns), mtime_ns)


def _stat(ftp: Any, path: str) -> Any:
    try:
        return ftp.stat(path)
    except FileNotFoundError:
        return None


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    """Return (start, size) of the reads that make up a range."""
    return [(at, min(COPY_BYTES, end - at)) for at in range(start, end, COPY_BYTES)]


def _copy(source: Any, target: Any) -> int:
    """Copy a file to its end; returns its bytes."""
    size = 0
    while data := source.read(COPY_BYTES):
        target.write(data)
        size += len(data)
    return size


def _rename(ftp: Any, old: str, new: str) -> None:
    """Rename over a present file; in steps where the server does not know OpenSSH's way, or says only that it failed."""
    try:
        ftp.posix_rename(old, new)
    except OSError as exc:
        if exc.errno is not None or isinstance(exc, TimeoutError) or ftp.get_channel().closed:
            raise
        if _stat(ftp, new) is None:
            ftp.rename(old, new)
            return
        _remove_quietly(ftp, put_in_place(ftp.rename, old, new))


def _remove_quietly(ftp: Any, path: str) -> None:
    try:
        if not ftp.get_channel().closed:
            ftp.remove(path)
    except (OSError, EOFError):
        pass  # the caller has to know the first error
