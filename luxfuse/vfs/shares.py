"""The kernel's side, shared by volumes: each volume sees its own inode numbers only.

To the kernel an inode is its volume's number, in the bits from `VOLUME_SHIFT` on, and the volume's own number below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.kernel import Kernel

VOLUME_SHIFT = 40
LOCAL_MASK = (1 << VOLUME_SHIFT) - 1
"""The part of an inode or handle number that the volume itself gave; a volume's number takes the 8 bits above."""
_PASSED_ON = (
    "accepts", "register", "acquire", "released", "grant", "granted", "restamp", "is_registered", "retire", "revoke",
    "offer", "expect", "arrived",
)  # fmt: skip
"""What the kernel's side does for the mount's own volume without a call in between: numbers there are the kernel's."""


class KernelShares:
    """Gives every volume its share of ``kernel``, and passes on to each volume the events of its inodes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._shares: dict[int, KernelShare] = {}
        kernel.on_first_open(self._first_open)
        kernel.on_drained(self._drained)

    def share(self, number: int) -> KernelShare:
        """Return the share of a volume that begins; an earlier share of that number is forgotten."""
        self.kernel.revoke_all()  # numbers of inodes come again with those of volumes
        share = self._shares[number] = KernelShare(self, number)
        return share

    def drop(self, number: int) -> None:
        """The volume is gone, and none of its inodes is open."""
        self._shares.pop(number, None)

    def _first_open(self, inode: int) -> None:
        if (share := self._shares.get(inode >> VOLUME_SHIFT)) is not None:
            share.first_open(inode & LOCAL_MASK)

    def _drained(self, inode: int) -> None:
        if (share := self._shares.get(inode >> VOLUME_SHIFT)) is not None:
            share.drained(inode & LOCAL_MASK)

    def sort_touched(self) -> None:
        """Give each share the inodes that were opened without the vfs being asked."""
        for inode in self.kernel.take_touched():
            if (share := self._shares.get(inode >> VOLUME_SHIFT)) is not None:
                share.touched[inode & LOCAL_MASK] = None


class KernelShare:
    """Implements `luxfuse.vfs.kernel.Kernel` for one volume: adds its number to those of its inodes."""

    def __init__(self, shares: KernelShares, number: int) -> None:
        self._shares = shares
        self._kernel = shares.kernel
        self._base = number << VOLUME_SHIFT
        self.touched: dict[int, None] = {}
        self.first_open: Callable[[int], None] = lambda _inode: None
        self.drained: Callable[[int], None] = lambda _inode: None
        if not number:
            vars(self).update({name: getattr(shares.kernel, name) for name in _PASSED_ON})

    def on_first_open(self, opened: Callable[[int], None]) -> None:
        self.first_open = opened

    def on_drained(self, drained: Callable[[int], None]) -> None:
        self.drained = drained

    @property
    def hands_over(self) -> bool:
        return self._kernel.hands_over

    def accepts(self, device: int) -> bool:
        return self._kernel.accepts(device)

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        return self._kernel.register(self._base | inode, fd, stamp_ns, valid_s, notice=notice)

    def expect(self, inode: int) -> None:
        self._kernel.expect(self._base | inode)

    def arrived(self, inode: int) -> None:
        self._kernel.arrived(self._base | inode)

    def inherit(self, inode: int, fd: int, stamp_ns: int, *, retired: bool) -> bool:
        return self._kernel.inherit(self._base | inode, fd, stamp_ns, retired=retired)

    def disinherit(self, inode: int) -> None:
        self._kernel.disinherit(self._base | inode)

    def lend(self, inode: int, fd: int, filling_bytes: int = 0) -> bool:
        return self._kernel.lend(self._base | inode, fd, filling_bytes)

    def fill(self, inode: int, pages: range) -> None:
        self._kernel.fill(self._base | inode, pages)

    def take_back(self, inode: int) -> None:
        self._kernel.take_back(self._base | inode)

    def acquire(self, inode: int, valid_s: float, *, writing: bool = False) -> int | None:
        return self._kernel.acquire(self._base | inode, valid_s, writing=writing)

    def released(self, inode: int) -> bool:
        return self._kernel.released(self._base | inode)

    def grant(self, inode: int, more_bytes: int) -> bool:
        return self._kernel.grant(self._base | inode, more_bytes)

    def granted(self, inode: int, *, take_back: bool = False) -> int | None:
        return self._kernel.granted(self._base | inode, take_back=take_back)

    def restamp(self, inode: int, stamp_ns: int, valid_s: float) -> None:
        self._kernel.restamp(self._base | inode, stamp_ns, valid_s)

    def is_registered(self, inode: int) -> bool:
        return self._kernel.is_registered(self._base | inode)

    def is_intact(self, inode: int) -> bool:
        return self._kernel.is_intact(self._base | inode)

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        return self._kernel.retire(self._base | inode, only_idle=only_idle)

    def take_touched(self) -> list[int]:
        self._shares.sort_touched()
        found, self.touched = list(self.touched), {}
        return found

    @property
    def answers(self) -> bool:
        return self._kernel.answers

    def offer(self, parent: int, name: bytes, stat: Stat, *, only_name: bool, ahead: bool) -> bool:
        stat.inode |= self._base
        return self._kernel.offer(self._base | parent, name, stat, only_name=only_name, ahead=ahead)

    def offer_missing(self, directory: int, names: Sequence[bytes] | None, *, answer_s: float, valid_s: float) -> bool:
        return self._kernel.offer_missing(self._base | directory, names, answer_s=answer_s, valid_s=valid_s)

    def knows(self, parent: int, name: bytes) -> bool:
        return self._kernel.knows(self._base | parent, name)

    def revoke(self, parent: int, name: bytes) -> None:
        self._kernel.revoke(self._base | parent, name)

    def revoke_below(self, directory: int) -> None:
        self._kernel.revoke_below(self._base | directory)

    def revoke_missing(self, directory: int) -> None:
        self._kernel.revoke_missing(self._base | directory)

    def revoke_all(self) -> None:
        self._kernel.revoke_all()

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self._kernel.invalidate_entry(self._base | parent, name)

    def invalidate_inode(self, inode: int) -> None:
        self._kernel.invalidate_inode(self._base | inode)

    async def forgotten(self) -> bool:
        return await self._kernel.forgotten()
