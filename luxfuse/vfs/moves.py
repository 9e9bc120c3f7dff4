"""Renaming. The store has no rename: an object is copied to its new key and then removed from the old one.

Each move is in the journal before it begins and until it is over; a restart finishes it (`vfs.recovery`), which copies
again what was not removed yet. What the store does not have yet only changes its key. A directory is moved object by
object; while that goes on, nothing below it is pushed or removed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.together import together
from luxfuse.core import names as naming
from luxfuse.errors import LuxError, NotFound, StoreError, VersionChanged
from luxfuse.index.entries import Entry, describe
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, ObjectInfo, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import BadFlags, Exists, IsADirectory, NoSuchName, NotADirectory, Stale
from luxfuse.vfs.files import Files
from luxfuse.vfs.keeping import keep
from luxfuse.vfs.making import Making
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.taking_back import Step, TakingBack
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import Freeze, WriteBack

log = logging.getLogger(__name__)

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
CONCURRENT_COPIES = 16
MOVE, MOVE_DIRECTORY, SWAP = "move", "move-directory", "exchange"

Place = tuple[int, bytes]


class Moves:
    """The renames of one mount."""

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
        notes: Notes,
        promises: Promises,
        publisher: Publisher,
        writeback: WriteBack,
        journal: Journal,
        cache: PageCache,
        store: Store,
        directories: OpenDirectories,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._tree = tree
        self._making = making
        self._removing = removing
        self._entries = entries
        self._files = files
        self._notes = notes
        self._promises = promises
        self._publisher = publisher
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._journal = journal
        self._cache = cache
        self._store = store
        self._directories = directories
        self._nursery = nursery
        self._taking_back = TakingBack(journal, store, writeback)

    async def rename(self, place: Place, new_place: Place, flags: int) -> None:
        """rename(2), with RENAME_NOREPLACE (1), RENAME_EXCHANGE (2) or RENAME_WHITEOUT (4, also with 1)."""
        if flags not in (0, NOREPLACE, EXCHANGE, WHITEOUT, WHITEOUT | NOREPLACE):
            raise BadFlags(f"rename with flags {flags:#x} is not known")
        async with self._tree.turn(place, new_place):
            entry = await self._namespace.lookup(*place)
            target = await self._find(new_place)
            if flags & NOREPLACE and target is not None:
                raise Exists(f"{new_place[1]!r} exists")
            if flags == EXCHANGE:
                if target is None:
                    raise NoSuchName(f"{new_place[1]!r} does not exist")
                await self._keep_directory(entry, new_place)
                await self._keep_directory(target, place)
                await self._exchange(place, new_place)
            elif target is None or target.inode != entry.inode:
                await self._check_target(entry, target, new_place[1])
                await self._removing.keep_directory(*place)
                await self._keep_directory(entry, new_place)
                await self._move(place, new_place, whiteout=bool(flags & WHITEOUT))

    async def _find(self, place: Place) -> Entry | None:
        try:
            return await self._namespace.lookup(*place)
        except NoSuchName:
            return None

    async def _keep_directory(self, entry: Entry, new_place: Place) -> None:
        """What is of this machine only may take the place of all that the store has of a directory."""
        if self._tree.stays_here(entry):
            await self._removing.keep_directory(*new_place)

    async def _check_target(self, entry: Entry, target: Entry | None, name: bytes) -> None:
        if target is None:
            return
        if target.kind is Kind.DIRECTORY:
            if entry.kind is not Kind.DIRECTORY:
                raise IsADirectory(f"{name!r} is a directory")
            await self._removing.require_empty(target.inode, name)
        elif entry.kind is Kind.DIRECTORY:
            raise NotADirectory(f"{name!r} is no directory")

    async def _exchange(self, place: Place, new_place: Place) -> None:
        """Swap two names: in the store over a third key, here at once."""
        number = self._journal.new_id()
        first, second = self._tree.row_of(place), self._tree.row_of(new_place)
        between = (place[0], f".luxfuse-exchange-{number:x}".encode())
        keys = self._namespace.key(*place, first.kind), self._namespace.key(*new_place, second.kind)
        new_keys = self._tree.new_key(*new_place, first.kind), self._tree.new_key(*place, second.kind)
        between_key = self._tree.new_key(*between, first.kind)
        await self._require_room(keys[0], between_key, new_keys[0])
        await self._require_room(keys[1], new_keys[1])
        for entry, key in zip((first, second), keys, strict=True):
            await self._bring(entry, key)
        for key in new_keys:
            await self._writeback.settled(key)  # a delete of what had the name before must not meet the new object
        directories = [entry.inode for entry in (first, second) if entry.kind is Kind.DIRECTORY]
        steps = (keys[0], between_key), (keys[1], new_keys[1]), (between_key, new_keys[0])
        with contextlib.ExitStack() as frozen, self._namespace.moving.exchanged(*directories):
            freeze = frozen.enter_context(self._writeback.freeze(*keys, between_key))
            for entry, where in ((first, place), (second, new_place)):
                self._namespace.hold(entry.inode, *where)
            arguments = {"first": keys[0], "second": keys[1], "between": between_key}
            try:
                copies = await self._swap_objects(number, arguments, (first, second), steps)
            except (LuxError, OSError):
                await self._take_back(number, steps, ((first, place), (second, new_place)), frozen, freeze)
                raise
            self._journal.drop_operation(number)
            self._names.move(*place, *between)
            self._names.move(*new_place, *place)
            self._names.move(*between, *new_place)
            self._tree.note_renamed(*place)
            self._tree.note_renamed(*new_place)
            self._namespace.moved(*directories)
            below = self._entries.below(keys[0]), self._entries.below(keys[1])  # before any of them changes its key
            self._note_exchanged(new_place, keys[0], new_keys[0], copies[0], below[0])
            self._note_exchanged(place, keys[1], new_keys[1], copies[1], below[1])
            reached("exchange.named")
            self._changed(place, new_place)
            await self._journal.commit()
            reached("exchange.dropped")

    async def _require_room(self, prefix: str, *new_prefixes: str) -> None:
        """Raise `KeyTooLong` if the store could not hold all that is below a directory, once that has its new name."""
        for new_prefix in new_prefixes:
            if not prefix.endswith("/") or not self._tree.may_be_too_long(prefix, new_prefix):
                continue
            self._require_room_for_dirty(prefix, new_prefix)
            async with contextlib.aclosing(self._store.list_all(prefix)) as pages:
                async for page in pages:
                    for info in page.objects:
                        self._tree.check_key_below(new_prefix + info.key[len(prefix) :])

    def _require_room_for_dirty(self, prefix: str, new_prefix: str) -> None:
        for dirty in self._entries.below(prefix):
            self._tree.check_key_below(new_prefix + dirty.key[len(prefix) :])

    def _note_exchanged(
        self, place: Place, key: str, new_key: str, copied: dict[str, ObjectInfo], below: list[Dirty]
    ) -> None:
        row = self._tree.row_of(place)
        if row.kind is Kind.DIRECTORY:
            self._rekey_below(below, key, new_key, place, copied)
            for old, info in copied.items():
                self._note_copied(old, new_key + old[len(key) :], place, len(new_key), info)
        elif key in copied:
            self._adopt_version(place, key, new_key, copied[key])
        elif (dirty := self._entries.get(row.inode)) is not None:
            self._rekey(dirty, place, new_key, ABSENT)
        self._settle(row.inode, place)

    async def _bring(self, entry: Entry, key: str) -> None:
        """Bring what is dirty of an entry to the store, so that there are objects to be moved."""
        await self._writeback.settled(key)
        below = self._entries.below(key) if entry.kind is Kind.DIRECTORY else [self._entries.get(entry.inode)]
        for dirty in below:
            if dirty is not None and dirty.must_push:
                dirty.close()  # what goes up is as good as synced
                await self._writeback.push(dirty)

    async def _swap_objects(
        self, number: int, arguments: dict[str, str], entries: tuple[Entry, Entry], steps: Sequence[Step]
    ) -> tuple[dict[str, ObjectInfo], dict[str, ObjectInfo]]:
        """Make the three moves in the store; returns what was copied, by the old keys."""
        began_s = time.time()
        key, between = arguments["first"], arguments["between"]
        moved: list[dict[str, ObjectInfo]] = []
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
        entries: Sequence[tuple[Entry, Place]],
        frozen: contextlib.ExitStack,
        freeze: Freeze,
    ) -> None:
        """The exchange failed: undo it, now or as soon as the store lets us. Until then what is in it stays frozen."""

        def undone() -> None:
            for entry, where in entries:
                self._namespace.expire(entry.inode)
                self._settle(entry.inode, where)

        async def later(held: contextlib.ExitStack) -> None:
            with held:
                await self._taking_back.patiently(number, steps)
                undone()

        try:
            await self._taking_back.all(number, steps)
        except (LuxError, OSError) as exc:
            log.warning("an exchange with %r failed, and cannot be undone yet: %s", steps[0][0], exc)
            freeze.stick()
            self._nursery.start_soon(later, frozen.pop_all())
        else:
            undone()

    async def _transfer(self, entry: Entry, source: str, target: str) -> dict[str, ObjectInfo]:
        """Copy an object, or all below a prefix, and remove the original; returns the copies by their old keys."""
        if entry.kind is Kind.DIRECTORY:
            copied, keys = await self._copy_below(source, target)
            reached("exchange.copied")
            await self._deletes.now(keys or [source])
            return copied
        if not self._tree.in_store(entry):
            return {}
        info = await self._writeback.copy(source, target, None, entry.size)
        reached("exchange.copied")
        await self._deletes.now([source])
        return {source: info}

    # -- one move

    async def _move(self, place: Place, new_place: Place, *, whiteout: bool) -> None:
        entry = self._tree.row_of(place)
        key = self._namespace.key(*place, entry.kind)
        new_key = self._tree.new_key(*new_place, entry.kind)
        await self._writeback.thawed(key)
        if entry.kind is Kind.DIRECTORY:
            await self._move_directory(place, new_place, key, new_key, whiteout=whiteout)
            return
        await self._writeback.secure_stored(new_key, self._entries.get(entry.inode))
        dirty = await self._not_in_flight(entry.inode)
        if dirty is not None and (dirty.source is not None or not dirty.may_be_stored or dirty.stored.expect == ABSENT):
            await self._move_dirty(place, new_place, dirty, new_key, whiteout=whiteout)
            return
        if dirty is not None:
            await self._writeback.push(dirty)  # its new attributes, which the copy then has
        await self._move_object(place, new_place, key, new_key, whiteout=whiteout)

    async def _not_in_flight(self, inode: int) -> Dirty | None:
        while (dirty := self._entries.get(inode)) is not None and dirty.lock.locked():
            await self._writeback.landed(dirty)
        return dirty

    async def _move_dirty(self, place: Place, new_place: Place, dirty: Dirty, new_key: str, *, whiteout: bool) -> None:
        """The store does not have the content yet: it will go up under the new key."""
        old_key, version = dirty.key, dirty.stored.expect
        was_there = dirty.may_be_stored
        local = dirty.kind is Kind.SPECIAL
        target = self._namespace.peek(*new_place)
        replaced = self._replaced(new_place, new_key, local=local)
        replaced_version = self._tree.version_in_store(target) if target is not None else None
        comes_back = dirty.stored.is_under(new_key)
        dirty.stored.replaces_removed(not local and self._deletes.pending(new_key) is not None and not comes_back)
        expect = self._take_target(new_place, new_key, local=local)
        self._namespace.hold(dirty.inode, *new_place)
        self._names.move(*place, *new_place)
        self._tree.note_renamed(*new_place)
        self._rekey(dirty, new_place, new_key, expect)
        reached("move-dirty.rekeyed")
        if was_there:
            self._namespace.hold(None, *place)
            own = dirty.stored.is_under(old_key)  # else it is what an earlier move has replaced
            after = dirty.number if own and dirty.mode is not WriteMode.MUST_CACHE else 0
            self._entries.note_displaced(dirty)
            self._deletes.later(old_key, place, None if dirty.stored.resumed else version, after)
        else:
            self._namespace.settle(None, *place)
        if replaced and target is not None:
            after = 0 if local or dirty.mode is WriteMode.MUST_CACHE else dirty.number
            self._deletes.later(replaced, new_place, replaced_version, after)
            self._files.copied.defer(replaced, target.inode)
        if whiteout:
            self._making.make_whiteout(place)
        self._changed(place, new_place)
        await self._journal.commit()
        reached("move-dirty.committed")
        if local and replaced and self._tree.is_through(replaced) and not self._files.copied.is_deferred(replaced):
            await self._deletes.make_noted(replaced)
        if self._tree.is_through(new_key) and not dirty.writers and dirty.must_push:
            await self._promises.sync(dirty)
        elif not dirty.writers:
            self._publisher.publish(dirty)

    def _rekey(self, dirty: Dirty, place: Place, key: str, expect: str | None) -> None:
        dirty.take_key(place, key, self._notes.mode_of(key), expect)
        self._notes.note(dirty)

    def _replaced(self, place: Place, new_key: str, *, local: bool) -> str:
        """Return the key of the object that a move replaces, if no other one takes that key; else "".

        ``local``: what is moved is of this machine only.
        """
        target = self._namespace.peek(*place)
        if target is None or not self._tree.in_store(target):
            return ""
        key = self._namespace.key(*place, target.kind)
        return key if local or key != new_key else ""

    def _take_target(self, place: Place, new_key: str, *, local: bool) -> str | None:
        """Forget what has the new name; returns what the store is expected to have under the new key.

        ``local``: as for `_replaced`; the store has nothing of that, and what it has goes.
        """
        if local:
            if (target := self._namespace.peek(*place)) is not None:
                self._removing.forget(*place, target)
            return ABSENT
        expect = self._deletes.reuse(new_key)
        target = self._namespace.peek(*place)
        if target is not None:
            if expect == ABSENT and self._tree.in_store(target) and self._namespace.key(*place, target.kind) == new_key:
                expect = self._tree.version_in_store(target)
            self._removing.forget(*place, target)
        return expect

    def _changed(self, place: Place, new_place: Place) -> None:
        for directory in {place[0], new_place[0]}:
            self._tree.touch(directory)
            self._directories.forget_positions(directory)

    async def _move_object(self, place: Place, new_place: Place, key: str, new_key: str, *, whiteout: bool) -> None:
        entry = self._tree.row_of(place)
        replaced = self._replaced(new_place, new_key, local=False)
        target = self._namespace.peek(*new_place)
        if target is not None:
            await self._not_in_flight(target.inode)
        await self._writeback.spare(new_key)
        number = self._journal.new_id()
        arguments = {
            "source": key,
            "target": new_key,
            "version": entry.version,
            "replaced": replaced,
            "inode": str(entry.inode),
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
            self._journal.drop_operation(number)
            if promised is not None:
                self._journal.drop_file(promised)
            self._settle(entry.inode, place)
            if target is None or self._entries.get(target.inode) is None:
                self._namespace.settle(None, *new_place)
            if isinstance(exc, NotFound | VersionChanged):
                self._namespace.expire(entry.inode)
                raise Stale(f"{key!r} changed in the under-store") from None
            raise
        self._deletes.reuse(new_key)
        reader = 0
        if (now := self._namespace.peek(*new_place)) is not None:
            reader = now.inode if replaced and self._files.copied.needs_store(now.inode) else 0
            self._removing.forget(*new_place, now)
        self._names.move(*place, *new_place)
        self._tree.note_renamed(*new_place)
        self._adopt_version(new_place, key, new_key, info)
        self._changed(place, new_place)
        self._settle(entry.inode, new_place)
        self._leave(place, promised)
        reached("move.named")
        if reader:
            self._namespace.hold(None, *new_place)
            self._deletes.later(replaced, new_place, None)
            self._files.copied.defer(replaced, reader)
            await self._journal.commit()
        await self._delete_moved([key, *([replaced] if replaced and not reader else [])], place, key)
        reached("move.deleted")
        self._journal.drop_operation(number)
        reached("move.dropped")

    def _leave(self, place: Place, promised: int | None) -> None:
        """A name is gone from where it was; ``promised``: the journal's number of the whiteout that takes its place."""
        self._namespace.hold(None, *place)
        if promised is not None:
            self._journal.drop_file(promised)
            self._making.make_whiteout(place)

    def _settle(self, inode: int, place: Place) -> None:
        """The store has what has the name, unless somebody has begun to change it, or it is not to go there."""
        if self._entries.get(inode) is None:
            self._namespace.settle(inode, *place)
        else:
            self._namespace.hold(inode, *place)

    async def _delete_moved(self, keys: list[str], place: Place, key: str) -> None:
        """The copies are made: remove the originals, later if the store does not do it now."""
        try:
            await self._deletes.now(keys)
        except StoreError as exc:
            log.warning("%r was renamed, but its old object cannot be removed yet: %s", key, exc)
            for old in keys:
                self._deletes.later(old, place, None)
            await self._journal.commit()
        else:
            now = self._namespace.peek(*place)
            if now is None or self._entries.get(now.inode) is None:  # else a whiteout has the name
                self._namespace.settle(None, *place)

    def _adopt_version(self, place: Place, key: str, new_key: str, info: ObjectInfo) -> None:
        """An entry of the store has a new key, and so a new version: keep what is cached of it."""
        row = self._tree.row_of(place)
        dirty = self._entries.get(row.inode)
        if dirty is not None:
            self._rekey_copied(dirty, place, new_key, info)
        else:
            self._keep_cached(place, row, key, new_key, info)

    def _rekey_copied(self, dirty: Dirty, place: Place, new_key: str, info: ObjectInfo) -> None:
        """What is dirty has a new key, under which the store has a copy of what it had of it under the old one."""
        old_key, uploaded, row = dirty.key, dirty.uploaded, self._tree.row_of(place)
        dirty.stored.copied(old_key, new_key, info.version)
        self._rekey(dirty, place, new_key, info.version)
        if dirty.source is not None:  # somebody has it open for writing: the copy has what was uploaded
            dirty.copy_has(uploaded)
            row.version = info.version
            self._namespace.put(*place, row)
        elif dirty.kind is not Kind.DIRECTORY:
            self._keep_cached(place, row, old_key, new_key, info)

    def _keep_cached(self, place: Place, row: Entry, key: str, new_key: str, info: ObjectInfo) -> None:
        oid = self._cache.rename(key, row.version, row.size, new_key, info.version)
        row.version, row.checked_s = info.version, self._namespace.now_s()
        describe(row, row.attributes, info.mtime_ns, row.checked_s)
        self._namespace.put(*place, row)
        self._files.moved(row.inode, row, new_key, oid)

    # -- directories

    async def _move_directory(
        self, place: Place, new_place: Place, prefix: str, new_prefix: str, *, whiteout: bool
    ) -> None:
        entry = self._tree.row_of(place)
        number = self._journal.new_id()
        await self._require_room(prefix, new_prefix)
        await self._writeback.settled(prefix, new_prefix)
        with self._writeback.freeze(prefix, new_prefix):
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
                copied, keys = await self._copy_below(prefix, new_prefix)
                reached("move-directory.copied")
                self._require_room_for_dirty(prefix, new_prefix)  # what was made meanwhile
            except BaseException:
                self._undo_copies(number, promised, entry, place, new_place)
                raise
            marked = False
            if (target := self._namespace.peek(*new_place)) is not None:
                marked = self._tree.in_store(target)
                self._removing.forget(*new_place, target)
            self._names.move(*place, *new_place)
            self._tree.note_renamed(*new_place)
            self._namespace.moved(entry.inode)
            below = self._entries.below(prefix)
            self._rekey_below(below, prefix, new_prefix, new_place, copied, marked=marked)
            for key, info in copied.items():
                self._note_copied(key, new_prefix + key[len(prefix) :], new_place, len(new_prefix), info)
            self._changed(place, new_place)
            self._leave(place, promised)
            reached("move-directory.named")
            await self._journal.commit()
            reached("move-directory.names-committed")
            await self._delete_moved(keys or [prefix], place, prefix)
            reached("move-directory.deleted")
            self._journal.drop_operation(number)
            self._settle(entry.inode, new_place)
            await self._journal.commit()
            reached("move-directory.dropped")

    def _undo_copies(self, number: int, promised: int | None, entry: Entry, place: Place, new_place: Place) -> None:
        """The copying failed: everything is where it was, beside copies below the new name, which then exists."""
        self._journal.drop_operation(number)
        if promised is not None:
            self._journal.drop_file(promised)
        self._settle(entry.inode, place)
        self._namespace.settle(None, *new_place)

    async def _copy_below(self, prefix: str, new_prefix: str) -> tuple[dict[str, ObjectInfo], list[str]]:
        """Copy every object below a prefix whose content is not about to be replaced; returns copies and all old keys."""
        keys: list[str] = []
        copied: dict[str, ObjectInfo] = {}
        limiter = trio.CapacityLimiter(CONCURRENT_COPIES)
        changed = {d.key for d in self._entries.below(prefix) if d.must_push and d.source is not None and d.closed}

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
                keys += [info.key for info in page.objects]
                wanted = [info for info in page.objects if info.key not in changed]
                # Markers first: where directories exist by themselves, their files need them.
                async with together() as start:
                    for info in sorted(wanted, key=lambda i: (not i.key.endswith("/"), i.key)):
                        start(copy, info)
                if failed:
                    raise failed[0]
        return copied, keys

    def _rekey_below(
        self,
        below: list[Dirty],
        prefix: str,
        new_prefix: str,
        root: Place,
        copied: dict[str, ObjectInfo],
        *,
        marked: bool = False,
    ) -> None:
        """What is dirty below the directory, or is the directory itself, goes up under its new key.

        ``marked``: the store has a marker of the directory that the moved one replaces.
        """
        for dirty in below:
            if dirty.place is None:
                continue
            if dirty.key == prefix:
                dirty.take_place(root)
                self._namespace.hold(dirty.inode, *root)
            info, new_key = copied.get(dirty.key), new_prefix + dirty.key[len(prefix) :]
            if dirty.kind is Kind.SPECIAL:
                info = None  # it is somebody else's object, which has come to have its key
            if info is not None:
                self._rekey_copied(dirty, dirty.place, new_key, info)
            else:
                self._rekey(dirty, dirty.place, new_key, None if marked and new_key == new_prefix else ABSENT)
            if dirty.must_push and (dirty.closed or not dirty.writers):
                self._writeback.schedule(dirty)

    def _note_copied(self, key: str, new_key: str, root: Place, cut: int, info: ObjectInfo) -> None:
        """Find the entry of a moved object below its moved directory, and keep what is cached of it."""
        entry: Entry | None = self._tree.row_of(root)
        place = root
        parts = new_key[cut:].removesuffix(naming.SYMLINK_SUFFIX).split("/")
        for part in parts:
            if entry is None or entry.kind is not Kind.DIRECTORY or not part:
                break
            place = (entry.inode, part.encode())
            entry = self._namespace.peek(*place)
        if entry is not None and entry.kind is not Kind.DIRECTORY and parts[-1] and self._entries.get(entry.inode) is None:
            self._adopt_version(place, key, new_key, info)
