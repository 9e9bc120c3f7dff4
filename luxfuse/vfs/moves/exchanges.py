"""Exchanging two names: in the store over a third key, here at once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

import trio

from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, ObjectInfo
from luxfuse.vfs.deletes import Deletes
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.frozen import Freeze
from luxfuse.vfs.moves.copies import DirectoryCopies
from luxfuse.vfs.moves.keys import MovedKeys
from luxfuse.vfs.moves.moved import MovedNames
from luxfuse.vfs.moves.operations import SWAP, Place
from luxfuse.vfs.moves.taking_back import Made, Step, TakingBack
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


class Exchanges:
    """The exchanges of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        tree: Tree,
        entries: DirtyEntries,
        writeback: WriteBack,
        deletes: Deletes,
        journal: Journal,
        taking_back: TakingBack,
        nursery: trio.Nursery,
        copies: DirectoryCopies,
        keys: MovedKeys,
        moved: MovedNames,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._tree = tree
        self._entries = entries
        self._writeback = writeback
        self._deletes = deletes
        self._journal = journal
        self._taking_back = taking_back
        self._nursery = nursery
        self._copies = copies
        self._keys = keys
        self._moved = moved

    async def exchange(self, place: Place, new_place: Place) -> None:
        """Swap two names: in the store over a third key, here at once."""
        number = self._journal.new_id()
        first, second = self._tree.entry_of(place), self._tree.entry_of(new_place)
        between = (place[0], f".luxfuse-exchange-{number:x}".encode())

        def all_keys() -> tuple[str, str, str, str, str]:
            old = self._namespace.places.key(*place, first.kind), self._namespace.places.key(*new_place, second.kind)
            new = self._tree.new_key(*new_place, first.kind), self._tree.new_key(*place, second.kind)
            return *old, *new, self._tree.new_key(*between, first.kind)

        async def ready(*keys: str) -> None:
            await self._copies.require_room(keys[0], keys[4], keys[2])
            await self._copies.require_room(keys[1], keys[3])
            await self._bring(first, keys[0])
            await self._bring(second, keys[1])
            # A delete of what had a name before must not meet the new object.
            await self._writeback.finish_below(*keys[2:4])

        with self._writeback.frozen.let_none_begin(*all_keys()[:4]):
            *found, between_key = await self._writeback.frozen.settled(all_keys, ready, first=True)
        keys, new_keys = (found[0], found[1]), (found[2], found[3])
        directories = [entry.inode for entry in (first, second) if entry.kind is Kind.DIRECTORY]
        steps = (keys[0], between_key), (keys[1], new_keys[1]), (between_key, new_keys[0])
        with contextlib.ExitStack() as frozen, self._namespace.moving.exchanged(*directories):
            freeze = frozen.enter_context(self._writeback.frozen.freeze(*keys, between_key))
            for entry, where in ((first, place), (second, new_place)):
                self._namespace.hold(entry.inode, *where)
            arguments = {
                "first": keys[0],
                "second": keys[1],
                "between": between_key,
                "inode": str(first.inode),
                "other": str(second.inode),
            }
            made: list[dict[str, ObjectInfo]] = []
            try:
                copies = await self._swap_objects(number, arguments, (first, second), steps, made)
            except (LuxError, OSError):
                await self._take_back(number, steps, made, ((first, place), (second, new_place)), frozen, freeze)
                raise
            with self._journal.together():
                self._names.move(*place, *between)
                self._names.move(*new_place, *place)
                self._names.move(*between, *new_place)
                reached("exchange.moved-names")
                # Before the keys of its records change, which a restart would change, too.
                self._journal.drop_operation(number)
                self._tree.note_renamed(*place)
                self._tree.note_renamed(*new_place)
                self._namespace.moved(*directories)
                below = self._entries.below(keys[0]), self._entries.below(keys[1])  # before any of them changes its key
                self._note_exchanged(new_place, keys[0], new_keys[0], copies[0], below[0])
                self._note_exchanged(place, keys[1], new_keys[1], copies[1], below[1])
                reached("exchange.named")
                self._moved.changed(place, new_place)
            await self._journal.commit_made()
            reached("exchange.dropped")

    def _note_exchanged(
        self, place: Place, key: str, new_key: str, copied: dict[str, ObjectInfo], below: list[Dirty]
    ) -> None:
        entry = self._tree.entry_of(place)
        if entry.kind is Kind.DIRECTORY:
            self._keys.rekey_below(below, key, new_key, place, copied)
            for old, info in copied.items():
                self._keys.note_copied(old, new_key + old[len(key) :], place, len(new_key), info)
        elif key in copied:
            self._keys.adopt_version(place, key, new_key, copied[key])
        elif (dirty := self._entries.get(entry.inode)) is not None:
            self._keys.rekey(dirty, place, new_key, ABSENT)
        self._moved.settle(entry.inode, place)

    async def _bring(self, entry: Entry, key: str) -> None:
        """Push an entry and all that is dirty below it, so that there are objects to be moved."""
        await self._writeback.finish_below(key)
        below = self._entries.below(key) if entry.kind is Kind.DIRECTORY else [self._entries.get(entry.inode)]
        for dirty in below:
            if dirty is not None and dirty.must_push:
                dirty.close()  # an uploaded file is as good as synced
                await self._writeback.push(dirty, first=True)

    async def _swap_objects(
        self,
        number: int,
        arguments: dict[str, str],
        entries: tuple[Entry, Entry],
        steps: Sequence[Step],
        moved: list[dict[str, ObjectInfo]],
    ) -> tuple[dict[str, ObjectInfo], dict[str, ObjectInfo]]:
        """Make the three moves in the store; returns the copies, by the old keys. ``moved`` gets those of each step."""
        began_s = time.time()
        key, between = arguments["first"], arguments["between"]
        for step, (source, target) in enumerate(steps):
            self._journal.put_operation(number, OperationRecord(SWAP, arguments, step, began_s))
            reached("exchange.noted")
            await self._journal.commit()
            reached("exchange.committed")
            moved.append(await self._transfer(entries[step % 2], source, target))
            reached("exchange.moved")
        first = {key + old[len(between) :]: info for old, info in moved[2].items()}
        return first, moved[1]

    async def _take_back(
        self,
        number: int,
        steps: Sequence[Step],
        made: Made,
        entries: Sequence[tuple[Entry, Place]],
        frozen: contextlib.ExitStack,
        freeze: Freeze,
    ) -> None:
        """The exchange failed: undo it, now or as soon as the store lets us. Until then its keys stay frozen."""

        def undone() -> None:
            for entry, where in entries:
                self._namespace.belief.expire(entry.inode)
                self._moved.settle(entry.inode, where)

        async def later(held: contextlib.ExitStack) -> None:
            with held:
                await self._taking_back.patiently(number, steps, made)
                undone()

        try:
            await self._taking_back.all(number, steps, made)
        except (LuxError, OSError) as exc:
            log.warning("an exchange with %r failed, and cannot be undone yet: %s", steps[0][0], exc)
            freeze.stick("an exchange that failed and cannot be undone yet")
            self._nursery.start_soon(later, frozen.pop_all())
        else:
            undone()

    async def _transfer(self, entry: Entry, source: str, target: str) -> dict[str, ObjectInfo]:
        """Copy an object, or all below a prefix, and remove the original; returns the copies by their old keys."""
        if entry.kind is Kind.DIRECTORY:
            copied, originals = await self._copies.copy_below(source, target)
            reached("exchange.copied")
            await self._deletes.now(list(originals) or [source])
            return copied
        if not self._tree.in_store(entry):
            return {}
        info = await self._writeback.copy(source, target, None, entry.size)
        reached("exchange.copied")
        await self._deletes.now([source])
        return {source: info}
