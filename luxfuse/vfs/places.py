"""Inode numbers, the names that they have, and the keys of the store that names stand for."""

from __future__ import annotations

from collections import OrderedDict

from luxfuse.core import names as naming
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind
from luxfuse.vfs.errors import Stale

PREFIXES_KEPT = 10_000


class Places:
    """Where the entries of one mount are."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._prefixes: OrderedDict[int, str] = OrderedDict()

    def prefix(self, directory: int) -> str:
        """Return the key prefix of a directory: "" or ending in "/". Raises `Stale`."""
        if directory == ROOT_INODE:
            return ""
        known = self._prefixes.get(directory)
        if known is None:
            parent, name = self.place(directory)
            known = f"{self.prefix(parent)}{name.decode()}/"
            self._prefixes[directory] = known
            if len(self._prefixes) > PREFIXES_KEPT:
                self._prefixes.popitem(last=False)
        return known

    def key(self, parent: int, name: bytes, kind: Kind) -> str:
        """Return the object key of a name."""
        suffix = naming.SYMLINK_SUFFIX if kind is Kind.SYMLINK else "/" if kind is Kind.DIRECTORY else ""
        return f"{self.prefix(parent)}{name.decode()}{suffix}"

    def place(self, inode: int) -> tuple[int, bytes]:
        """Return (parent, name) of an inode number. Raises `Stale`."""
        located = self._names.locate(inode)
        if located is None:
            raise Stale(f"inode {inode} is no longer in use")
        return located

    def place_of(self, inode: int) -> tuple[int, bytes] | None:
        """As `place`; None if the number is no longer in use."""
        return self._names.locate(inode)

    def locate(self, inode: int) -> tuple[int, bytes, Entry]:
        """Return (parent, name, entry) of an inode number, fresh or not. Raises `Stale`."""
        located = self._names.locate(inode)
        if located is None:
            raise Stale(f"inode {inode} is no longer in use")
        entry = self._names.get(*located)
        if entry is None or entry.inode != inode:
            raise Stale(f"inode {inode} was replaced")
        return *located, entry

    def forget_prefixes(self) -> None:
        """Directories have moved: work out anew which key prefixes they have, and those below."""
        self._prefixes.clear()
