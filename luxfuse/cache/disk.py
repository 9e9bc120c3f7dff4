"""The work of threads on cache files: store fetched pages, read them back checked, verify a whole file."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from luxfuse.core.ledger import BLOCK_BYTES, allocated_bytes
from luxfuse.core.spans import page_bytes, pages_of
from luxfuse.tiers.directory import CacheDirectory, read_exact, write_all
from luxfuse.tiers.last_writes import LastWrite
from luxfuse.types import PAGE_BYTES

checksum = xxhash.xxh3_64_intdigest


class OpenFile:
    """An open file on its way to its receiver, who takes it; without one it is closed with the last reference to this.

    Results of threads get lost in many ways: a deadline passes, a caller is cancelled, another one was faster.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def take(self) -> int:
        """Return the descriptor, for the caller to close."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close it, if nobody took it."""
        if self._fd >= 0:
            os.close(self.take())

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class Stored:
    """The outcome of storing a run: one checksum a page, the file's mtime after it and number; or why it failed.

    ``file``, if it was to stay open. ``found`` is the mtime before the write where we do not remember our last one to the
    file; else 0. ``strangers`` counts the times that somebody else was seen to have written to the file between two writes
    of ours.
    """

    checksums: tuple[int, ...]
    stamp: int = 0
    error: OSError | None = None
    file: OpenFile | None = None
    file_number: int = 0
    found: int = 0
    strangers: int = 0

    def close(self) -> None:
        """Close the file, unless it was taken."""
        if self.file is not None:
            self.file.close()


class FileGone(FileNotFoundError):
    """The file of an object that has pages is not there."""


def store_run(
    directory: CacheDirectory | None,
    oid: bytes,
    size: int,
    pages: range,
    data: memoryview,
    *,
    create: bool,
    keep_open: bool,
    sums: tuple[int, ...] = (),
) -> Stored:
    """Checksum the pages of a run and, if there is a directory, write them to the object's file of ``size`` bytes.

    ``sums``: their checksums, where they are known already.
    """
    sums = sums or tuple(checksum(data[i : i + PAGE_BYTES]) for i in range(0, len(data), PAGE_BYTES))
    if directory is None:
        return Stored(sums)
    if create and len(data) >= size:
        return _store_whole(directory, oid, data, sums, keep_open=keep_open)
    try:
        alone = len(data) >= size  # one run is the whole object: nobody else writes to its file
        with contextlib.nullcontext() if alone else directory.writing(oid):
            fd = directory.create(oid) if create else _open_again(directory, oid)
            empty = True
            found = strangers = 0
            try:
                st = os.fstat(fd)
                empty = st.st_size == 0
                last = directory.last_writes.get(oid)
                if last is not None and not (create and empty):
                    strangers = last.strangers + (last.stamp != st.st_mtime_ns)
                elif not create:
                    found = st.st_mtime_ns
                write_all(fd, data, pages.start * PAGE_BYTES)
                if st.st_size < size:
                    os.ftruncate(fd, size)
                st = os.fstat(fd)
                if not alone:
                    directory.last_writes.put(oid, LastWrite(st.st_mtime_ns, strangers))
            except BaseException:
                os.close(fd)
                if create and empty:  # made just now, so nothing else is in it
                    with contextlib.suppress(OSError):
                        directory.remove(oid)
                raise
    except OSError as exc:
        return Stored(sums, error=exc)
    if keep_open:
        return Stored(sums, st.st_mtime_ns, None, OpenFile(fd), st.st_ino, found, strangers)
    os.close(fd)
    return Stored(sums, st.st_mtime_ns, None, None, st.st_ino, found, strangers)


def _open_again(directory: CacheDirectory, oid: bytes) -> int:
    try:
        return directory.open(oid)
    except FileNotFoundError as exc:
        raise FileGone(exc.errno, exc.strerror) from exc


def _store_whole(
    directory: CacheDirectory, oid: bytes, data: memoryview, sums: tuple[int, ...], *, keep_open: bool
) -> Stored:
    """Write an object that fits into one run and has no pages yet: whatever was in its file, with few system calls.

    Each of them passes the interpreter lock on, which is what many small files cost most.
    """
    try:
        fd = directory.open(oid, create=True)
        directory.expect_no_more(oid)  # or the next page that is written would be taken for the first, and get a new file
        try:
            write_all(fd, data, 0)
            st = os.fstat(fd)
            if st.st_size != len(data):
                os.ftruncate(fd, len(data))
                st = os.fstat(fd)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                directory.remove(oid)
            raise
    except OSError as exc:
        return Stored(sums, error=exc)
    if keep_open:
        return Stored(sums, st.st_mtime_ns, None, OpenFile(fd), st.st_ino)
    os.close(fd)
    return Stored(sums, st.st_mtime_ns, None, None, st.st_ino)


