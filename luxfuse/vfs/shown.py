"""The attributes that programs are shown."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

from luxfuse.index.entries import Entry
from luxfuse.types import Kind
from luxfuse.vfs.attributes import Defaults, Stat, stat_of
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.namespace import Namespace

OTHERS = 0o077
"""Of a mode: the bits for the group and all others."""


class Common(NamedTuple):
    """What holds for most entries of a listing, in the order in which the extension wants it (`lane/entries.c`).

    An entry is believed for ``ttl_s`` from the time on when it was checked, if that was not before ``from_s``. ``silence``:
    see `Silence`. ``directories``: whether it holds for them, too. The rest is for what an entry does not say. ``aside``:
    inodes for which it does not hold.
    """

    now_s: float
    ttl_s: float
    from_s: float
    silence: int
    directories: bool
    mtime_ns: int
    uid: int
    gid: int
    umask: int
    aside: Container[int] | None


class Shown:
    """Makes a `Stat` of an entry, as it is known now: no method asks the store."""

    def __init__(
        self, *, namespace: Namespace, descriptions: Descriptions, entries: DirtyEntries, defaults: Defaults
    ) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._dirty = entries
        self._defaults = defaults

    def stat(self, entry: Entry) -> Stat:
        """Return the attributes of an entry, for as long as the entry is known to hold."""
        dirty = self._dirty.get(entry.inode)
        if dirty is not None:
            return self.dirty(dirty, entry)
        return self.clean(entry, self._namespace.belief.remaining_s(entry))

    def listed(self, directory: int, batch: list[tuple[bytes, Entry]]) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield (name, attributes, inode) of entries of a directory, as `stat` has them.

        What lacks attributes, or waits, holds for no time: the kernel looks it up before a program sees it. Files of one
        listing that say nothing themselves differ in size and time only: what holds for one of them holds for all.
        """
        belief, dirty, unfinished = self._namespace.belief, self._dirty, self._namespace.unfinished
        waiting = bool(unfinished)
        pattern: Stat | None = None
        checked_s = 0.0
        for name, entry in batch:
            inode = entry.inode
            plain = entry.attributes is None and entry.kind is Kind.FILE
            if plain and (waiting or dirty.get(inode) is not None or belief.is_held(inode) or belief.doubts.any_entry):
                plain = False
            if plain and pattern is not None and entry.checked_s == checked_s:
                size, mtime_ns = entry.size, entry.mtime_ns or self._defaults.mtime_ns
                yield name, Stat(
                    inode, pattern.mode, size, pattern.uid, pattern.gid, mtime_ns, pattern.ttl_s, mtime_ns, mtime_ns,
                    (size + 511) >> 9,
                ), inode  # fmt: skip
                continue
            stat = self.stat(entry)
            if self._descriptions.lacks(directory, entry) or (waiting and unfinished.covers(directory, name)):
                stat.ttl_s = 0.0
            if plain:
                pattern, checked_s = stat, entry.checked_s
            yield name, stat, inode

    def common(self, directory: int, batch: list[tuple[bytes, Entry]]) -> Common | None:
        """Return what `listed` says of most of these entries; None: each has to be looked at."""
        belief, dirty, defaults = self._namespace.belief, self._dirty, self._defaults
        if belief.doubts.any_entry or self._namespace.unfinished:
            return None
        aside = None
        if len(dirty) or belief.any_held:
            aside = {e.inode for _, e in batch if belief.is_held(e.inode) or dirty.get(e.inode) is not None} or None
        return Common(
            *belief.terms, self._descriptions.silence(directory), not self._namespace.shared,
            defaults.mtime_ns, defaults.uid, defaults.gid, defaults.umask, aside,
        )  # fmt: skip

    def clean(self, entry: Entry, ttl_s: float) -> Stat:
        """Return attributes for ``ttl_s``: an unknown mode lets only the owner in, and is asked for again."""
        if entry.attributes is not None and (entry.kind is not Kind.DIRECTORY or not self._namespace.shared):
            return stat_of(entry, self._defaults, ttl_s)  # nothing is hidden, and attributes hold as long as the name
        stat = stat_of(entry, self._defaults, self._descriptions.valid_s(entry, ttl_s))
        if self._descriptions.must_hide(entry):
            stat.mode &= ~OTHERS
        return stat

    def gone(self, entry: Entry, ttl_s: float) -> Stat:
        """Return the attributes of an open inode that has no name any more."""
        stat = self.clean(entry, ttl_s)
        stat.nlink = 0
        return stat

    def dirty(self, dirty: Dirty, entry: Entry) -> Stat:
        """Return the attributes of a dirty inode: size and times are those of its staging file."""
        stat = self.clean(entry, self._namespace.belief.remaining_s(entry))
        source = dirty.source
        if source is not None and (st := source.bytes.stat()) is not None:
            stat.size, stat.mtime_ns = st.st_size, st.st_mtime_ns
            # Its ctime and atime in the staging directory move when we rename and read it, too.
            stat.ctime_ns = max(stat.ctime_ns, st.st_mtime_ns)
            stat.blocks = st.st_blocks if source.bytes.complete else (st.st_size + 511) >> 9
            stat.changing = True
        if dirty.place is None:
            stat.nlink, stat.ttl_s = 0, 0.0
        return stat

    def dot(self, inode: int) -> Stat:
        """Return the attributes that "." and ".." have in a listing; only inode and type count there."""
        return stat_of(Entry(inode, Kind.DIRECTORY, 0, "", 0, 0.0), self._defaults, 0.0)
