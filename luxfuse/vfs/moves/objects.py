"""Moving one file, symlink or special file."""

from __future__ import annotations

import time
from collections.abc import Callable

from luxfuse.errors import LuxError, NotFound, VersionChanged, may_have_arrived
from luxfuse.index.entries import Entry
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.deletes import Deletes, Leftover
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import NOTHING_UNHEARD, Unheard
from luxfuse.vfs.errors import Stale
from luxfuse.vfs.files import Files
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.keys import MovedKeys
from luxfuse.vfs.moves.moved import MovedNames
from luxfuse.vfs.moves.noted import NOTHING, REPLACED_OVER, Over
from luxfuse.vfs.moves.operations import MOVE, Place
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack


class ObjectMoves:
    """Moves of single objects."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        tree: Tree,
        making: Making,
        removing: Removing,
        entries: DirtyEntries,
        files: Files,
        promises: Promises,
        publisher: Publisher,
        writeback: WriteBack,
        deletes: Deletes,
        journal: Journal,
        keys: MovedKeys,
        moved: MovedNames,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._tree = tree
        self._making = making
        self._removing = removing
        self._entries = entries
        self._files = files
        self._promises = promises
        self._publisher = publisher
        self._writeback = writeback
        self._deletes = deletes
        self._journal = journal
        self._keys = keys
        self._moved = moved

    async def move_dirty(self, place: Place, new_place: Place, dirty: Dirty, new_key: str, *, whiteout: bool) -> None:
        """The store does not have the content yet: it will be uploaded under the new key."""
        local = dirty.kind is Kind.SPECIAL
        replaced = self._replaced(new_place, new_key, local=local)
        with self._journal.together():
            self._move_dirty_here(place, new_place, dirty, new_key, replaced)
            if whiteout:
                self._making.make_whiteout(place)
            self._moved.changed(place, new_place)
        await self._journal.commit_made()
        reached("move-dirty.committed")
        if local and replaced and self._tree.is_through(replaced) and not self._files.copied.is_deferred(replaced):
            await self._deletes.make_noted(replaced)
        if self._tree.is_through(new_key) and not dirty.writers and dirty.must_push:
            await self._promises.sync(dirty)
        elif not dirty.writers:
            self._publisher.publish(dirty)

    def _move_dirty_here(self, place: Place, new_place: Place, dirty: Dirty, new_key: str, replaced: str) -> None:
        old_key, version = dirty.key, dirty.stored.expect
        was_there, unsure = dirty.may_be_stored, dirty.stored.resumed or dirty.stored.unheard
        unheard = dirty.unheard
        local = dirty.kind is Kind.SPECIAL
        target = self._namespace.peek(*new_place)
        replaced_version = self._tree.version_in_store(target) if target is not None else None
        replaced_unheard = self._tree.unheard(target) if target is not None else NOTHING_UNHEARD
        comes_back = dirty.stored.is_under(new_key)
        dirty.stored.replaces_removed(not local and self._deletes.pending(new_key) is not None and not comes_back)
        left = self._take_target(new_place, new_key, local=local)
        self._namespace.hold(dirty.inode, *new_place)
        self._names.move(*place, *new_place)
        reached("move-dirty.named")
        self._tree.note_renamed(*new_place)
        self._keys.rekey(dirty, new_place, new_key, left.version)
        dirty.stored.lies_over(left.sent)
        reached("move-dirty.rekeyed")
        if was_there:
            self._namespace.hold(None, *place)
            own = dirty.stored.is_under(old_key)  # else it is what an earlier move has replaced
            after = dirty.number if own and dirty.mode is not WriteMode.MUST_CACHE else 0
            self._entries.note_displaced(dirty)
            self._deletes.later(old_key, place, None if unsure else version, after, unheard)
        else:
            self._namespace.settle(None, *place)
        if replaced and target is not None:
            after = 0 if local or dirty.mode is WriteMode.MUST_CACHE else dirty.number
            self._deletes.later(replaced, new_place, replaced_version, after, replaced_unheard)
            self._files.copied.defer(replaced, target.inode)

    async def move(self, place: Place, new_place: Place, keys: Callable[[], tuple[str, str]], *, whiteout: bool) -> None:
        """Move an object that the store has; ``keys``: of its names. Raises `Stale`, `StoreError`, OSError."""

        async def ready(_key: str, new_key: str) -> None:
            if (target := self._namespace.peek(*new_place)) is not None:
                await self._writeback.not_in_flight(target.inode)
            await self._writeback.complete_files_over(new_key)

        key, new_key = await self._writeback.frozen.settled(keys, ready)
        with self._writeback.frozen.freeze(key, new_key):  # a directory above must not be moved meanwhile
            await self._move(place, new_place, key, new_key, whiteout=whiteout)

    async def _move(self, place: Place, new_place: Place, key: str, new_key: str, *, whiteout: bool) -> None:
        entry = self._tree.entry_of(place)
        replaced = self._replaced(new_place, new_key, local=False)
        target = self._namespace.peek(*new_place)
        number = self._journal.new_id()
        arguments = {
            "source": key,
            "target": new_key,
            "version": entry.version,
            "replaced": replaced,
            "inode": str(entry.inode),
            **self._over(target, new_place, new_key),
        }
        self._journal.put_operation(number, OperationRecord(MOVE, arguments, 0, time.time()))
        promised = self._making.promise_whiteout(place) if whiteout else None
        self._namespace.hold(entry.inode, *place)
        self._namespace.hold(None, *new_place)
        reached("move.noted")
        try:
            await self._journal.commit()
            reached("move.committed")
            info = await self._writeback.copy(key, new_key, entry.version or None, entry.size)
            reached("move.copied")
        except (LuxError, OSError) as exc:
            self._undo(number, promised, entry, place, new_place, target)
            if target is None and may_have_arrived(exc) and self._deletes.pending(new_key) is None:
                self._take_away_late_copy(entry, new_place, new_key)
            if isinstance(exc, NotFound | VersionChanged):
                self._namespace.belief.expire(entry.inode)
                raise Stale(f"{key!r} changed in the under-store") from None
            raise
        with self._journal.together():
            self._deletes.reuse(new_key)
            reader, replaced_version = 0, None
            if (now := self._namespace.peek(*new_place)) is not None:
                replaced_version = self._tree.version_in_store(now)
                reader = now.inode if replaced and self._files.copied.needs_store(now.inode) else 0
                self._removing.forget(*new_place, now)
            self._names.move(*place, *new_place)
            self._tree.note_renamed(*new_place)
            self._keys.adopt_version(new_place, key, new_key, info)
            self._moved.changed(place, new_place)
            self._moved.settle(entry.inode, new_place)
            self._moved.leave(place, promised)
        reached("move.named")
        if reader:
            self._namespace.hold(None, *new_place)
            self._deletes.later(replaced, new_place, replaced_version)
            self._files.copied.defer(replaced, reader)
            await self._journal.commit_made()
        versions = {key: arguments["version"] or None}
        if replaced and not reader:
            versions[replaced] = replaced_version
        await self._moved.delete_originals(versions, place, key)
        reached("move.deleted")
        self._journal.drop_operation(number)
        reached("move.dropped")

    def _take_away_late_copy(self, entry: Entry, new_place: Place, new_key: str) -> None:
        """The copy may have been made unheard of, or be made yet, under a name that was free: it has to go."""
        known = entry.attributes.mtime_ns if entry.attributes is not None else None
        copied = (known if known is not None else entry.mtime_ns, entry.size)
        self._namespace.hold(None, *new_place)
        self._deletes.later(new_key, new_place, None, 0, (ABSENT, (copied,)))

    def _replaced(self, place: Place, new_key: str, *, local: bool) -> str:
        """Return the key of the object that a move replaces, if no other one takes that key; else "".

        ``local``: the moved entry is of this machine only.
        """
        target = self._namespace.peek(*place)
        if target is None or not self._tree.in_store(target):
            return ""
        key = self._namespace.places.key(*place, target.kind)
        return key if local or key != new_key else ""

    def _over(self, target: Entry | None, place: Place, new_key: str) -> dict[str, str]:
        """Note what a move may replace: a restart finishes it, and others may have written under the key by then."""
        if (pending := self._deletes.pending(new_key)) is not None:
            return _over(pending.version, (pending.was, pending.sent)).noted()
        if target is None or not self._tree.in_store(target):
            return NOTHING.noted()
        over = _over(self._tree.version_in_store(target), self._tree.unheard(target))
        if self._namespace.places.key(*place, target.kind) == new_key:
            return over.noted()
        return {**NOTHING.noted(), **over.noted(REPLACED_OVER)}

    def _take_target(self, place: Place, new_key: str, *, local: bool) -> Leftover:
        """Forget the entry that has the new name; returns what the store may have under the new key.

        ``local``: as for `_replaced`; the store has nothing of the moved entry, and its object of the new name goes.
        """
        if local:
            if (target := self._namespace.peek(*place)) is not None:
                self._removing.forget(*place, target)
            return Leftover(ABSENT)
        left = self._deletes.reuse(new_key)
        target = self._namespace.peek(*place)
        if target is not None:
            key = self._namespace.places.key(*place, target.kind)
            if not left.any and self._tree.in_store(target) and key == new_key:
                was, sent = self._tree.unheard(target)
                left = Leftover(was, sent) if sent else Leftover(self._tree.version_in_store(target))
            self._removing.forget(*place, target)
        return left

    def _undo(
        self, number: int, promised: int | None, entry: Entry, place: Place, new_place: Place, target: Entry | None
    ) -> None:
        """The copying failed: everything is where it was. ``target``: what has the new name."""
        self._journal.drop_operation(number)
        if promised is not None:
            self._journal.drop_file(promised)
        self._moved.settle(entry.inode, place)
        if target is None or self._entries.get(target.inode) is None:
            self._namespace.settle(None, *new_place)


def _over(version: str | None, unheard: Unheard) -> Over:
    was, sent = unheard
    return Over(was, sent) if version is None and sent else Over(version)