def punch_pages(directory: CacheDirectory, oid: bytes, size: int, pages: Sequence[int]) -> Stored:
    """Take pages out of an object's file. Raises OSError with the pages, or some of them, still there."""
    with directory.writing(oid):
        fd = directory.open(oid)
        try:
            st = os.fstat(fd)
            last = directory.last_writes.get(oid)
            strangers = last.strangers + (last.stamp != st.st_mtime_ns) if last is not None else 0
            found = 0 if last is not None else st.st_mtime_ns
            for page in pages:
                directory.punch(fd, page * PAGE_BYTES, allocated_bytes(page_bytes(page, size)))
            st = os.fstat(fd)
            directory.last_writes.put(oid, LastWrite(st.st_mtime_ns, strangers))
        finally:
            os.close(fd)
    return Stored((), st.st_mtime_ns, None, None, st.st_ino, found, strangers)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of reading: the bytes, or the pages that are damaged. ``foreign``: somebody else wrote the file."""

    data: bytes
    verified: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    foreign: bool = False


def load(
    directory: CacheDirectory,
    oid: bytes,
    size: int,
    offset: int,
    length: int,
    checksums: Sequence[int],
    trusted: frozenset[int],
    stamp: int,
) -> Loaded:
    """Read ``length`` bytes at ``offset``; pages not ``trusted`` are read whole and checked first.

    ``checksums`` holds those of the pages touched, in order. ``stamp`` is the mtime that the file must have for trust
    to hold; 0 while it is being written, when it cannot be told. Raises OSError.
    """
    fd = directory.open(oid)
    try:
        foreign = stamp != 0 and os.fstat(fd).st_mtime_ns != stamp
        verified: list[int] = []
        damaged: list[int] = []
        checked: dict[int, bytes] = {}
        for page, expected in zip(pages_of(offset, length), checksums, strict=True):
            if page in trusted and not foreign:
                continue
            data = read_exact(fd, page_bytes(page, size), page * PAGE_BYTES)
            checked[page] = data
            good = len(data) == page_bytes(page, size) and checksum(data) == expected
            (verified if good else damaged).append(page)
        if damaged:
            return Loaded(b"", tuple(verified), tuple(damaged), foreign)
        if len(checked) == 1 and len(pages_of(offset, length)) == 1:
            ((page, data),) = checked.items()
            start = offset - page * PAGE_BYTES
            return Loaded(data[start : start + length], tuple(verified), (), foreign)
        data = read_exact(fd, length, offset)
        short = tuple(pages_of(offset, length)) if len(data) != length else ()
        return Loaded(data, tuple(verified), short, foreign)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open, verified cache file for the kernel; or the pages that turned out damaged."""

    fd: int
    stamp: int
    damaged: tuple[int, ...] = ()
    verified_bytes: int = 0
    resize: bool = False
    """The file has another size than the object: it must be set, once it is certain that the file is still the object's."""


def open_verified(directory: CacheDirectory, oid: bytes, size: int, checksums: Sequence[int], stamp: int) -> Opened:
    """Open a whole object's file; unless its mtime is ``stamp`` (0: never), check every page first. Raises OSError."""
    fd = directory.open(oid)
    try:
        st = os.fstat(fd)
        if stamp and st.st_mtime_ns == stamp and st.st_size == size:
            return Opened(fd, stamp)
        damaged = []
        for page, expected in enumerate(checksums):
            data = read_exact(fd, page_bytes(page, size), page * PAGE_BYTES)
            if len(data) != page_bytes(page, size) or checksum(data) != expected:
                damaged.append(page)
        if damaged:
            os.close(fd)
            return Opened(-1, st.st_mtime_ns, tuple(damaged), size)
        return Opened(fd, st.st_mtime_ns, (), size, st.st_size != size)
    except BaseException:
        os.close(fd)
        raise


@dataclass(frozen=True, slots=True)
class Examined:
    """The findings about a file: its mtime in ns, size and bytes on disk, and which of the pages are damaged."""

    stamp: int
    size: int
    allocated_bytes: int
    damaged: tuple[int, ...]


def examine(directory: CacheDirectory, oid: bytes, size: int, pages: Sequence[int], checksums: Sequence[int]) -> Examined:
    """Check pages of an object's file, as they are on the disk rather than in memory. Raises OSError."""
    fd = directory.open_unbuffered(oid)
    try:
        st = os.fstat(fd)
        damaged = []
        with mmap.mmap(-1, PAGE_BYTES) as memory, memoryview(memory) as view:
            for page, expected in zip(pages, checksums, strict=True):
                length = page_bytes(page, size)
                with view[: min(length, _read_block(fd, view, page))] as data:
                    if len(data) != length or checksum(data) != expected:
                        damaged.append(page)
        return Examined(st.st_mtime_ns, st.st_size, st.st_blocks * 512, tuple(damaged))
    finally:
        os.close(fd)


def _read_block(fd: int, view: memoryview, page: int) -> int:
    """Read a page into aligned memory; returns how much there was."""
    done = 0
    while done < PAGE_BYTES and done % BLOCK_BYTES == 0:  # else that was the end of the file
        with view[done:] as rest:
            part = os.preadv(fd, [rest], page * PAGE_BYTES + done)
        if not part:
            break
        done += part
    return done


class ArrivalError(OSError):
    """The target of a copy cannot be written."""


def copy_pages(
    source: CacheDirectory,
    target: CacheDirectory,
    oid: bytes,
    size: int,
    pages: Sequence[int],
    checksums: Sequence[int],
    create: bool,
) -> bool:
    """Copy pages of an object to the file in which it comes to ``target``, a new one if ``create``.

    False if a page is damaged. Raises OSError, `ArrivalError` if it is the target's.
    """
    fd = source.open(oid)
    try:
        with _blaming_target():
            out = target.open_arrival(oid, size if create else None)
        try:
            for page, expected in zip(pages, checksums, strict=True):
                data = read_exact(fd, page_bytes(page, size), page * PAGE_BYTES)
                if len(data) != page_bytes(page, size) or checksum(data) != expected:
                    return False
                with _blaming_target():
                    write_all(out, data, page * PAGE_BYTES)
        finally:
            os.close(out)
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def _blaming_target() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ArrivalError(exc.errno, exc.strerror) from exc
