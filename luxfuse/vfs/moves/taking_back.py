"""Undoing an exchange of names that failed on its way: moved objects come back, from the last step on.

The journal has the exchange until that is done, and how far it is undone: a restart does the rest of it instead,
from there on (`vfs.recovery`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import trio

from luxfuse.errors import LuxError, NotFound
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

Step = tuple[str, str]
"""The key, or prefix, that something is moved from, and the one to which."""


class TakingBack:
    """Takes steps back, in the order in which they were to be made; the last ones may not have been begun."""

    def __init__(self, journal: Journal, store: Store, writeback: WriteBack) -> None:
        self._journal = journal
        self._store = store
        self._deletes = writeback.deletes

    async def all(self, number: int, steps: Sequence[Step]) -> None:
        """Undo the operation ``number``. May be called again after it has failed: raises `StoreError`, OSError."""
        operation = self._journal.operations.get(number)
        if operation is None:
            return
        for step in range(operation.step, -1, -1):
            self._journal.put_operation(number, msgspec.structs.replace(operation, step=step))
            await self._journal.commit()
            await self._one(*steps[step])
            reached("exchange.taken-back")
        self._journal.drop_operation(number)
        await self._journal.commit()

    async def patiently(self, number: int, steps: Sequence[Step]) -> None:
        """Undo it when the store lets us: tried again after pauses, for ever."""
        pause_s = PAUSE_S
        while True:
            await trio.sleep(pause_s)
            try:
                await self.all(number, steps)
            except (LuxError, OSError) as exc:
                log.info("an exchange with %r cannot be undone yet: %s", steps[0][0], exc)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                log.info("the exchange with %r is undone", steps[0][0])
                return

    async def _one(self, source: str, target: str) -> None:
        if source.endswith("/"):
            there = {info.key for info in await self._below(source)}
            copies = await self._below(target)
        else:
            there = {source} if await self._find(source) is not None else set()
            copy = await self._find(target)
            copies = [] if copy is None else [copy]
        for info in sorted(copies, key=lambda i: (not i.key.endswith("/"), i.key)):
            original = source + info.key[len(target) :]
            if original not in there:
                await self._store.copy(info.key, original, version=info.version or None, size=info.size)
        if copies:
            await self._deletes.now([info.key for info in copies])

    async def _below(self, prefix: str) -> list[ObjectInfo]:
        return [info async for page in self._store.list_all(prefix) for info in page.objects]

    async def _find(self, key: str) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None
