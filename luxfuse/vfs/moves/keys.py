"""Gives new keys to everything here that belongs to moved objects: dirty entries, cached pages, names."""

from __future__ import annotations

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import Stamp
from luxfuse.core import names as naming
from luxfuse.index.entries import Entry, describe
from luxfuse.types import ABSENT, Kind, ObjectInfo
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.moves.operations import Place
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack


class MovedKeys:
    """Gives entries of one mount their new keys."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        tree: Tree,
        entries: DirtyEntries,
        files: Files,
        notes: Notes,
        writeback: WriteBack,
        cache: PageCache,
    ) -> None:
        self._namespace = namespace
        self._tree = tree
        self._entries = entries
        self._files = files
        self._notes = notes
        self._writeback = writeback
        self._cache = cache

    def rekey(self, dirty: Dirty, place: Place, key: str, expect: str | None, uploaded: Stamp | None = None) -> None:
        """Give a dirty entry a new name and key, under which the store is expected to have ``expect``.

        ``uploaded``: the stamp of the content that it has there.
        """
        dirty.take_key(place, key, self._notes.mode_of(key), expect)
        dirty.copy_has(uploaded)
        self._notes.note(dirty)

    def adopt_version(self, place: Place, key: str, new_key: str, info: ObjectInfo) -> None:
        """An entry of the store has a new key, and so a new version: keep its cached pages."""
        entry = self._tree.entry_of(place)
        dirty = self._entries.get(entry.inode)
        if dirty is not None:
            self.rekey_copied(dirty, place, new_key, info)
        else:
            self._keep_cached(place, entry, key, new_key, info)

    def rekey_copied(self, dirty: Dirty, place: Place, new_key: str, info: ObjectInfo) -> None:
        """A dirty entry has a new key, under which the store has a copy of the object that it had under the old one."""
        old_key, uploaded, entry = dirty.key, dirty.uploaded, self._tree.entry_of(place)
        dirty.stored.copied(old_key, new_key, info.version)
        self.rekey(dirty, place, new_key, info.version, uploaded)
        if dirty.source is not None:  # somebody has it open for writing: the copy has what was uploaded
            entry.version = info.version
            self._namespace.put(*place, entry)
        elif dirty.kind is not Kind.DIRECTORY:
            self._keep_cached(place, entry, old_key, new_key, info)

    def _keep_cached(self, place: Place, entry: Entry, key: str, new_key: str, info: ObjectInfo) -> None:
        oid = self._cache.rename(key, entry.version, entry.size, new_key, info.version)
        entry.version, entry.checked_s = info.version, self._namespace.now_s()
        describe(entry, entry.attributes, info.mtime_ns, entry.checked_s)
        self._namespace.put(*place, entry)
        self._files.moved(entry.inode, entry, new_key, oid)

    def rekey_below(
        self,
        below: list[Dirty],
        prefix: str,
        new_prefix: str,
        root: Place,
        copied: dict[str, ObjectInfo],
        *,
        marked: bool = False,
    ) -> None:
        """Dirty entries below the directory, and the directory itself, are pushed under their new keys.

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
                self.rekey_copied(dirty, dirty.place, new_key, info)
            else:
                self.rekey(dirty, dirty.place, new_key, None if marked and new_key == new_prefix else ABSENT)
            if dirty.must_push and (dirty.closed or not dirty.writers):
                self._writeback.schedule(dirty)

    def note_copied(self, key: str, new_key: str, root: Place, cut: int, info: ObjectInfo) -> None:
        """Find the entry of a moved object below its moved directory, and keep its cached pages."""
        entry: Entry | None = self._tree.entry_of(root)
        place = root
        parts = new_key[cut:].removesuffix(naming.SYMLINK_SUFFIX).split("/")
        for part in parts:
            if entry is None or entry.kind is not Kind.DIRECTORY or not part:
                break
            place = (entry.inode, part.encode())
            entry = self._namespace.peek(*place)
        if entry is not None and entry.kind is not Kind.DIRECTORY and parts[-1] and self._entries.get(entry.inode) is None:
            self.adopt_version(place, key, new_key, info)
