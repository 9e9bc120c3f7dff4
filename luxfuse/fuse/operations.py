"""The FUSE operations: each asks for the volume that it is about, and calls that one's file system.

To the kernel, inodes and handles are numbers with that of their volume; to a file system, the part in `LOCAL_MASK`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

import trio

from luxfuse.core.histogram import Histogram
from luxfuse.errors import LuxError
from luxfuse.fuse.again import (
    first_name,
    is_another,
    made_file,
    made_link,
    made_name,
    removed,
    renamed,
    second_name,
    third_name,
    turned,
)  # fmt: skip
from luxfuse.fuse.attributes import NUMBER_MASK, caller_of, changes_of, ref_of, to_kernel, without_set_ids
from luxfuse.fuse.errnos import Observer, Running, changing, guarded
from luxfuse.fuse.inheritance import RESENT
from luxfuse.fuse.interrupts import Interrupts, closing, interruptible
from luxfuse.fuse.kept import KeptHandles
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.fuse.once import EITHER, GONE, THERE, Begun, once
from luxfuse.fuse.packing import positions_of
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.volumes import Volume, Volumes

MARK = passthrough.MARK
READING_MARK = MARK | passthrough.MARK_NOFLUSH
WRITING_MARK = MARK
DIRECTORY_MARK = MARK | passthrough.MARK_CACHE_DIR
CAPABILITY = b"security.capability"
WRITE_FLAGS = os.O_ACCMODE | os.O_TRUNC
"""Any of these, and an open changes something or may."""
STATFS_BLOCK = 1 << 20
STATFS_BLOCKS = 1 << 30
"""A bucket has no size; this says 1 PiB, so that no program thinks that it is full."""


def handle_of(handle: int, flags: int) -> int:
    """Return a handle for the kernel: as the vfs gave it, with marks if it has none."""
    if not handle & MARK:
        handle |= WRITING_MARK if flags & WRITE_FLAGS else READING_MARK
    return handle


class Operations(pyfuse3.Operations):
    """One mount. Handles that pyfuse3 sees carry the marks of the extension (`_passthrough.c`)."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self, volumes: Volumes, *, read_only: bool, kept: KeptHandles | None = None, begun: Begun | None = None
    ) -> None:
        """``kept``: the handles, and ``begun``: the changes under way, for a successor."""
        super().__init__()
        self.kept = kept or KeptHandles(None)
        self.begun = begun or Begun(None, volumes)
        self.volumes = volumes
        self.read_only = read_only
        self.interrupts = Interrupts()
        self.errors = self.refusals = 0
        self.latency: dict[str, Histogram] = {}
        """How long requests took, by handler; those that are answered in C are not among them."""
        self.running: set[Running] = set()
        self.observers: list[Observer] = []
        self._directories: dict[int, int] = self.kept.directories()
        """Inode by the number of its open handle."""

    @property
    def busy(self) -> bool:
        """Whether a request that Python has taken is not answered yet."""
        return bool(self.running) or self.volumes.under_way

    def directory_of(self, fh: int) -> int | None:
        """Return the inode of an open directory."""
        return self._directories.get(fh & NUMBER_MASK)

    # -- names and attributes

    @guarded
    @interruptible
    async def lookup(self, parent_inode: Any, name: Any, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """A missing name is answered as one, so that the kernel remembers it."""
        try:
            return to_kernel(await self.volumes.lookup(parent_inode, name))
        except LuxError as exc:
            if exc.errno != errno.ENOENT:
                raise
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = self.volumes.negative_ttl_s(parent_inode, name)
            return missing

    @guarded
    @interruptible
    async def getattr(self, inode: Any, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        return to_kernel(await self.volumes.getattr(inode))

    def forget(self, inode_list: Sequence[Any]) -> Any:
        """Inode numbers are persistent, so there is nothing to count."""

    @guarded
    @interruptible
    async def readlink(self, inode: Any, ctx: Any) -> Any:
        """Target of a symlink."""
        with self.volumes.of(inode) as fs:
            return await fs.readlink(inode & LOCAL_MASK)

    @guarded
    async def access(self, inode: Any, mode: Any, ctx: Any) -> bool:
        """The kernel checks permissions (default_permissions)."""
        return True

    @guarded
    @interruptible
    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> bytes:
        """The value of an extended attribute."""
        with self.volumes.of(inode) as fs:
            return await fs.xattrs.get(inode & LOCAL_MASK, name)

    @guarded
    @interruptible
    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        """Names of the extended attributes."""
        with self.volumes.of(inode) as fs:
            return await fs.xattrs.names(inode & LOCAL_MASK)

    @guarded
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Sizes of a store without a size."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = STATFS_BLOCK
        data.f_blocks = data.f_bfree = data.f_bavail = STATFS_BLOCKS
        data.f_files = data.f_ffree = data.f_favail = 1 << 40
        data.f_namemax = 255
        return data

    # -- directories

    @guarded
    @interruptible
    async def opendir(self, inode: Any, ctx: Any) -> Any:
        """List if need be, or begin to; the kernel keeps a whole listing, and its old one if that still holds."""
        unique = passthrough.current()[0]
        handle, cached, holds = await self.volumes.opendir(inode)
        self._directories[handle] = inode
        self.kept.opened_directory(handle, unique & ~RESENT, inode)
        mark = (DIRECTORY_MARK if cached else MARK) | (passthrough.MARK_KEEP_CACHE if holds else 0)
        return pyfuse3.FileHandleT(mark | handle)

    @guarded
    @interruptible
    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        """Fill the reply with entries and their attributes. One without any is the end: so it waits for the first."""
        entry = pyfuse3.EntryAttributes()  # readdir_reply copies it
        handle, last = fh & NUMBER_MASK, None
        with self.volumes.of(handle) as fs:
            await fs.directories.prepare(handle & LOCAL_MASK, start_id)
        while last is None:
            for name, stat, cookie in self.volumes.readdir(handle, start_id):
                if not pyfuse3.readdir_reply(token, name, to_kernel(stat, entry=entry), cookie):
                    break
                last = cookie, name
            if last is None and not await self.volumes.more(handle):
                break
        if last is not None and self.kept.wanted:
            self.kept.read_directory(handle, positions_of(self.volumes, handle, start_id, last))

    @guarded
    async def releasedir(self, fh: Any) -> None:
        """Close a directory."""
        number = fh & NUMBER_MASK
        self._directories.pop(number, None)
        self.kept.closed_directory(number)
        volume = self.volumes.find(number)
        if volume is not None and volume.fs is not None:
            volume.fs.directories.close(number & LOCAL_MASK)

    @guarded
    async def fsyncdir(self, fh: Any, datasync: bool) -> None:
        """Make the names of a directory durable."""
        inode = self.directory_of(fh)
        if inode is not None:
            with self.volumes.of(inode) as fs:
                await fs.fsyncdir(inode & LOCAL_MASK)

    # -- files

    @guarded
    @interruptible
    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        """Open, in passthrough if possible."""
        if self.read_only and flags & WRITE_FLAGS:
            raise pyfuse3.FUSEError(errno.EROFS)
        volume = self.volumes.changeable(inode) if flags & WRITE_FLAGS else self.volumes.of(inode)
        unique = passthrough.current()[0]
        local, caller = inode & LOCAL_MASK, caller_of(ctx)
        with volume as fs:
            if flags & passthrough.FLAG_KILL_SUIDGID:
                flags &= ~passthrough.FLAG_KILL_SUIDGID
                changes = without_set_ids(AttributeChanges(), await fs.getattr(local))
                with trio.CancelScope(shield=True):  # a change of the object is not left half done
                    await self._change(fs, inode, changes, None, caller)
            handle = await fs.open(local, flags, caller)
        return self.opened(volume, handle, flags, unique, inode)

    @changing
    @once(first_name, THERE, made_file)
    @interruptible
    async def create(self, parent_inode: Any, name: Any, mode: Any, flags: Any, ctx: Any) -> Any:
        """Make a file and open it as ``flags`` say."""
        volume, unique = self.volumes.of_name(parent_inode, name), passthrough.current()[0]
        with volume as fs:
            handle, stat = await fs.create(parent_inode & LOCAL_MASK, name, mode & 0o7777, flags, caller_of(ctx))
        self.volumes.offer(parent_inode)
        info = self.opened(volume, handle, flags, unique, volume.base | stat.inode)
        return info, to_kernel(stat, volume.base, created=True)

    @guarded
    @interruptible
    async def read(self, fh: Any, off: int, size: int) -> Any:
        """Copy bytes to the kernel."""
        with self.volumes.of(fh & NUMBER_MASK) as fs:
            return await fs.read(ref_of(fh), off, size)

    @changing
    @interruptible
    async def write(self, fh: Any, off: int, buf: bytes) -> int:
        """Copy bytes from the kernel."""
        with self.volumes.of(fh & NUMBER_MASK) as fs:
            return await fs.write(ref_of(fh), off, buf)

    @guarded
    @closing
    async def flush(self, fh: Any) -> None:
        """One descriptor of an open file is being closed; not asked for handles that only read."""
        with self.volumes.of(fh & NUMBER_MASK) as fs:
            await fs.flush(ref_of(fh))

    @guarded
    @interruptible
    async def fsync(self, fh: Any, datasync: bool) -> None:
        """Make a file durable."""
        with self.volumes.of(fh & NUMBER_MASK) as fs:
            await fs.fsync(ref_of(fh), datasync)

    @guarded
    async def release(self, fh: Any) -> None:
        """End an open, which may outlive its volume; the extension ends those that read in passthrough."""
        volume = self.volumes.find(fh & NUMBER_MASK)
        self.kept.closed(fh & NUMBER_MASK)
        if volume is not None:
            with volume as fs:
                await fs.release(ref_of(fh))
        elif fh & passthrough.MARK_FAST:
            self.volumes.outlived(fh & NUMBER_MASK)

    @changing
    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range. pyfuse3 knows no such handler: the session calls this one."""
        with self.volumes.of(fh & NUMBER_MASK) as fs:
            await fs.fallocate(ref_of(fh), mode, offset, length)

    def opened(self, volume: Volume, handle: int, flags: int, unique: int, inode: int) -> pyfuse3.FileInfo:
        """Return the answer to an open in a volume; ``unique``: the number of its request."""
        fh = handle_of(volume.base | handle, flags)
        self.keep(fh, unique, inode, flags)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), keep_cache=volume.keeps_pages)

    def keep(self, fh: int, unique: int, inode: int, flags: int) -> None:
        """Keep a handle, which is about to be the answer, for a successor."""
        if fh & passthrough.MARK_FAST:
            passthrough.answering(unique)
        else:
            writing = bool(flags & WRITE_FLAGS)
            self.kept.opened(fh & NUMBER_MASK, unique & ~RESENT, inode, writing=writing)

    # -- changes of names and attributes

    @changing
    async def setattr(self, inode: Any, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Change permissions, owner, size or times. The extension says with ``update_ctime``: clear set-id bits."""
        ref = None if fh is None else ref_of(fh)
        changes = changes_of(attr, fields)
        volume = self.volumes.of(inode)
        with volume as fs:
            if fields.update_ctime:
                changes = without_set_ids(changes, await fs.getattr(inode & LOCAL_MASK))
            stat = await self._change(fs, inode, changes, ref, caller_of(ctx))
        return to_kernel(stat, volume.base)

    async def _change(self, fs: FileSystem, inode: int, changes: AttributeChanges, ref: Ref | None, caller: Caller) -> Stat:
        if changes == AttributeChanges():
            return await fs.getattr(inode & LOCAL_MASK)
        self.volumes.changeable(inode)
        return await fs.setattr(inode & LOCAL_MASK, changes, ref, caller)

    @changing
    @once(first_name, THERE, made_name)
    async def mkdir(self, parent_inode: Any, name: Any, mode: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        volume = self.volumes.of_name(parent_inode, name)
        with volume as fs:
            stat = await fs.mkdir(parent_inode & LOCAL_MASK, name, mode & 0o7777, caller_of(ctx))
        self.volumes.offer(parent_inode)
        return to_kernel(stat, volume.base)

    @changing
    @once(first_name, THERE, made_name)
    async def mknod(self, parent_inode: Any, name: Any, mode: Any, rdev: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a file, FIFO, socket or device; ``mode`` says which."""
        volume = self.volumes.of_name(parent_inode, name)
        with volume as fs:
            stat = await fs.mknod(parent_inode & LOCAL_MASK, name, mode, rdev, caller_of(ctx))
        return to_kernel(stat, volume.base)

    @changing
    @once(first_name, THERE, made_name)
    async def symlink(self, parent_inode: Any, name: Any, target: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a symlink."""
        volume = self.volumes.of_name(parent_inode, name)
        with volume as fs:
            stat = await fs.symlink(parent_inode & LOCAL_MASK, name, target, caller_of(ctx))
        return to_kernel(stat, volume.base)

    @changing
    @once(second_name, THERE, made_link)
    async def link(self, inode: Any, new_parent_inode: Any, new_name: Any, ctx: Any) -> Any:
        """Make a copy under a further name, where the mount is told to: a key has one name."""
        self.volumes.require_same(inode, new_parent_inode)
        volume = self.volumes.of_name(new_parent_inode, new_name)
        with volume as fs:
            stat = await fs.link(inode & LOCAL_MASK, new_parent_inode & LOCAL_MASK, new_name, caller_of(ctx))
        return to_kernel(stat, volume.base)

    @changing
    @once(first_name, GONE, removed, turned=is_another)
    async def unlink(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        """Remove a name of anything but a directory."""
        with self.volumes.of_name(parent_inode, name) as fs:
            await fs.unlink(parent_inode & LOCAL_MASK, name)
        self.volumes.offer(parent_inode)

    @changing
    @once(first_name, GONE, removed, turned=is_another)
    async def rmdir(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        """Remove an empty directory."""
        with self.volumes.of_name(parent_inode, name) as fs:
            await fs.rmdir(parent_inode & LOCAL_MASK, name)
        self.volumes.offer(parent_inode)

    @changing
    @once(first_name, EITHER, renamed, other=third_name, turned=turned)
    async def rename(
        self, parent_inode_old: Any, name_old: Any, parent_inode_new: Any, name_new: Any, flags: Any, ctx: Any
    ) -> None:
        """Move a name; ``flags`` are those of renameat2."""
        self.volumes.require_same(parent_inode_old, parent_inode_new)
        self.volumes.of_name(parent_inode_new, name_new)
        with self.volumes.of_name(parent_inode_old, name_old) as fs:
            await fs.rename(parent_inode_old & LOCAL_MASK, name_old, parent_inode_new & LOCAL_MASK, name_new, flags)

    @changing
    async def setxattr(self, inode: Any, name: Any, value: bytes, ctx: Any) -> None:
        """Set an extended attribute. There are no file capabilities: the extension says so without asking."""
        flags, unique = passthrough.xattr_flags(), passthrough.current()[0]
        if name == CAPABILITY:
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        with self.volumes.changeable(inode) as fs, self.begun.of_attribute(unique, inode, name) as begun:
            if flags and not begun.earlier:
                await self._require_attribute(fs, inode & LOCAL_MASK, name, there=bool(flags & os.XATTR_REPLACE))
            begun.begin()
            await fs.xattrs.set(inode & LOCAL_MASK, name, value)

    async def _require_attribute(self, fs: FileSystem, inode: int, name: bytes, *, there: bool) -> None:
        try:
            await fs.xattrs.get(inode, name)
        except LuxError as exc:
            if there or exc.errno != errno.ENODATA:
                raise
        else:
            if not there:
                raise pyfuse3.FUSEError(errno.EEXIST)

    @changing
    async def removexattr(self, inode: Any, name: Any, ctx: Any) -> None:
        """Remove an extended attribute."""
        unique = passthrough.current()[0]
        with self.volumes.changeable(inode) as fs, self.begun.of_attribute(unique, inode, name) as begun:
            if self.begun.kept and not begun.earlier:
                with contextlib.suppress(LuxError):  # the removal meets it again
                    await fs.xattrs.get(inode & LOCAL_MASK, name)
                    begun.begin()
            try:
                await fs.xattrs.remove(inode & LOCAL_MASK, name)
            except LuxError as exc:
                if not (begun.earlier and exc.errno == errno.ENODATA):
                    raise
