"""The bytes of a file while it is written.

They lie in a *staging file*. It may be a copy with holes: pages that it lacks come from the *base*, the object that the
file was when it was opened, as far as that still reaches (`base_bytes`). A page is in the staging file if it was filled
or written there, or lies beyond `base_bytes`. The kernel may write to a complete staging file on its own (passthrough);
so whether the content has changed is told by a `Stamp` of the file, not by the writes that we see.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from luxfuse import origins
from luxfuse.cache import descriptors
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.spans import pages_of
from luxfuse.errors import NotFound, VersionChanged
from luxfuse.tiers.directory import read_exact, write_all
from luxfuse.types import PAGE_BYTES, Buffer
from luxfuse.workers import Threads

Key = tuple[int, int, int]


class Stamp(NamedTuple):
    """The attributes that change whenever a file is written to: its times in nanoseconds, and its size in bytes.

    ``uncertain``: the last change was so recent that another one may leave the same times.
    """

    mtime_ns: int
    ctime_ns: int
    size: int
    uncertain: bool = False

    def differs(self, before: Stamp) -> bool:
        """Whether the file may have changed since the stamp ``before`` was taken."""
        return before.uncertain or self[:3] != before[:3]


def _has_coarse_times(release: str) -> bool:
    """Whether file times advance with the timer tick only: before Linux 6.13 (multigrain timestamps)."""
    major, minor = (int(re.match(r"\d*", part)[0] or 0) for part in (*release.split("."), "0")[:2])  # type: ignore[index]
    return (major, minor) < (6, 13)


TICK_NS = 20_000_000 if _has_coarse_times(os.uname().release) else 0


def stamp_of(fd: int) -> Stamp:
    """Return the stamp of an open file; no I/O."""
    return stamp_from(os.fstat(fd))


def stamp_from(st: os.stat_result) -> Stamp:
    """Return the stamp of a file of which this is known now."""
    uncertain = TICK_NS > 0 and time.time_ns() - max(st.st_mtime_ns, st.st_ctime_ns) < TICK_NS
    return Stamp(st.st_mtime_ns, st.st_ctime_ns, st.st_size, uncertain)


def _hole_after(fd: int, start: int) -> int:
    """Return where the first hole is that does not end before ``start``; nobody uses the position of the descriptor."""
    try:
        return os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # the file ends before that
            return 0
        raise


class StagedBytes:
    """A staging file and its base. Owns ``fd`` and one use of ``base``."""

    def __init__(
        self,
        fd: int,
        path: str | Path,
        *,
        cache: PageCache,
        threads: Threads,
        base: CachedObject | None = None,
        base_bytes: int = 0,
        present: set[int] | None = None,
    ) -> None:
        """``path``: where it stays until `close`. ``present``: pages below ``base_bytes`` that it has already."""
        self._fd = fd
        self.path = os.fspath(path)
        self._descriptors = descriptors.of_this_process()
        self._parked: os.stat_result | None = None
        """Its attributes when its descriptor was closed for a while."""
        self.base = base
        self.base_bytes = base_bytes if base is not None else 0
        self._cache = cache
        self._threads = threads
        self._present = present or set()
        self._changing = trio.Lock()
        self._users = 0
        self._closing = False
        self._filled: tuple[Key | None, set[Key]] = (None, set())
        """The stamp after the last page was filled, without its certainty, and those since when only that happened."""
        self._sealed = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        self._replaced: trio.Event | None = None
        """Set while the store may already have another version of the base, of which we have not heard."""
        self._descriptors.used(self)

    @property
    def fd(self) -> int:
        """A descriptor of the file: until the next wait, or as long as it is `in_use`. Raises OSError."""
        if self._fd < 0:
            if self._closing:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
            self._fd = os.open(self.path, (os.O_RDONLY if self._sealed else os.O_RDWR) | os.O_CLOEXEC)
            self._parked = None
        self._descriptors.used(self)
        return self._fd

    def park(self) -> bool:
        """Close the descriptor for a while, if nobody uses it; returns whether it is closed. For `Descriptors`."""
        if self._fd >= 0 and self._users == 0:
            self._parked = os.fstat(self._fd)
            os.close(self._fd)
            self._fd = -1
        return self._fd < 0

    def stat(self) -> os.stat_result | None:
        """Return the attributes of the file, None once it is closed for good; needs no descriptor."""
        if self._fd >= 0:
            return os.fstat(self._fd)
        if self._closing:
            return None
        try:
            return os.stat(self.path)  # noqa: PTH116 (a string takes less time)
        except FileNotFoundError:  # somebody has emptied the directory: a reader of the content will tell
            return self._parked

    def takes_bytes(self, offset: int, size: int) -> int:
        """Return the most that a write takes on disk, beside what the file has there."""
        if not self.complete:
            return len(pages_of(offset, size)) * PAGE_BYTES  # what is written in part may have to be filled
        # The program that changed a mapped page has gone on: it is not to be lost where it takes no more than before.
        has = self.stat() if offset + size <= self.size else None
        return 0 if has is not None and has.st_blocks * 512 >= allocated_bytes(has.st_size) else size

    @property
    def closed(self) -> bool:
        """Whether the content is given up, or is a cache object again."""
        return self._closing

    @property
    def _base_pages(self) -> int:
        return -(-self.base_bytes // PAGE_BYTES)

    @property
    def complete(self) -> bool:
        """Whether the staging file holds all of the content."""
        return self.base is None

    def has(self, page: int) -> bool:
        """Whether the staging file holds a page's content."""
        return self.base is None or page in self._present or page * PAGE_BYTES >= self.base_bytes

    @property
    def size(self) -> int:
        """Size of the content in bytes."""
        st = self.stat()
        if st is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return st.st_size

    async def is_written(self, start: int, end: int) -> bool:
        """Whether a program has written everything in a range: a file that got its size first has holes there.

        Waits in a thread, as the file system may let us wait for a write. Raises OSError.
        """
        with self.in_use():
            return await self._threads.run(_hole_after, self.fd, start) >= end

    async def read(self, offset: int, length: int) -> Buffer:
        """Return up to ``length`` bytes at ``offset``, fewer only at the end. Raises `StoreError`, OSError."""
        with self.in_use():
            return await self._read(offset, length)

    async def _read(self, offset: int, length: int) -> Buffer:
        if self.complete:
            return await self._load(offset, length)
        length = max(0, min(length, self.size - offset))
        parts: list[Buffer] = []
        for page in pages_of(offset, length):
            low, high = max(offset, page * PAGE_BYTES), min(offset + length, (page + 1) * PAGE_BYTES)
            if self.has(page):
                parts.append(await self._load(low, high - low))
            else:
                found = await self._read_base(low, min(high, self.base_bytes))
                parts.append(bytes(found).ljust(high - low, b"\0") if low + len(found) < high else found)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _load(self, offset: int, length: int) -> bytes:
        found = await self._threads.run(read_exact, self.fd, length, offset)
        if found:
            origins.tell(origins.STAGING, len(found))
        return found

    async def _read_base(self, start: int, end: int) -> Buffer:
        """Return bytes of the object that a page which the staging file lacks comes from."""
        while start < end:
            base = self.base
            if base is None:  # the staging file has become complete meanwhile
                return await self._load(start, end - start)
            try:
                return await self._cache.read(base, start, end - start)
            except (VersionChanged, NotFound):
                if self._replaced is not None:
                    await self._replaced.wait()
                if self.base is base:
                    raise
        return b""

    def expect_replacement(self) -> None:
        """The store is about to get the content as a new version of the base: readers of the old one wait."""
        self._replaced = trio.Event() if self._replaced is None else self._replaced

    def end_replacement(self) -> None:
        """It is known what became of that; see `rebase`."""
        if self._replaced is not None:
            self._replaced.set()
            self._replaced = None

    def rebase(self, key: str, version: str, size: int) -> None:
        """Take the pages that the staging file lacks from another object of ``size`` bytes, which has the same ones."""
        if self.base is not None:
            old, self.base = self.base, self._cache.acquire(key, version, size)
            self._cache.release(old)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write ``data``. Raises OSError, and `StoreError` where a page had to be fetched first."""
        with self.in_use():
            await self._write(offset, data)

    async def _write(self, offset: int, data: Buffer) -> None:
        self.unseal()
        if self.complete:
            await self._threads.run(write_all, self.fd, data, offset)
            return
        async with self._changing:
            end = offset + len(data)
            for page in {offset // PAGE_BYTES, max(offset, end - 1) // PAGE_BYTES}:
                if offset > page * PAGE_BYTES or end < min((page + 1) * PAGE_BYTES, self.base_bytes):
                    await self._fill(page)
            await self._threads.run(write_all, self.fd, data, offset)
            self._present.update(p for p in pages_of(offset, len(data)) if p < self._base_pages)
            self._drop_base_if_complete()

    async def _fill(self, page: int) -> None:
        if self.has(page):
            return
        self.unseal()
        start = page * PAGE_BYTES
        data = await self._read_base(start, min(start + PAGE_BYTES, self.base_bytes))
        before, times = stamp_of(self.fd)[:3], os.fstat(self.fd)
        await self._threads.run(write_all, self.fd, data, start)
        os.utime(self.fd, ns=(times.st_atime_ns, times.st_mtime_ns))  # this is not a change of the content
        last, earlier = self._filled
        if before != last:
            earlier = set()
        earlier.add(before)
        self._filled = stamp_of(self.fd)[:3], earlier
        self._present.add(page)

    def has_changed(self, now: Stamp, before: Stamp) -> bool:
        """Whether the content with the stamp ``now`` may differ from that at ``before``; filled pages do not count."""
        last, earlier = self._filled
        only_filled = now[:3] == last and before[:3] in earlier and not before.uncertain
        return now.differs(before) and not only_filled

    async def fill(self, pages: range) -> None:
        """Bring pages into the staging file. Raises `StoreError`, OSError."""
        with self.in_use():
            async with self._changing:
                for page in pages:
                    await self._fill(page)
                self._drop_base_if_complete()

    async def complete_all(self) -> None:
        """Bring everything into the staging file. Raises `StoreError`, OSError."""
        if not self.complete:
            await self.fill(range(self._base_pages))

    async def truncate(self, size: int) -> None:
        """Cut or extend with zeros. Raises OSError."""
        with self.in_use():
            async with self._changing:
                self.unseal()
                if not self.complete and size < self.base_bytes:
                    self.base_bytes = size
                    self._present = {page for page in self._present if page < self._base_pages}
                await self._threads.run(os.ftruncate, self.fd, size)
                self._drop_base_if_complete()

    def _drop_base_if_complete(self) -> None:
        if self.base is not None and len(self._present) >= self._base_pages:
            self.drop_base()

    def drop_base(self) -> None:
        """The staging file is complete, or is not needed any more."""
        if self.base is not None:
            base, self.base, self.base_bytes = self.base, None, 0
            self._present.clear()
            self._cache.release(base)

    def seal(self) -> bool:
        """Give up write access, so that it can be told whether anybody else has it; False while a thread is at work."""
        if self._users == 0:
            self._reopen(os.O_RDONLY)
            return True
        return False

    def unseal(self) -> None:
        """Take write access again, before each change. Raises OSError, EROFS while the disk is read-only."""
        if self._sealed:
            with self._descriptors.parking:
                _ = self.fd  # if it is parked: it can be read further on even where it cannot be written to
                self._reopen(os.O_RDWR)

    def _reopen(self, mode: int) -> None:
        """Change the access; the number of the descriptor stays, as a thread may be about to use it."""
        with self._descriptors.parking:  # else the number might be another file's by now
            if self._fd >= 0:
                fd = os.open(f"/proc/self/fd/{self._fd}", mode | os.O_CLOEXEC)
                try:
                    os.dup2(fd, self._fd, inheritable=False)
                finally:
                    os.close(fd)
            self._sealed = mode == os.O_RDONLY

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the file open while a thread works on it."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closing and self._users == 0:
                self._close()

    def close(self) -> None:
        """Close the file, once no thread works on it, and let go of the base."""
        self._closing = True
        if self._users == 0:
            self._close()

    def abandon(self) -> None:
        """Close the file at the end of a run, when nothing uses it or the cache any more."""
        self._closing = True
        self._close_file()

    def _close(self) -> None:
        self.drop_base()
        self._close_file()

    def _close_file(self) -> None:
        self._descriptors.closed(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
