"""Makes the moves of the last run in the store: what is still under the old key is copied and removed.

Copying is repeated, so a move that was cut short anywhere ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import logging

import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.cache.together import together
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.steps import reached
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.copies import CONCURRENT_COPIES
from luxfuse.vfs.moves.noted import NOTHING, REPLACED_OVER, newer_of, over_of
from luxfuse.vfs.moves.operations import MOVE, MOVE_DIRECTORY, SWAP
from luxfuse.vfs.moves.targets import Targets, mtime_of
from luxfuse.vfs.recovery.rekeying import like

log = logging.getLogger(__name__)


class MovedObjects:
    """The store's part of unfinished moves."""

    def __init__(self, journal: Journal, store: Store, recovered: Recovered) -> None:
        """Our version of an object that somebody else has written meanwhile goes to ``recovered``."""
        self._journal = journal
        self._store = store
        self._targets = Targets(store, recovered)

    async def make(self, number: int, operation: OperationRecord) -> dict[str, ObjectInfo]:
        """Make a move; may be done again. Returns the copies of single objects, by their keys.

        Raises `StoreError`, OSError.
        """
        arguments, copies = operation.arguments, dict[str, ObjectInfo]()
        if operation.kind == MOVE:
            copies = await self._move_noted(operation)
        elif operation.kind == MOVE_DIRECTORY:
            await self._move_below(arguments["source"], arguments["target"])
        elif operation.kind == SWAP:
            await self._exchange(number, operation)
        return copies

    async def find(self, key: str) -> ObjectInfo | None:
        """Return the object under a key, None if there is none. Raises `StoreError`."""
        return await self._targets.find(key)

    async def _move_noted(self, operation: OperationRecord) -> dict[str, ObjectInfo]:
        arguments = operation.arguments
        source, target, version = arguments["source"], arguments["target"], arguments["version"] or None
        there, copied = await self._targets.copy(source, target, version, over_of(operation), newer_of(operation))
        if there:
            await self._delete([source])
        if replaced := arguments.get("replaced"):
            found, over = await self.find(replaced), over_of(operation, REPLACED_OVER)
            if found is not None and over.covers(found, mtime_of(found)):
                await self._delete([replaced])
            elif found is not None:
                log.warning("%r was written by somebody else since it was removed here: it stays", replaced)
        return {} if copied is None else {target: copied}

    async def _exchange(self, number: int, operation: OperationRecord) -> None:
        """Make the moves that are missing; how far it is, is in the journal."""
        arguments = operation.arguments
        first, second, between = arguments["first"], arguments["second"], arguments["between"]
        steps = ((first, between), (second, like(first, second)), (between, like(second, first)))
        for step in range(operation.step, len(steps)):
            source, target = steps[step]
            operation.step = step  # the next restart must not move back an object that was moved already
            self._journal.put_operation(number, operation)
            await self._journal.commit()
            if source.endswith("/"):
                await self._move_below(source, target)
            else:
                there, _ = await self._targets.copy(source, target, None, NOTHING)
                if there:
                    await self._delete([source])

    async def _move_below(self, source: str, target: str) -> None:
        markers = set[str]()
        limiter = trio.CapacityLimiter(CONCURRENT_COPIES)

        async def copy(key: str, copied: list[str]) -> None:
            async with limiter:
                there, _ = await self._targets.copy(key, target + key[len(source) :], None, NOTHING)
                if there:
                    copied.append(key)

        async def copy_marker(info: ObjectInfo) -> None:
            async with limiter:
                await self._copy_marker(info, target + info.key[len(source) :])

        async with contextlib.aclosing(self._store.list_all(source)) as pages:
            async for page in pages:
                found = sorted((info for info in page.objects if info.key.endswith("/")), key=lambda info: info.key)
                markers.update(info.key for info in found)
                if self._store.abilities.hierarchical:  # outer ones before what is in them
                    for info in found:
                        await self._copy_marker(info, target + info.key[len(source) :])
                copied: list[str] = []
                async with together() as start:
                    for info in page.objects:
                        if not info.key.endswith("/"):
                            start(copy, info.key, copied)
                        elif not self._store.abilities.hierarchical:
                            start(copy_marker, info)
                await self._delete(copied)  # what is moved a restart need not look at again
        await self._delete(list(markers))  # of directories that are empty by now

    async def _copy_marker(self, info: ObjectInfo, target: str) -> None:
        """Copy the object of a directory, which may be there already: only where that has content it is somebody's data."""
        if not self._store.abilities.hierarchical and (found := await self.find(target)) is not None and found.size:
            if info.size:
                await self._targets.copy(info.key, target, None, NOTHING)
            return
        await self._store.copy(info.key, target, version=info.version or None, size=info.size)
        reached("recover.copied")

    async def _delete(self, keys: list[str]) -> None:
        if not keys:
            return
        for error in (await self._store.delete(sorted(keys, reverse=True))).values():
            raise error
        self._targets.gone(keys)
