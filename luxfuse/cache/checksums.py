"""Checksums of the pages of a file that may change meanwhile, and whether an object of the store has them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping

import trio

from luxfuse.cache.disk import checksum
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.together import together
from luxfuse.errors import NotFound, StoreError, VersionChanged
from luxfuse.types import PAGE_BYTES, ObjectInfo
from luxfuse.understore.retrying import Store

HASH_RUN_BYTES = 8 << 20


class ChangedMeanwhile(StoreError):
    """The file got shorter while it was read: try again with what it is now."""


def read_checked(fd: int, start: int, view: memoryview) -> dict[int, int]:
    """Fill ``view`` from a page's start on and checksum its pages. Raises `ChangedMeanwhile` if the file is too short."""
    sums = {}
    for offset in range(0, len(view), PAGE_BYTES):
        page = view[offset : offset + PAGE_BYTES]
        read_into(fd, page, start + offset)
        sums[(start + offset) // PAGE_BYTES] = checksum(page)
    return sums


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` on. Raises `ChangedMeanwhile` if the file is too short."""
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise ChangedMeanwhile("the file changed while it was read")
        view, offset = view[count:], offset + count


class _PageBuffer(threading.local):
    """A page for each thread: fresh memory is dear on virtual machines."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(PAGE_BYTES))


_page_buffer = _PageBuffer()


def page_checksums(fd: int, start: int, length: int) -> dict[int, int]:
    """Return the checksums of the pages from ``start`` on, by page number. Raises `ChangedMeanwhile`."""
    sums: dict[int, int] = {}
    for offset in range(start, start + length, PAGE_BYTES):
        sums |= read_checked(fd, offset, _page_buffer.view[: min(PAGE_BYTES, start + length - offset)])
    return sums


async def checksums_of(
    data: StagedBytes, spans: Iterable[tuple[int, int]], threads: trio.CapacityLimiter
) -> dict[int, int]:
    """Checksum those pages of ``spans``, (start, end) in bytes from a page's start on, that a staging file has."""
    sums: dict[int, int] = {}

    async def run(first: int, end: int) -> None:
        length = min(HASH_RUN_BYTES, end - first)
        async with threads:
            found = await trio.to_thread.run_sync(page_checksums, data.fd, first, length)
        sums.update({page: value for page, value in found.items() if data.has(page)})

    with data.in_use():
        async with together() as start:
            for begin, end in spans:
                for first in range(begin, end, HASH_RUN_BYTES):
                    start(run, first, end)
    return sums


async def has_same_content(store: Store, info: ObjectInfo, checksums: Mapping[int, int], size: int) -> bool:
    """Whether the store's object has the pages of ``checksums``: an upload whose answer got lost, or equal content.

    Where pages are missing, as they were never fetched, those that were changed tell enough.
    """
    if info.size != size or (size and not checksums):
        return False
    try:
        for page in sorted(checksums):
            end = min((page + 1) * PAGE_BYTES, size)
            data = await store.read(info.key, page * PAGE_BYTES, end, info.version)
            if checksum(data) != checksums[page]:
                return False
    except (NotFound, VersionChanged):
        return False
    return True
