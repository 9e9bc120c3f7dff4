"""Uploads of whole files and copies of large objects: as many parts as it takes, some at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.types import ObjectInfo
from luxfuse.understore.base import WriteSide
from luxfuse.understore.properties import Properties

PART_BYTES = 16 << 20
MOST_PARTS = 10_000
AT_ONCE = 4
"""Each part that is on its way is held in memory."""


def put_in_parts(
    driver: WriteSide,
    key: str,
    path: str,
    metadata: Mapping[str, str],
    expect: str | None,
    keep: Properties | None = None,
) -> ObjectInfo:
    """Do `UnderStore.put_file` with the other methods of ``driver``, which has multipart uploads."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size <= PART_BYTES:
            return driver.put(key, read_exactly(fd, 0, size, key), metadata, expect=expect, keep=keep)
        upload = driver.begin_upload(key, metadata, keep=keep)

        def send(number: int, start: int, end: int) -> str:
            return driver.upload_part(key, upload, number, read_exactly(fd, start, end, key))

        info = in_parts(driver, key, upload, size, PART_BYTES, send, expect)
    finally:
        os.close(fd)
    return ObjectInfo(key, size, info.version, info.mtime_ns, dict(metadata))


def in_parts(
    driver: WriteSide,
    key: str,
    upload: str,
    size: int,
    part_bytes: int,
    send: Callable[[int, int, int], str],
    expect: str | None,
) -> ObjectInfo:
    """Let ``send(number, start, end)`` make the parts of ``size`` bytes in all, and complete the upload or abort it."""
    step = max(part_bytes, -(-size // MOST_PARTS))
    spans = [(n, start, min(start + step, size)) for n, start in enumerate(range(0, size, step), 1)]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pending = [pool.submit(send, *span) for span in spans]
            try:
                tags = [future.result() for future in pending]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return driver.complete_upload(
            key, upload, [(number, tag) for (number, _, _), tag in zip(spans, tags, strict=True)], expect=expect
        )
    except BaseException:
        try:
            driver.abort_upload(key, upload)
        except StoreError:
            pass  # the caller has to know the first error
        raise


def read_exactly(fd: int, start: int, end: int, what: str) -> bytes:
    """Return bytes [start, end) of a local file. Raises `StoreUnavailable` if it is shorter."""
    pieces, at = [], start
    while at < end:
        piece = os.pread(fd, end - at, at)
        if not piece:
            raise StoreUnavailable(f"PUT {what!r}: the local file got shorter")
        pieces.append(piece)
        at += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
