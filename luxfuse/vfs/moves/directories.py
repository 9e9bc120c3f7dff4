"""Moving a directory: object by object. While that goes on, nothing below it is pushed or removed."""

from __future__ import annotations

import time
from collections.abc import Callable

from luxfuse.index.entries import Entry
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.keeping import keep
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.copies import DirectoryCopies
from luxfuse.vfs.moves.keys import MovedKeys
from luxfuse.vfs.moves.moved import MovedNames
from luxfuse.vfs.moves.operations import MOVE_DIRECTORY, Place
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack


class DirectoryMoves:
    """Moves of directories."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        tree: Tree,
        making: Making,
        removing: Removing,
        entries: DirtyEntries,
        promises: Promises,
        writeback: WriteBack,
        journal: Journal,
        store: Store,
        copies: DirectoryCopies,
        keys: MovedKeys,
        moved: MovedNames,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._tree = tree
        self._making = making
        self._removing = removing
        self._entries = entries
        self._promises = promises
        self._writeback = writeback
        self._journal = journal
        self._store = store
        self._copies = copies
        self._keys = keys
        self._moved = moved

    async def move(self, place: Place, new_place: Place, keys: Callable[[], tuple[str, str]], *, whiteout: bool) -> None:
        """Move a directory, object by object; ``keys``: of its names. Raises `KeyTooLong`, `StoreError`, OSError."""
        entry = self._tree.entry_of(place)
        number = self._journal.new_id()

        async def ready(prefix: str, new_prefix: str) -> None:
            await self._copies.require_room(prefix, new_prefix)
            await self._writeback.finish_below(prefix, new_prefix)

        with self._writeback.frozen.let_none_begin(*keys()):
            prefix, new_prefix = await self._writeback.frozen.settled(keys, ready, first=True)
        with self._writeback.frozen.freeze(prefix, new_prefix):
            for dirty in self._entries.below(prefix):
                await self._promises.complete(dirty)  # what it lacks goes with the old key
                await keep(self._store, dirty)  # and so does what others set
            self._namespace.hold(entry.inode, *place)
            self._namespace.hold(None, *new_place)
            arguments = {"source": prefix, "target": new_prefix, "inode": str(entry.inode)}
            self._journal.put_operation(number, OperationRecord(MOVE_DIRECTORY, arguments, 0, time.time()))
            promised = self._making.promise_whiteout(place) if whiteout else None
            reached("move-directory.noted")
            try:
                await self._journal.commit()
                reached("move-directory.committed")
                copied, originals = await self._copies.copy_below(prefix, new_prefix)
                reached("move-directory.copied")
                self._copies.require_room_for_dirty(prefix, new_prefix)  # what was made meanwhile
            except BaseException:
                self._undo_copies(number, promised, entry, place, new_place)
                raise
            with self._journal.together():
                marked = False
                if (target := self._namespace.peek(*new_place)) is not None:
                    marked = self._tree.in_store(target)
                    self._removing.forget(*new_place, target)
                self._names.move(*place, *new_place)
                self._tree.note_renamed(*new_place)
                self._namespace.moved(entry.inode)
                below = self._entries.below(prefix)
                self._keys.rekey_below(below, prefix, new_prefix, new_place, copied, marked=marked)
                for key, info in copied.items():
                    self._keys.note_copied(key, new_prefix + key[len(prefix) :], new_place, len(new_prefix), info)
                self._moved.changed(place, new_place)
                self._moved.leave(place, promised)
            reached("move-directory.named")
            await self._journal.commit_made()
            reached("move-directory.names-committed")
            await self._moved.delete_originals(originals or {prefix: None}, place, prefix)
            reached("move-directory.deleted")
            self._journal.drop_operation(number)
            self._moved.settle(entry.inode, new_place)
            await self._journal.commit_made()
            reached("move-directory.dropped")

    def _undo_copies(self, number: int, promised: int | None, entry: Entry, place: Place, new_place: Place) -> None:
        """The copying failed: everything is where it was, beside copies below the new name, which then exists."""
        self._journal.drop_operation(number)
        if promised is not None:
            self._journal.drop_file(promised)
        self._moved.settle(entry.inode, place)
        self._namespace.settle(None, *new_place)
