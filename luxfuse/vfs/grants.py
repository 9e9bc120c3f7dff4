"""Room that is granted to the lanes: files that they write to may grow by so much before they ask.

It is reserved in the ledger of the cache directory. What has been filled of it is counted when the file is looked at
(`Room.account`), which ends that part of the reservation. The lanes count all blocks that a write touches, which is more
than it takes where it changes what is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from luxfuse.cache.space import Space
from luxfuse.core.grants import grant_bytes, is_tight
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.kernel import Kernel


@dataclass(slots=True)
class _Grant:
    space: Space
    left_bytes: int
    """Reserved for what was not filled when it was last counted."""


class Grants:
    """The grants of one mount, to dirty files."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._grants: dict[Dirty, _Grant] = {}
        self._granted: dict[Space, int] = {}

    def first(self, dirty: Dirty, space: Space) -> None:
        """Grant a file that is opened for writing some room, if there is some now."""
        wanted = self._wanted(dirty, space, first=True)
        if wanted and space.ledger.reserve(wanted):
            self._give(dirty, space, wanted)

    async def more(self, dirty: Dirty, space: Space) -> None:
        """Grant a file that had to ask more, if need be by evicting what is clean."""
        wanted = self._wanted(dirty, space, first=False)
        if not wanted or not await space.reserve(wanted):
            return
        if self._wanted(dirty, space, first=False):
            self._give(dirty, space, wanted)
        else:  # other writes have asked, and were granted enough meanwhile
            space.ledger.settle(wanted, 0)

    def _wanted(self, dirty: Dirty, space: Space, *, first: bool) -> int:
        left = self._kernel.granted(dirty.inode)
        if left is None:  # they do not write to it
            return 0
        wanted = grant_bytes(space.full_bytes, self._granted.get(space, 0), first=first)
        return wanted if left < wanted // 2 else 0

    def _give(self, dirty: Dirty, space: Space, reserved: int) -> None:
        known = self._grants.get(dirty)
        fits = dirty.writers and not dirty.finished and (known is None or known.space is space)
        if not fits or not self._kernel.grant(dirty.inode, reserved):
            space.ledger.settle(reserved, 0)
            return
        if known is None:
            known = self._grants[dirty] = _Grant(space, 0)
        known.left_bytes += reserved
        self._granted[space] = self._granted.get(space, 0) + reserved

    def count(self, dirty: Dirty) -> None:
        """Give back what was filled; the caller counts what the file takes now, in the same step."""
        known = self._grants.get(dirty)
        if known is None:
            return
        left = self._kernel.granted(dirty.inode) if dirty.writers else 0
        if left == known.left_bytes and is_tight(known.space.full_bytes, self._granted[known.space]):
            left = self._kernel.granted(dirty.inode, take_back=True)
        left = min(left or 0, known.left_bytes)
        known.space.ledger.settle(known.left_bytes - left, 0)
        self._granted[known.space] -= known.left_bytes - left
        known.left_bytes = left
        if not left:
            del self._grants[dirty]

    def take_back(self, space: Space) -> list[Dirty]:
        """Let the files of a directory ask at each write; returns them: they are to be counted."""
        held = [dirty for dirty, known in self._grants.items() if known.space is space]
        for dirty in held:
            self._kernel.granted(dirty.inode, take_back=True)
        return held
