"""Undoing an exchange of names that failed on its way: moved objects come back, from the last step on.

The journal has the exchange until that is done, and how far it is undone: a restart does the rest of it instead,
from there on (`vfs.recovery`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.noted import NOTHING
from luxfuse.vfs.moves.targets import Targets
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

Step = tuple[str, str]
"""The key, or prefix, that something is moved from, and the one to which."""


Made = Sequence[Mapping[str, ObjectInfo]]
"""The copies of the steps that were made, by their old keys."""


class TakingBack:
    """Takes steps back, in the order in which they were to be made; the last ones may not have been begun."""

    def __init__(self, journal: Journal, store: Store, writeback: WriteBack, targets: Targets) -> None:
        self._journal = journal
        self._store = store
        self._deletes = writeback.deletes
        self._targets = targets

    async def all(self, number: int, steps: Sequence[Step], made: Made) -> None:
        """Undo the operation ``number``. May be called again after it has failed: raises `StoreError`, OSError."""
        operation = self._journal.operations.get(number)
        if operation is None:
            return
        if self._store.late.any_at(
            *{key for step in steps for key in step}
        ):  # it would remove what comes back, or replace it
            raise StoreUnavailable("a request that was not answered in time may have its effect yet")
        for step in range(operation.step, -1, -1):
            self._journal.put_operation(number, msgspec.structs.replace(operation, step=step))
            await self._journal.commit()
            await self._one(*steps[step], made[step] if step < len(made) else None)
            reached("exchange.taken-back")
        self._journal.drop_operation(number)
        await self._journal.commit()

    async def patiently(self, number: int, steps: Sequence[Step], made: Made) -> None:
        """Undo it when the store lets us: tried again after pauses, for ever."""
        pause_s = PAUSE_S
        while True:
            await trio.sleep(pause_s)
            try:
                await self.all(number, steps, made)
            except (LuxError, OSError) as exc:
                log.info("an exchange with %r cannot be undone yet: %s", steps[0][0], exc)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                log.info("the exchange with %r is undone", steps[0][0])
                return

    async def _one(self, source: str, target: str, made: Mapping[str, ObjectInfo] | None) -> None:
        """Undo one step; ``made``: its copies, None if it was not made, or not to its end."""
        copies = await self._copies(target)
        gone = []
        for info in sorted(copies, key=lambda i: (not i.key.endswith("/"), i.key)):
            original = source + info.key[len(target) :]
            if await self._is_ours(info, original, made):
                there, _ = await self._targets.copy(info.key, original, info.version or None, NOTHING)
                if there:
                    gone.append(info.key)
        if gone:
            await self._deletes.now(gone)
            self._targets.gone(gone)

    async def _is_ours(self, info: ObjectInfo, original: str, made: Mapping[str, ObjectInfo] | None) -> bool:
        """Whether what is under the new key is the copy that a step has made, or may be as the original is gone."""
        if info.key.endswith("/"):
            return True
        if made is not None:
            return original in made and made[original].version == info.version
        first = await self._targets.find(original)
        if first is None:
            return True
        found = await self._targets.find(info.key)
        return found is not None and await self._targets.is_copy(first, found)

    async def _copies(self, target: str) -> list[ObjectInfo]:
        if target.endswith("/"):
            return [info async for page in self._store.list_all(target) for info in page.objects]
        found = await self._targets.find(target)
        return [] if found is None else [found]
