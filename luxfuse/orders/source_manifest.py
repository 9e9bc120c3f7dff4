"""Writes a manifest of a source that nobody has mounted: by listings alone, some directories ahead."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import trio

from luxfuse.core import names as naming
from luxfuse.errors import LuxError
from luxfuse.index.entries import Found
from luxfuse.index.manifest import Head, Item, ManifestRefused, ManifestWriter
from luxfuse.orders.manifest import ManifestProgress
from luxfuse.types import Kind, ListPage
from luxfuse.understore.listing import list_directory
from luxfuse.understore.retrying import Store

AHEAD = 8
"""Directories that are listed at the same time."""
PAGES_AHEAD = 4
"""Answers of each that may wait to be written."""


async def export_source(store: Store, file: Path, source: str, source_id: str) -> AsyncGenerator[ManifestProgress, None]:
    """Write the manifest ``file`` of all that a store has; yields how far that is. Raises `LuxError`."""
    head = Head(source=source, source_id=source_id, made_s=time.time())
    try:
        writer = await trio.to_thread.run_sync(ManifestWriter, file, head)
    except OSError as exc:
        raise ManifestRefused(f"{file}: {exc.strerror or exc}") from None
    skipped = 0
    try:
        async with aclosing(_Listed(store).directories()) as directories:
            async for path, asked_s, items, left_out in directories:
                if asked_s is not None:
                    await trio.to_thread.run_sync(writer.begin, path, asked_s)
                await trio.to_thread.run_sync(writer.add, items)
                skipped += left_out
                yield ManifestProgress(writer.directories, writer.entries, skipped)
        await trio.to_thread.run_sync(writer.finish)
        yield ManifestProgress(writer.directories, writer.entries, skipped, done=True)
    except OSError as exc:
        raise ManifestRefused(f"{file}: {exc.strerror or exc}") from None
    finally:
        writer.close()


_Answer = tuple[list[Item], list[str], int]
"""Entries, the directories among them, and how many keys can be no names."""


class _Listed:
    """The directories of a store, the outer ones first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ahead: dict[str, trio.MemoryReceiveChannel[_Answer | LuxError]] = {}
        self._began_s: dict[str, float] = {}

    async def directories(self) -> AsyncGenerator[tuple[str, float | None, list[Item], int], None]:
        """Yield path, when it was asked for (None: more of the last one), entries, and the number of those left out."""
        send, receive = trio.open_memory_channel[tuple[str, float | None, list[Item], int] | LuxError](0)
        failed: LuxError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._go_through, nursery, send)
            async with receive:
                async for found in receive:
                    if isinstance(found, LuxError):
                        failed = found
                        break
                    yield found
            nursery.cancel_scope.cancel()
        if failed is not None:  # raised in there it would come out in a group
            raise failed

    async def _go_through(
        self, nursery: trio.Nursery, send: trio.MemorySendChannel[tuple[str, float | None, list[Item], int] | LuxError]
    ) -> None:
        async with send:
            waiting = [""]
            while waiting:
                for prefix in reversed(waiting[-AHEAD:]):
                    self._begin(nursery, prefix)
                prefix = waiting.pop()
                below: list[str] = []
                asked_s: float | None = self._began_s.pop(prefix)
                async with self._ahead.pop(prefix) as answers:
                    async for answer in answers:
                        if isinstance(answer, LuxError):
                            await send.send(answer)
                            return
                        items, directories, left_out = answer
                        below += directories
                        await send.send((prefix.rstrip("/"), asked_s, items, left_out))
                        asked_s = None
                if asked_s is not None:
                    await send.send((prefix.rstrip("/"), asked_s, [], 0))
                waiting += sorted(below, reverse=True)

    def _begin(self, nursery: trio.Nursery, prefix: str) -> None:
        if prefix not in self._ahead:
            self._began_s[prefix] = time.time()
            send, self._ahead[prefix] = trio.open_memory_channel[_Answer | LuxError](PAGES_AHEAD)
            nursery.start_soon(self._list, prefix, send)

    async def _list(self, prefix: str, send: trio.MemorySendChannel[_Answer | LuxError]) -> None:
        async with send:
            try:
                await list_directory(
                    self._store, prefix, lambda page, _span: send.send(_collected(page, len(prefix), prefix))
                )
            except LuxError as exc:
                await send.send(exc)


def _collected(page: ListPage, cut: int, prefix: str) -> _Answer:
    items: list[Item] = []
    directories: list[str] = []
    left_out = 0
    for each in page.prefixes:
        name = naming.name_of(each[cut:-1])
        if name is None:
            left_out += 1
        else:
            items.append((Found(name, Kind.DIRECTORY), None))
            directories.append(prefix + each[cut:])
    for info in page.objects:
        classified = naming.classify(info.key[cut:])
        if classified is None:
            left_out += 1
        else:
            items.append((Found(classified[0], classified[1], info.size, info.version, info.mtime_ns), None))
    return items, directories, left_out
