"""Changes that other nodes have made: earlier answers about the changed names are not believed any more."""

from __future__ import annotations

from collections.abc import Callable

from luxfuse.core import names as naming
from luxfuse.core.notices import Change, ChangeKind
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind
from luxfuse.vfs.belief import Belief
from luxfuse.vfs.kernel import KERNEL_BATCH, Kernel
from luxfuse.vfs.missing import Missing


class News:
    """Takes notices of other nodes."""

    def __init__(
        self,
        *,
        names: Names,
        belief: Belief,
        missing: Missing,
        kernel: Kernel,
        root: Entry,
        clock: Callable[[], float],
    ) -> None:
        self._names = names
        self._belief = belief
        self._missing = missing
        self._kernel = kernel
        self._root = root
        self._clock = clock

    def changed_elsewhere(self, change: Change) -> None:
        """Another node has changed a key in the store: do not believe earlier answers about it any more."""
        directory = ROOT_INODE
        *above, last = change.key.rstrip("/").split("/")
        for part in above:
            entry = self._names.get(directory, part.encode())
            if entry is None or entry.kind is not Kind.DIRECTORY:
                self._doubt(directory, part.encode(), listing=True)
                return
            directory = entry.inode
        name = last.removesuffix(naming.SYMLINK_SUFFIX).encode()
        if change.kind is not ChangeKind.BELOW:
            self._doubt(directory, name, listing=change.kind is ChangeKind.GONE or self._names.get(directory, name) is None)
            return
        entry = self._names.get(directory, name) if name else self._root
        if entry is not None and entry.kind is Kind.DIRECTORY:
            self._doubt_all(directory, name, entry.inode)
        else:
            self._doubt(directory, name, listing=True)

    def _doubt(self, directory: int, name: bytes, *, listing: bool) -> None:
        if self._names.is_held(directory, name):
            return  # it is ours to say
        self._missing.forget(directory, name)
        if listing:
            self._kernel.revoke_missing(directory)
            self._belief.doubts.listings.note(directory, self._clock())
        entry = self._names.get(directory, name)
        if entry is not None:
            self._belief.doubts.entries.note(entry.inode, self._clock())
            self._kernel.invalidate_inode(entry.inode)
            self._kernel.restamp(entry.inode, -1, 0.0)  # opens are not answered without us
        self._kernel.invalidate_entry(directory, name)

    def _doubt_all(self, parent: int, name: bytes, directory: int) -> None:
        """Many entries of a directory changed."""
        now_s = self._clock()
        self._belief.doubts.listings.note(directory, now_s)
        self._belief.doubts.below.note(directory, now_s)
        self._kernel.revoke_below(directory)
        for name_gone in self._missing.forget_in(directory):
            self._kernel.invalidate_entry(directory, name_gone)
        for child, entry in self._names.after(directory, b"", KERNEL_BATCH):
            self._kernel.invalidate_entry(directory, child)
            self._kernel.restamp(entry.inode, -1, 0.0)  # opens are not answered without us
        if directory != ROOT_INODE:  # with it the kernel forgets all names below
            self._kernel.invalidate_entry(parent, name)
