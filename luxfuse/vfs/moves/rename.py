"""Renaming. The store has no rename: an object is copied to its new key and then removed from the old one.

Each move is in the journal before it begins and until it is over; a restart finishes it (`vfs.recovery`), which copies
again the objects that were not removed yet. A file that the store does not have yet only changes its key. A directory is
moved object by object; while that goes on, nothing below it is pushed or removed.
"""

from __future__ import annotations

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.index.entries import Entry
from luxfuse.index.journal import Journal
from luxfuse.index.names import Names
from luxfuse.types import ABSENT, Kind
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import BadFlags, Exists, IsADirectory, NoSuchName, NotADirectory
from luxfuse.vfs.files import Files
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.copies import DirectoryCopies
from luxfuse.vfs.moves.directories import DirectoryMoves
from luxfuse.vfs.moves.exchanges import Exchanges
from luxfuse.vfs.moves.keys import MovedKeys
from luxfuse.vfs.moves.moved import MovedNames
from luxfuse.vfs.moves.objects import ObjectMoves
from luxfuse.vfs.moves.operations import EXCHANGE, NOREPLACE, WHITEOUT, Place
from luxfuse.vfs.moves.taking_back import TakingBack
from luxfuse.vfs.moves.targets import Targets
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack


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
        recovered: Recovered,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._tree = tree
        self._removing = removing
        self._entries = entries
        self._writeback = writeback
        self._journal = journal
        self._promises = promises
        deletes = writeback.deletes
        copies = DirectoryCopies(tree=tree, entries=entries, store=store)
        keys = MovedKeys(
            namespace=namespace,
            tree=tree,
            entries=entries,
            files=files,
            notes=notes,
            writeback=writeback,
            cache=cache,
        )
        moved = MovedNames(
            namespace=namespace,
            tree=tree,
            making=making,
            entries=entries,
            deletes=deletes,
            journal=journal,
            open_directories=directories,
        )
        self._objects = ObjectMoves(
            namespace=namespace,
            names=names,
            tree=tree,
            making=making,
            removing=removing,
            entries=entries,
            files=files,
            promises=promises,
            publisher=publisher,
            writeback=writeback,
            deletes=deletes,
            journal=journal,
            keys=keys,
            moved=moved,
        )
        self._directories = DirectoryMoves(
            namespace=namespace,
            names=names,
            tree=tree,
            making=making,
            removing=removing,
            entries=entries,
            promises=promises,
            writeback=writeback,
            journal=journal,
            store=store,
            copies=copies,
            keys=keys,
            moved=moved,
        )
        self._exchanges = Exchanges(
            namespace=namespace,
            names=names,
            tree=tree,
            entries=entries,
            writeback=writeback,
            deletes=deletes,
            journal=journal,
            taking_back=TakingBack(journal, store, writeback, Targets(store, recovered)),
            nursery=nursery,
            copies=copies,
            keys=keys,
            moved=moved,
        )

    async def rename(self, place: Place, new_place: Place, flags: int) -> None:
        """rename(2), with RENAME_NOREPLACE (1), RENAME_EXCHANGE (2) or RENAME_WHITEOUT (4, also with 1)."""
        if flags not in (0, NOREPLACE, EXCHANGE, WHITEOUT, WHITEOUT | NOREPLACE):
            raise BadFlags(f"rename with flags {flags:#x} is not known")
        async with self._tree.turn(place, new_place):
            await self._journal.require()
            entry = await self._namespace.lookup(*place)
            target = await self._find(new_place)
            if flags & NOREPLACE and target is not None:
                raise Exists(f"{new_place[1]!r} exists")
            if flags == EXCHANGE:
                if target is None:
                    raise NoSuchName(f"{new_place[1]!r} does not exist")
                await self._keep_directory(entry, new_place)
                await self._keep_directory(target, place)
                await self._exchanges.exchange(place, new_place)
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
        """An entry of this machine only may take the place of all that the store has of a directory."""
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

    async def _move(self, place: Place, new_place: Place, *, whiteout: bool) -> None:
        entry = self._tree.entry_of(place)

        def keys() -> tuple[str, str]:
            return self._namespace.places.key(*place, entry.kind), self._tree.new_key(*new_place, entry.kind)

        async def ready(_key: str, new_key: str) -> None:
            await self._writeback.secure_stored(new_key, self._entries.get(entry.inode))
            while (dirty := await self._writeback.not_in_flight(entry.inode)) is not None and _lies_in_store(dirty):
                await self._promises.have_here(dirty)

        if entry.kind is Kind.DIRECTORY:
            await self._directories.move(place, new_place, keys, whiteout=whiteout)
            return
        _, new_key = await self._writeback.frozen.settled(keys, ready)
        dirty = self._entries.get(entry.inode)
        if dirty is not None and (dirty.source is not None or not dirty.may_be_stored or dirty.stored.expect == ABSENT):
            await self._objects.move_dirty(place, new_place, dirty, new_key, whiteout=whiteout)
            return
        if dirty is not None:
            await self._writeback.push(dirty)  # its new attributes, which the copy then has
        await self._objects.move(place, new_place, keys, whiteout=whiteout)


def _lies_in_store(dirty: Dirty) -> bool:
    """Whether only the store may have what was promised of a file: its object is not copied, but goes after an upload."""
    here = dirty.source is None or not dirty.closed or dirty.is_promised_here
    return not (here or dirty.emptied or dirty.finished or dirty.place is None)
