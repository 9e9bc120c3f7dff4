"""Requests that are answered in one step of the event loop: no task is woken, and nothing is waited for.

The lanes put LOOKUP, GETATTR, SETATTR, CREATE, FLUSH, RELEASE and READDIRPLUS into a queue of their own
(`lane/prompt.c`), and the methods of `Prompt` are called for all that have come. Each answers, or returns False: then the
answer needs a wait, or it is an error, and the handler of `Operations` gives it. A FLUSH that waits for a commit of the
journal alone is answered at its end.
"""

from __future__ import annotations

import errno
import logging
import time
from functools import partial

import trio

from luxfuse.fuse.attributes import LONGEST_S, NUMBER_MASK, form_of, nanoseconds_of, ref_of
from luxfuse.fuse.errnos import Running, ended, errno_of, observe
from luxfuse.fuse.inheritance import RESENT
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations, handle_of
from luxfuse.fuse.packing import packed, positions_of
from luxfuse.vfs.attributes import AttributeChanges, Caller
from luxfuse.vfs.errors import NoSuchName
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.volumes import Volume, Volumes

log = logging.getLogger(__name__)


class Prompt:
    """The prompt answers of one mount."""

    def __init__(self, operations: Operations, volumes: Volumes) -> None:
        self._operations = operations
        self._volumes = volumes

    async def run(self) -> None:
        """Answer what comes, until cancelled."""
        fd = passthrough.set_prompt(
            (self.lookup, self.getattr, self.create, self.flush, self.release, self.setattr, self.readdir)
        )
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                passthrough.serve_prompt()
        finally:
            passthrough.set_prompt(None)

    def lookup(self, unique: int, parent: int, name: bytes) -> bool:
        """A name, if it is known to exist, or not to."""
        began_s, code = time.perf_counter(), 0
        try:
            stat = self._volumes.known(parent, name)
            if stat is None:
                return False
            passthrough.reply_entry(unique, *form_of(stat, 0), *nanoseconds_of(stat))
        except NoSuchName:
            valid_ns = int(min(self._volumes.negative_ttl_s(parent, name), LONGEST_S) * 1e9)
            passthrough.reply_entry(unique, *(0,) * 11, valid_ns, 0)
            code = errno.ENOENT
        except Exception:  # noqa: BLE001 (the handler meets it again, and says so)
            return False
        ended(self._operations, "lookup", began_s, (parent, name), code)
        return True

    def getattr(self, unique: int, inode: int) -> bool:
        """Attributes that are known."""
        began_s = time.perf_counter()
        try:
            stat = self._volumes.known_attributes(inode)
            if stat is None:
                return False
            passthrough.reply_attr(unique, *form_of(stat, 0), *nanoseconds_of(stat))
        except Exception:  # noqa: BLE001 (as above)
            return False
        ended(self._operations, "getattr", began_s, (inode,))
        return True

    def setattr(self, unique: int, inode: int, mode: int, uid: int, gid: int, atime_ns: int, mtime_ns: int) -> bool:
        """Permissions, owner and times of a file that is dirty already; -1 leaves a value."""
        began_s = time.perf_counter()
        if self._operations.read_only:
            return False
        changes = AttributeChanges(
            mode=None if mode < 0 else mode,
            uid=None if uid < 0 else uid,
            gid=None if gid < 0 else gid,
            atime_ns=None if atime_ns < 0 else atime_ns,
            mtime_ns=None if mtime_ns < 0 else mtime_ns,
        )
        try:
            volume = self._volumes.changeable(inode)
            with volume as fs:
                stat = fs.setattr_now(inode & LOCAL_MASK, changes)
            if stat is None:
                return False
            passthrough.reply_attr(unique, *form_of(stat, volume.base), *nanoseconds_of(stat))
        except Exception:  # noqa: BLE001 (as above)
            return False
        ended(self._operations, "setattr", began_s, (inode,))
        return True

    def create(
        self, unique: int, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int, pid: int, umask: int
    ) -> bool:
        """A file whose name is known to be free, where that waits for nothing."""
        began_s, code = time.perf_counter(), 0
        if self._operations.read_only or unique & RESENT:  # `once` knows whether it was made already
            return False
        try:
            volume = self._volumes.of_name(parent, name)
            caller = Caller(uid=uid, gid=gid, pid=pid, umask=umask)
            begun = self._operations.begun
            with volume as fs:
                begun.begin_new(unique, fs.next_inode)
                try:
                    made = fs.create_now(parent & LOCAL_MASK, name, mode & 0o7777, flags, caller)
                except BaseException:
                    begun.end(unique)
                    raise
            if made is None:
                begun.leave(unique)
                return False
            begun.end(unique)
            self._volumes.offer(parent)
            number, stat = made
            handle = handle_of(volume.base | number, flags)
            self._operations.keep(handle, unique, volume.base | stat.inode, flags)
            passthrough.reply_created(unique, *form_of(stat, volume.base), *nanoseconds_of(stat, created=True), handle)
        except Exception as exc:  # noqa: BLE001 (it is logged)
            code = errno_of(self._operations, "create", exc)
            passthrough.reply_done(unique, code)
        ended(self._operations, "create", began_s, (parent, name), code)
        return True

    def flush(self, unique: int, fh: int) -> bool:
        """A close that waits for the journal alone, or for nothing."""
        began_s = time.perf_counter()
        volume = self._volumes.find(fh & NUMBER_MASK)
        if volume is None or volume.fs is None:
            return False
        volume.under_way += 1
        waiting = None
        if self._operations.observers:
            waiting = Running("flush", None, began_s)
            waiting.watch()
        try:
            if volume.fs.flush_soon(ref_of(fh), partial(self._flushed, unique, volume, began_s, waiting, fh)):
                return True
        except Exception:
            log.debug("a close is tried again", exc_info=True)
        volume.under_way -= 1
        return False

    def _flushed(
        self, unique: int, volume: Volume, began_s: float, waiting: Running | None, fh: int, error: Exception | None
    ) -> None:
        volume.under_way -= 1
        code = 0 if error is None else errno_of(self._operations, "flush", error)
        passthrough.reply_done(unique, code)
        observe(self._operations, "flush", began_s)
        if waiting is not None:
            for told in self._operations.observers:
                told(waiting, (fh,), None, code)

    def release(self, unique: int, fh: int) -> bool:
        """The end of an open of a volume that there is."""
        began_s = time.perf_counter()
        volume = self._volumes.find(fh & NUMBER_MASK)
        if volume is None or volume.fs is None:
            return False
        code = 0
        if not fh & passthrough.MARK_FAST:
            self._operations.kept.closed(fh & NUMBER_MASK)
        try:
            volume.fs.released(ref_of(fh))
        except Exception as exc:  # noqa: BLE001 (it is logged)
            code = errno_of(self._operations, "release", exc)
        passthrough.reply_done(unique, code)
        observe(self._operations, "release", began_s)
        return True

    def readdir(self, unique: int, fh: int, start: int, size: int) -> bool:
        """Entries of a directory that are known; those that are still to come are waited for by the handler."""
        began_s, handle = time.perf_counter(), fh & NUMBER_MASK
        try:
            packing = packed(self._volumes, handle, start, size)
            if packing is None:
                return False
            kept = self._operations.kept
            if packing.last is not None and kept.wanted:
                kept.read_directory(handle, positions_of(self._volumes, handle, start, packing.last))
            passthrough.reply_packed(unique, packing.answer, packing.used)
        except Exception:  # noqa: BLE001 (the handler meets it again, and says so)
            return False
        ended(self._operations, "readdir", began_s, (fh, start))
        return True
