"""Makes the moves of the last run in the store: what is still under the old key is copied and removed.

Copying is repeated, so a move that was cut short anywhere ends as if it had not been.
"""

from __future__ import annotations

import contextlib

from luxfuse.errors import NotFound, VersionChanged
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.steps import reached
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.operations import MOVE, MOVE_DIRECTORY, SWAP
from luxfuse.vfs.recovery.rekeying import like

UNLESS = "unless"
"""Argument of a move that was none yet when the daemon died: it is made unless the store has another version than this
under the target, which is then the newer content."""


class MovedObjects:
    """The store's part of unfinished moves."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store

    async def make(self, number: int, operation: OperationRecord) -> dict[str, ObjectInfo]:
        """Make a move; may be done again. Returns the copies of single objects made now, by their keys.

        Raises `StoreError`, OSError.
        """
        arguments, copies = operation.arguments, dict[str, ObjectInfo]()
        if operation.kind == MOVE:
            copies = await self._move_noted(arguments)
        elif operation.kind == MOVE_DIRECTORY:
            await self._move_below(arguments["source"], arguments["target"])
        elif operation.kind == SWAP:
            await self._exchange(number, operation)
        return copies

    async def find(self, key: str) -> ObjectInfo | None:
        """Return the object under a key, None if there is none. Raises `StoreError`."""
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def _move_noted(self, arguments: dict[str, str]) -> dict[str, ObjectInfo]:
        source, target, version = arguments["source"], arguments["target"], arguments["version"] or None
        copies: dict[str, ObjectInfo] = {}
        if UNLESS in arguments and (found := await self.find(target)) is not None and found.version != arguments[UNLESS]:
            old = await self.find(source)
            if old is not None and version in (None, old.version):
                await self._delete([source])
        elif (copied := await self._move(source, target, version)) is not None:
            copies[target] = copied
        if arguments.get("replaced"):
            await self._delete([arguments["replaced"]])
        return copies

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
                await self._move(source, target, None)

    async def _move(self, source: str, target: str, version: str | None) -> ObjectInfo | None:
        """Move an object, if it is still under its old key and of that version; returns the copy made now, if any."""
        try:
            info = await self._store.head(source)
            if version is not None and info.version != version:
                return None
            copied = await self._store.copy(source, target, version=info.version, size=info.size)
            reached("recover.copied")
            await self._delete([source])
        except (NotFound, VersionChanged):
            return None  # it was finished
        return copied

    async def _move_below(self, source: str, target: str) -> None:
        keys = []
        async with contextlib.aclosing(self._store.list_all(source)) as pages:
            async for page in pages:
                for info in sorted(page.objects, key=lambda i: (not i.key.endswith("/"), i.key)):
                    keys.append(info.key)
                    to = target + info.key[len(source) :]
                    await self._store.copy(info.key, to, version=info.version or None, size=info.size)
                    reached("recover.copied")
        await self._delete(keys)

    async def _delete(self, keys: list[str]) -> None:
        for error in (await self._store.delete(sorted(keys, reverse=True))).values():
            raise error
