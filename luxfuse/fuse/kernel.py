"""The kernel's side of a mount: backing files of passthrough inodes, and invalidation of the kernel's caches."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import trio

from luxfuse.cache.descriptors import NoDescriptors, is_shortage, shortages
from luxfuse.fuse.inheritance import Inheritance
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.steps import reached
from luxfuse.vfs.attributes import Stat

log = logging.getLogger(__name__)

BACKING_OPEN = 0x4010E501
"""FUSE_DEV_IOC_BACKING_OPEN, struct fuse_backing_map {int32 fd; uint32 flags; uint64 padding} (linux/fuse.h, 6.9)."""
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOC_BACKING_CLOSE, uint32 backing id."""
STRAYS_MOST = 1 << 16
"""Ids that are looked at for strays: a microsecond each."""
INVALIDATIONS_BOUND = 100_000
SETTLE_DEADLINE_S = 5.0
EXPECTED_FOR_S = 10.0
"""A file that has not come by then is long in coming: its opens are ours."""
WAIT_S, WAITING_LOOK_S = 0.25, 0.1
"""An open waits in C for so long at most, and what waits is looked at so often: only here is known that a store does not
answer, and what a request waits for that takes long."""
_LONG_S = 10**8


class KernelSide:
    """Implements `luxfuse.vfs.kernel.Kernel` for a mount whose device is ``device_fd``."""

    def __init__(self, inheritance: Inheritance | None = None) -> None:
        """``inheritance``: what the daemon before this one has registered."""
        self._slots = dict(inheritance.slots) if inheritance is not None else {}
        """What nobody has taken over yet, by inode."""
        self._left = list(inheritance.passed_over) if inheritance is not None else []
        """What nobody is to take over."""
        slots = (*self._slots.values(), *self._left)
        self._inherited_ids = None if inheritance is None else {slot.backing_id for slot in slots}
        """None: there was no predecessor, or its strays are closed."""
        self._inherited = False
        """Whether `end_inheritance` was called; volumes may still be attached that have something to take over."""
        self._device_fd = -1
        self._accepted: set[int] = set()
        self.passthrough = False
        self.reason: str | None = "not mounted yet"
        self.serves_bytes = False
        """Whether the lanes read and write the files that the kernel does not."""
        self._invalidations: deque[tuple[int, bytes | None]] = deque(maxlen=INVALIDATIONS_BOUND)
        self._wanted = trio.Event()
        self._queued = 0
        self._handed_over = 0
        self._progress = trio.Event()
        self._holding = False
        self._first_open: Callable[[int], None] = lambda _inode: None
        self._drained: Callable[[int], None] = lambda _inode: None

    def on_first_open(self, opened: Callable[[int], None]) -> None:
        self._first_open = opened

    def on_drained(self, drained: Callable[[int], None]) -> None:
        self._drained = drained

    def enable(self, device_fd: int) -> None:
        """The kernel offers passthrough; `probe` then tells for which cache directories."""
        self._device_fd = device_fd

    @property
    def hands_over(self) -> bool:
        return self.passthrough or self.serves_bytes

    def probe(self, fd: int) -> None:
        """Use passthrough for a cache directory if the kernel accepts ``fd``, a file in it, as a backing file."""
        try:
            probed = self._open(fd)
            self._close(probed)
        except OSError as exc:
            if not self._accepted:
                self.disable(f"the kernel refuses the cache directory's file system ({exc.strerror})")
            log.info("files of device %d are copied: the kernel refuses its file system", os.fstat(fd).st_dev)
        else:
            self._accepted.add(os.fstat(fd).st_dev)
            self.passthrough = True
            self.reason = None
            self._close_strays(probed)

    def _close_strays(self, next_id: int) -> None:
        """Close what a predecessor has opened and not noted yet, or noted as gone and not closed: no file is to stay so.

        The kernel counts ids up, and ``next_id`` is its next one. What is registered by this daemon comes later.
        """
        known, self._inherited_ids = self._inherited_ids, None
        if known is None:
            return
        for backing_id in set(range(max(1, next_id - STRAYS_MOST), next_id)) - known:
            try:
                fcntl.ioctl(self._device_fd, BACKING_CLOSE, bytearray(struct.pack("I", backing_id)))
            except OSError:
                continue  # it is closed, as nearly all are
            log.info("backing id %d, which the daemon before this one has left, is closed", backing_id)

    def accepts(self, device: int) -> bool:
        return self.serves_bytes or device in self._accepted

    def disable(self, reason: str) -> None:
        """Serve everything by copying, and say why."""
        self.passthrough = False
        self.reason = reason

    def _open(self, fd: int) -> int:
        argument = bytearray(struct.pack("iIQ", fd, 0, 0))
        backing_id: int = fcntl.ioctl(self._device_fd, BACKING_OPEN, argument)
        reached("backing.opened")
        return backing_id

    def _close(self, backing_id: int) -> None:
        if backing_id == 0:
            return
        try:
            fcntl.ioctl(self._device_fd, BACKING_CLOSE, bytearray(struct.pack("I", backing_id)))
        except OSError as exc:
            if exc.errno not in (errno.ENODEV, errno.EBADF):  # the mount is gone, and the id with it
                log.warning("backing id %d cannot be closed: %s", backing_id, exc.strerror)

    # -- backing files

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        if self.is_registered(inode):  # and stays so: the open joins it
            log.error("a mistake in luxfuse: inode %d was to be registered twice", inode)
            return False
        backing_id = self._backing(fd)
        if backing_id is None:
            return False
        try:
            passthrough.register(inode, backing_id, fd, stamp_ns, _until(valid_s), notice)
        except OSError as exc:
            if is_shortage(exc):
                shortages.note("a file is not handed to the kernel")
            else:
                log.warning("a file is not handed to the kernel: %s", exc.strerror)
            self._close(backing_id)
            return False
        return True

    def expect(self, inode: int) -> None:
        if self.hands_over:
            passthrough.expect(inode, _until(EXPECTED_FOR_S))

    arrived = staticmethod(passthrough.arrived)

    async def end_waits(self) -> None:
        """Have opens come here that wait for a file for long; until cancelled."""
        waiting_fd = passthrough.waiting()
        while True:
            await trio.lowlevel.wait_readable(waiting_fd)
            while passthrough.give_up(time.monotonic_ns() - int(WAIT_S * 1e9)):  # noqa: ASYNC110 (their ends tell nothing)
                await trio.sleep(WAITING_LOOK_S)

    def _backing(self, fd: int) -> int | None:
        """Return a backing id for a file, 0 if the lanes read and write it, None if neither is possible."""
        if self.passthrough and os.fstat(fd).st_dev in self._accepted:
            try:
                return self._open(fd)
            except OSError as exc:
                log.warning("passthrough is off: the kernel refused a backing file (%s)", exc.strerror)
                self.disable(f"the kernel refused a backing file ({exc.strerror})")
        return 0 if self.serves_bytes else None

    def inherit(self, inode: int, fd: int, stamp_ns: int, *, retired: bool) -> bool:
        slot = self._slots.get(inode)
        if slot is None:  # an earlier try of its volume has taken it over
            return self.is_registered(inode)
        same = fd >= 0 and not retired and os.fstat(fd).st_ino == slot.file_inode
        try:
            passthrough.inherit(inode, slot.number, slot.backing_id, fd, stamp_ns, retired or not same)
        except OSError as exc:
            log.error("inode %d, which is open, cannot be taken over: %s", inode, exc.strerror)  # noqa: TRY400 (says all)
            self.disinherit(inode)
            return False
        del self._slots[inode]
        return True

    def disinherit(self, inode: int) -> None:
        slot = self._slots.pop(inode, None)
        if slot is None:
            return
        self._left.append(slot)
        if self._inherited:
            self._give_back_left()

    def end_inheritance(self) -> None:
        """Close the backing ids that a predecessor has left, and of which nothing is open. The device is known."""
        self._inherited = True
        for inode, slot in list(self._slots.items()):
            if not slot.opens:
                self._left.append(self._slots.pop(inode))
        self._give_back_left()

    def _give_back_left(self) -> None:
        while self._left:
            slot = self._left.pop()
            self._close(slot.backing_id)  # programs that have it open keep it
            passthrough.give_back(slot.number)

    def lend(self, inode: int, fd: int, filling_bytes: int = 0) -> bool:
        if not self.serves_bytes:
            return False
        try:
            passthrough.lend(inode, fd, filling_bytes)
        except OSError as exc:
            if is_shortage(exc):
                shortages.note("the reads of an open file go through Python")
                raise NoDescriptors("no descriptors are left") from None
            log.warning("the reads of an open file go through Python: %s", exc.strerror)
            return False
        return True

    def fill(self, inode: int, pages: range) -> None:
        passthrough.fill(inode, pages.start, len(pages))

    def take_back(self, inode: int) -> None:
        passthrough.take_back(inode)

    def acquire(self, inode: int, valid_s: float, *, writing: bool = False) -> int | None:
        return passthrough.acquire(inode, _until(valid_s), writing)

    released = staticmethod(passthrough.released)

    def grant(self, inode: int, more_bytes: int) -> bool:
        return passthrough.grant(inode, more_bytes)

    def granted(self, inode: int, *, take_back: bool = False) -> int | None:
        left = passthrough.granted(inode, take_back)
        return left if left >= 0 else None

    def restamp(self, inode: int, stamp_ns: int, valid_s: float) -> None:
        passthrough.restamp(inode, stamp_ns, _until(valid_s))

    def is_registered(self, inode: int) -> bool:
        return passthrough.opens(inode) >= 0

    def is_intact(self, inode: int) -> bool:
        return passthrough.is_intact(inode)

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        backing_id = passthrough.retire(inode, only_idle)
        if backing_id > 0:
            self._close(backing_id)
            return True
        return not self.is_registered(inode)

    def take_touched(self) -> list[int]:
        return passthrough.take_touched()

    async def listen(self, events_fd: int) -> None:
        """Close the backing ids of retired inodes at their last close, pass on notices of opens; until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(events_fd)
            for inode, backing_id in passthrough.take_drained():
                self._close(backing_id)
                self._drained(inode)
            for inode in passthrough.take_noticed():
                try:
                    self._first_open(inode)
                except Exception:  # it only fetches ahead, and must not end the mount
                    log.exception("fetching ahead after an open failed in an unexpected way")

    # -- look-ups that the lanes answer

    @property
    def answers(self) -> bool:
        return self.serves_bytes

    def offer(self, parent: int, name: bytes, stat: Stat, *, only_name: bool, ahead: bool) -> bool:
        return self.serves_bytes and passthrough.offer(
            parent, name, stat.inode, stat.mode, stat.uid, stat.gid, stat.rdev, stat.size, stat.blocks,
            stat.mtime_ns, stat.ctime_ns, stat.atime_ns, _until(stat.ttl_s), only_name, ahead,
        )  # fmt: skip

    def offer_missing(self, directory: int, names: Sequence[bytes] | None, *, answer_s: float, valid_s: float) -> bool:
        return self.serves_bytes and passthrough.offer_missing(directory, _until(answer_s), _until(valid_s), names)

    def knows(self, parent: int, name: bytes) -> bool:
        return passthrough.knows(parent, name)

    revoke = staticmethod(passthrough.revoke)

    def revoke_below(self, directory: int) -> None:
        passthrough.revoke_below(directory)

    def revoke_missing(self, directory: int) -> None:
        passthrough.revoke_missing(directory)

    def revoke_all(self) -> None:
        passthrough.revoke_all()

    # -- invalidation

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Beyond `INVALIDATIONS_BOUND` the oldest are dropped: the time-outs then do their work."""
        self.revoke(parent, name)
        self._enqueue(parent, name)

    def invalidate_inode(self, inode: int) -> None:
        passthrough.revoke_inode(inode)
        self._enqueue(inode, None)

    def _enqueue(self, inode: int, name: bytes | None) -> None:
        if len(self._invalidations) == INVALIDATIONS_BOUND:
            self._handed_over += 1
        self._invalidations.append((inode, name))
        self._queued += 1
        self._wanted.set()

    async def forgotten(self) -> bool:
        wanted = self._queued
        with trio.move_on_after(SETTLE_DEADLINE_S):
            while self._handed_over < wanted:
                await self._progress.wait()
        return self._handed_over >= wanted

    async def hold(self) -> bool:
        """Tell the kernel all that it is to forget, and then nothing more until `go_on`; False if that takes too long.

        The kernel waits in such a call for requests that we have to answer: nobody else may have to answer them.
        """
        with trio.move_on_after(SETTLE_DEADLINE_S):
            while self._handed_over < self._queued:
                await self._progress.wait()
            self._holding = True
        return self._holding

    def go_on(self) -> None:
        """Tell the kernel again what it is to forget."""
        self._holding = False
        self._wanted.set()

    async def invalidate(self) -> None:
        """Tell the kernel, from a thread because the call waits for requests that we have to answer; until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self._invalidations and not self._holding:
                batch = [self._invalidations.popleft() for _ in range(min(256, len(self._invalidations)))]
                # Not abandoned: libfuse's session must outlive the call, which ends with the connection at the latest.
                await trio.to_thread.run_sync(_invalidate, batch)
                self._handed_over += len(batch)
                self._progress.set()
                self._progress = trio.Event()


def _invalidate(batch: list[tuple[int, bytes | None]]) -> None:
    """Make the kernel forget names in directories, or the attributes of an inode where the name is None."""
    for inode, name in batch:
        try:
            if name is None:
                pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)
            else:
                pyfuse3.invalidate_entry(pyfuse3.InodeT(inode), pyfuse3.FileNameT(name))
        except OSError as exc:
            # Nothing is cached, or it is not mounted yet (ENOSYS), or not any more.
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOSYS, errno.ENODEV):
                log.warning("the kernel's cache cannot be invalidated: %s", os.strerror(exc.errno or 0))


def _until(valid_s: float) -> int:
    return time.monotonic_ns() + int(min(valid_s, _LONG_S) * 1e9)
