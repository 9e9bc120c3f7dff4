"""Copies of all that is below a directory, inside the store."""

from __future__ import annotations

import contextlib

import trio

from luxfuse.cache.together import together
from luxfuse.errors import LuxError
from luxfuse.steps import reached
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.tree import Tree

CONCURRENT_COPIES = 16


class DirectoryCopies:
    """Copies directories of one mount to their new keys."""

    def __init__(
        self,
        *,
        tree: Tree,
        entries: DirtyEntries,
        store: Store,
    ) -> None:
        self._tree = tree
        self._entries = entries
        self._store = store

    async def require_room(self, prefix: str, *new_prefixes: str) -> None:
        """Raise `KeyTooLong` if the store could not hold all that is below a directory, once that has its new name."""
        for new_prefix in new_prefixes:
            if not prefix.endswith("/") or not self._tree.may_be_too_long(prefix, new_prefix):
                continue
            self.require_room_for_dirty(prefix, new_prefix)
            async with contextlib.aclosing(self._store.list_all(prefix)) as pages:
                async for page in pages:
                    for info in page.objects:
                        self._tree.check_key_below(new_prefix + info.key[len(prefix) :])

    def require_room_for_dirty(self, prefix: str, new_prefix: str) -> None:
        for dirty in self._entries.below(prefix):
            self._tree.check_key_below(new_prefix + dirty.key[len(prefix) :])

    async def copy_below(self, prefix: str, new_prefix: str) -> tuple[dict[str, ObjectInfo], dict[str, str | None]]:
        """Copy every object below a prefix whose content is not about to be replaced.

        Returns the copies by old key, and the versions of all originals.
        """
        versions: dict[str, str | None] = {}
        copied: dict[str, ObjectInfo] = {}
        limiter = trio.CapacityLimiter(CONCURRENT_COPIES)
        below = self._entries.below(prefix)
        changed = {d.key for d in below if d.must_push and d.source is not None and d.is_promised_here}
        failed: list[LuxError] = []

        async def copy(info: ObjectInfo) -> None:
            async with limiter:
                if failed:
                    return
                target = new_prefix + info.key[len(prefix) :]
                try:
                    copied[info.key] = await self._store.copy(
                        info.key, target, version=info.version or None, size=info.size
                    )
                except LuxError as exc:  # those that are on their way are waited for: they would arrive after an undoing
                    failed.append(exc)
                    return
                reached("move-directory.copied-one")

        async with contextlib.aclosing(self._store.list_all(prefix)) as pages:
            async for page in pages:
                versions.update((info.key, info.version or None) for info in page.objects)
                wanted = [info for info in page.objects if info.key not in changed]
                # Markers first: where directories exist by themselves, their files need them.
                async with together() as start:
                    for info in sorted(wanted, key=lambda i: (not i.key.endswith("/"), i.key)):
                        start(copy, info)
                if failed:
                    raise failed[0]
        return copied, versions
