"""Hard links. A key has one name, so there are none; where the mount is told to, a further name gets a copy.

An object of the store is copied there. A file that it does not have yet, or never gets, is copied here: from staging file
to staging file, promised and uploaded like other writes. A crash leaves no name, or that of a whole copy: one in the store
has its name by being there, and one that was made here has none until it is promised.
"""

from __future__ import annotations

import logging
import stat as stat_module

import trio

from luxfuse.config import HardLinks
from luxfuse.errors import LuxError, NotFound, VersionChanged
from luxfuse.index.entries import Attributes, Entry, describe
from luxfuse.index.journal import Journal
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.attributes import Caller
from luxfuse.vfs.describing import Describing
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import NotPermitted, Stale
from luxfuse.vfs.making import Making
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer

log = logging.getLogger(__name__)


class Links:
    """link(2) of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        tree: Tree,
        making: Making,
        describing: Describing,
        entries: DirtyEntries,
        writer: Writer,
        notes: Notes,
        promises: Promises,
        writeback: WriteBack,
        journal: Journal,
        hardlinks: HardLinks,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._tree = tree
        self._making = making
        self._describing = describing
        self._entries = entries
        self._writer = writer
        self._notes = notes
        self._promises = promises
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._journal = journal
        self.hardlinks: HardLinks = hardlinks
        self._told = False

    async def link(self, inode: int, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Make a copy of a file, symlink or special file; returns its entry. ``target``: of a symlink.

        Raises `NotPermitted` where links are refused, and for directories, `Exists`, and as opening and writing do.
        """
        if self.hardlinks == "refuse":
            if not self._told:
                log.info('a hard link was refused: hardlinks = "copy" makes copies instead, independent of each other')
                self._told = True
            raise NotPermitted("an object has one name; the setting hardlinks can be copy")
        entry = await self._describing.known(inode)
        if entry.kind is Kind.DIRECTORY:
            raise NotPermitted("a directory has one name")
        known = entry.attributes or Attributes()
        owner = Caller(caller.uid if known.uid is None else known.uid, caller.gid if known.gid is None else known.gid)
        if entry.kind is Kind.SYMLINK:
            return await self._making.symlink(parent, name, target, owner)
        if entry.kind is Kind.SPECIAL:
            return await self._making.mknod(parent, name, known.mode or stat_module.S_IFIFO, known.rdev or 0, owner)
        return await self._link_file(inode, parent, name)

    async def _link_file(self, inode: int, parent: int, name: bytes) -> Entry:
        new_key = self._tree.new_key(parent, name, Kind.FILE)
        stays_here = self._notes.mode_of(new_key) is WriteMode.MUST_CACHE
        while (dirty := self._entries.get(inode)) is not None and dirty.lock.locked():
            await self._writeback.landed(dirty)
        if stays_here or (dirty is not None and not self._is_stored(dirty)):
            return await self._copy_here(inode, parent, name)
        return await self._copy_there(inode, parent, name)

    @staticmethod
    def _is_stored(dirty: Dirty) -> bool:
        """Whether the store has the content of a file as it is now, under its key."""
        if dirty.mode is WriteMode.MUST_CACHE or not dirty.may_be_stored or dirty.stored.expect in (ABSENT, None):
            return False
        return not dirty.content_changed(dirty.uploaded)

    async def _copy_there(self, inode: int, parent: int, name: bytes) -> Entry:
        def keys() -> tuple[str, str]:
            above, base, entry = self._namespace.places.locate(inode)
            return self._namespace.places.key(above, base, entry.kind), self._tree.new_key(parent, name, Kind.FILE)

        async with self._tree.turn((parent, name)):
            await self._tree.require_absent(parent, name)
            key, new_key = await self._writeback.frozen.settled(keys)
            entry = self._tree.entry(inode)
            with self._writeback.frozen.freeze(key, new_key):  # a directory above must not be moved meanwhile
                made = await self._copy_object(entry, key, (parent, name), new_key)
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.attributes_changed and entry.attributes is not None:
            await self._describing.put_attributes(made.inode, entry.attributes)
        return self._tree.entry(made.inode)

    async def _copy_object(self, entry: Entry, key: str, place: tuple[int, bytes], new_key: str) -> Entry:
        self._namespace.hold(None, *place)
        reached("link.held")
        try:
            info = await self._writeback.copy(key, new_key, entry.version or None, entry.size)
            reached("link.copied")
        except (LuxError, OSError) as exc:
            self._namespace.settle(None, *place)
            if isinstance(exc, NotFound | VersionChanged):
                self._namespace.belief.expire(entry.inode)
                raise Stale(f"{key!r} changed in the under-store") from None
            raise
        doomed = self._deletes.reuse(new_key).any
        now_s = self._namespace.now_s()
        made = self._names.create(
            *place,
            Kind.FILE,
            attributes=entry.attributes,
            size=entry.size,
            version=info.version,
            mtime_ns=info.mtime_ns or entry.mtime_ns,
            checked_s=now_s,
        )
        describe(made, entry.attributes, info.mtime_ns, now_s)
        self._namespace.put(*place, made)
        self._tree.touch(place[0])
        self._namespace.settle(None, *place)
        reached("link.named")
        if doomed:  # a restart would remove it
            await self._journal.commit_made()
        return made

    async def _copy_here(self, inode: int, parent: int, name: bytes) -> Entry:
        source = await self._writer.begin(inode)
        source.opened()  # it stays as it is until it has been copied
        try:
            if source.needs_base:
                await self._promises.complete(source)
            async with self._tree.turn((parent, name)):
                await self._tree.require_absent(parent, name)
                made, _ = self._making.make_like(parent, name, self._notes.entry(source).attributes or Attributes())
                made.writers += 1
            reached("link.made")
            try:
                with trio.CancelScope(shield=True):
                    await self._writer.copy_content(source, made)
                reached("link.filled")
                await self._promises.sync(made)
                reached("link.promised")
            except BaseException:
                self._making.undo(made)
                raise
            finally:
                self._promises.closed(made)
        finally:
            self._promises.closed(source)
        return self._tree.entry(made.inode)
