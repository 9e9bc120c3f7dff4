"""The kernel's side as the vfs sees it. `luxfuse.fuse` implements it; `NoKernel` stands in where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from luxfuse.index.told import Told, Untold
from luxfuse.vfs.attributes import Stat

KERNEL_BATCH = 5_000
"""Names of a directory that the kernel is told to forget at once."""


class Ref(NamedTuple):
    """An open file: by its inode where it is in passthrough, else by the number that `open` returned."""

    inode: int | None
    number: int | None


class Kernel(Told, Protocol):
    """Backing files and caches of the kernel. Only `forgotten` blocks. ``valid_s``: how long opens need no question."""

    @property
    def hands_over(self) -> bool:
        """Whether files can be handed over at all: to the kernel, or to the lanes, which read and write them for it."""

    def accepts(self, device: int) -> bool:
        """Whether files of a file system (its ``st_dev``) can be handed over."""

    def on_first_open(self, opened: Callable[[int], None]) -> None:
        """Have ``opened`` called with an inode that was registered with ``notice``, soon after its first open.

        As with `on_drained` there is one listener; it is made later, as it needs the kernel's side.
        """

    def on_drained(self, drained: Callable[[int], None]) -> None:
        """Have ``drained`` called with an inode that was retired while it was open, after its last close."""

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        """Give the inode the open file ``fd`` as its backing; the caller still closes fd. False: refused.

        ``stamp_ns`` is the file's mtime: opens are not answered without us once it is another one.
        """

    def expect(self, inode: int) -> None:
        """A file is on its way that will be registered: opens that only read may wait for `arrived`, for a moment."""

    def arrived(self, inode: int) -> None:
        """It has come, and is registered, or will not be: what waits is answered, or comes to us. Else nothing happens."""

    def inherit(self, inode: int, fd: int, stamp_ns: int, *, retired: bool) -> bool:
        """Take over the backing, and the opens, that a predecessor gave the inode; the caller still closes fd.

        ``fd`` -1: the file is lost, and what the kernel does not read itself comes to us. ``retired``: it takes no new
        opens. False, which is logged: it cannot be taken over.
        """

    def disinherit(self, inode: int) -> None:
        """Nobody takes that over, and it is forgotten; the kernel reads and writes on where it does so itself."""

    def lend(self, inode: int, fd: int, filling_bytes: int = 0) -> bool:
        """Have READs of copied opens of an inode answered from ``fd``, a whole file; the caller still closes fd.

        ``filling_bytes``: the size of a file that is still being filled, of which only those pages are read that `fill`
        tells of. False: they come to us as before. The inode must not be lent already. Raises `NoDescriptors`, which it
        logs.
        """

    def fill(self, inode: int, pages: range) -> None:
        """Pages of a file that is lent while it is being filled are there, and stay so until it is taken back."""

    def take_back(self, inode: int) -> None:
        """End that, if it was lent: the file may change from now on."""

    def acquire(self, inode: int, valid_s: float, *, writing: bool = False) -> int | None:
        """Count a passthrough open and return its file handle; None if the inode has no backing.

        ``writing``: its closes are asked about (flush, release), and `released` must be called in the latter.
        """

    def released(self, inode: int) -> bool:
        """Count down an open that was acquired for writing, at its release; may lead to `on_drained`.

        False: there is none. A daemon that was killed before it answered has counted it down, and given all up.
        """

    def grant(self, inode: int, more_bytes: int) -> bool:
        """Let writes fill so much more room on disk without asking us; False: they do not, or the kernel writes."""

    def granted(self, inode: int, *, take_back: bool = False) -> int | None:
        """Return what writes may still fill, those under way included; None where `grant` says False.

        With ``take_back`` only those under way are left.
        """

    def restamp(self, inode: int, stamp_ns: int, valid_s: float) -> None:
        """The backing file has a new mtime because we, or a program through us, wrote to it. Unregistered: nothing.

        ``stamp_ns`` -1: the mtime is as it was, only ``valid_s`` is new.
        """

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

    @property
    def answers(self) -> bool:
        """Whether `offer` has any effect."""

    def offer(self, parent: int, name: bytes, stat: Stat, *, only_name: bool, ahead: bool) -> bool:
        """Have look-ups of a name answered without us for ``stat.ttl_s``, or until it is revoked; False: no room.

        So are questions for the attributes of the inode, but with ``only_name``. ``ahead``: nobody has asked for it yet.
        """

    def knows(self, parent: int, name: bytes) -> bool:
        """Whether look-ups of a name are answered without us now."""

    def offer_missing(self, directory: int, names: Sequence[bytes] | None, *, answer_s: float, valid_s: float) -> bool:
        """Have look-ups of all names of a directory but ``names`` answered without us for ``answer_s``: they are missing.

        The kernel may believe that for ``valid_s`` from now. A name that is revoked is among ``names`` from then on. None:
        those that were given before. False: they are not known any more, or there is no room.
        """

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel forget a name soon, and revoke it at once."""

    def invalidate_inode(self, inode: int) -> None:
        """Make the kernel forget the attributes of an inode soon, and revoke them at once; its cached data stay."""

    async def forgotten(self) -> bool:
        """Wait until the kernel has forgotten all that it was to forget; False: it takes too long."""


class NoKernel(Untold):
    """No kernel: everything is copied. For tests of the layers below fuse."""

    hands_over = answers = False

    def on_first_open(self, opened: Callable[[int], None]) -> None:
        """Nothing is opened."""

    def on_drained(self, drained: Callable[[int], None]) -> None:
        """Nothing is retired."""

    def accepts(self, device: int) -> bool:
        """Nothing can be handed over."""
        return False

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        """Refuse."""
        return False

    def expect(self, inode: int) -> None:
        """Nobody would wait."""

    def arrived(self, inode: int) -> None:
        """Nobody waits."""

    def inherit(self, inode: int, fd: int, stamp_ns: int, *, retired: bool) -> bool:
        """Refuse."""
        return False

    def disinherit(self, inode: int) -> None:
        """There was no predecessor."""

    def lend(self, inode: int, fd: int, filling_bytes: int = 0) -> bool:
        """Refuse."""
        return False

    def fill(self, inode: int, pages: range) -> None:
        """Nothing is lent."""

    def take_back(self, inode: int) -> None:
        """Nothing is lent."""

    def acquire(self, inode: int, valid_s: float, *, writing: bool = False) -> int | None:
        """There is never a backing."""
        return None

    def released(self, inode: int) -> bool:
        """There is never a backing."""
        return False

    def grant(self, inode: int, more_bytes: int) -> bool:
        """All writes ask."""
        return False

    def granted(self, inode: int, *, take_back: bool = False) -> int | None:
        """All writes ask."""
        return None

    def restamp(self, inode: int, stamp_ns: int, valid_s: float) -> None:
        """There is never a backing."""

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

    def offer(self, parent: int, name: bytes, stat: Stat, *, only_name: bool, ahead: bool) -> bool:
        """There is nobody who would answer."""
        return False

    def knows(self, parent: int, name: bytes) -> bool:
        """There is nobody who would answer."""
        return False

    def offer_missing(self, directory: int, names: Sequence[bytes] | None, *, answer_s: float, valid_s: float) -> bool:
        """There is nobody who would answer."""
        return False

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """There is no kernel to tell."""

    def invalidate_inode(self, inode: int) -> None:
        """There is no kernel to tell."""

    async def forgotten(self) -> bool:
        """There is no kernel to wait for."""
        return True
