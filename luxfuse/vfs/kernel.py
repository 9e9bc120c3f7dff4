"""What the vfs asks of the kernel's side. `luxfuse.fuse` implements it; `NoKernel` stands in where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Kernel(Protocol):
    """Backing files and caches of the kernel. Only `settle` blocks. ``valid_s``: how long opens need no question."""

    @property
    def passthrough(self) -> bool:
        """Whether files can be handed to the kernel at all."""

    on_first_open: Callable[[int], None]
    """Called with an inode that was registered with ``notice``, soon after its first open."""
    on_drained: Callable[[int], None]
    """Called with an inode that was retired while it was open, after its last close."""

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        """Give the inode the open file ``fd`` as its backing; the caller still closes fd. False: refused.

        ``stamp_ns`` is the file's mtime: opens are not answered without us once it is another one.
        """

    def acquire(self, inode: int, valid_s: float) -> int | None:
        """Count a passthrough open and return its file handle; None if the inode has no backing."""

    def is_registered(self, inode: int) -> bool:
        """Whether the inode has a backing, in use or not."""

    def is_intact(self, inode: int) -> bool:
        """Whether the backing file still has the mtime that it was registered with."""

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        """Take the backing away; returns whether it is gone. False: the inode is open.

        Then, with ``only_idle``, nothing happens; without, the backing goes at the last close (`on_drained`).
        """

    def take_touched(self) -> list[int]:
        """Return the inodes that were opened without the vfs being asked, since the last call."""

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel forget a name soon."""

    async def settle(self) -> bool:
        """Wait until the kernel has forgotten all names that it was to forget; False: it takes too long."""


class NoKernel:
    """No kernel: everything is copied. For tests of the layers below fuse."""

    passthrough = False

    def __init__(self) -> None:
        self.on_first_open: Callable[[int], None] = lambda _inode: None
        self.on_drained: Callable[[int], None] = lambda _inode: None

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        """Refuse."""
        return False

    def acquire(self, inode: int, valid_s: float) -> int | None:
        """There is never a backing."""
        return None

    def is_registered(self, inode: int) -> bool:
        """There is never a backing."""
        return False

    def is_intact(self, inode: int) -> bool:
        """There is never a backing."""
        return False

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        """Nothing to take away."""
        return True

    def take_touched(self) -> list[int]:
        """Nothing was."""
        return []

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Nobody to tell."""

    async def settle(self) -> bool:
        """Nobody to wait for."""
        return True
