"""The FUSE operations: a thin shell around `luxfuse.vfs`, and the one place where errors become errnos."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

from luxfuse.errors import LuxError
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

MARK = passthrough.MARK
MARK_FAST = passthrough.MARK_FAST
FILE_MARK = MARK | passthrough.MARK_NOFLUSH
DIRECTORY_MARK = MARK | passthrough.MARK_CACHE_DIR
NUMBER_MASK = (1 << 32) - 1
INODE_MASK = (1 << 48) - 1
WRITE_FLAGS = 0o3 | 0o1000 | 0o2000
"""O_ACCMODE, O_TRUNC, O_APPEND"""
STATFS_BLOCK = 1 << 20
STATFS_BLOCKS = 1 << 30
"""A bucket has no size; this says 1 PiB, so that no program thinks that it is full."""


def guarded(handler: F) -> F:
    """Turn every exception of a handler into an errno: any other than FUSEError would end the mount."""

    @functools.wraps(handler)
    async def wrapper(self: Operations, *args: Any, **kwargs: Any) -> Any:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except LuxError as exc:
            if exc.errno not in (errno.ENOENT, errno.ESTALE, errno.ENODATA, errno.ENAMETOOLONG):
                self.errors += 1
                log.info("%s: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(exc.errno) from None
        except OSError as exc:
            self.errors += 1
            log.warning("%s: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None
        except Exception:
            self.errors += 1
            log.exception("%s failed in an unexpected way", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapper  # type: ignore[return-value]


def _attributes(stat: Stat, entry: pyfuse3.EntryAttributes | None = None) -> pyfuse3.EntryAttributes:
    """Return the kernel's form of ``stat``, in ``entry`` if that is given."""
    if entry is None:
        entry = pyfuse3.EntryAttributes()
    entry.st_ino = stat.inode
    entry.st_mode = stat.mode
    entry.st_nlink = 1
    entry.st_size = stat.size
    entry.st_blocks = (stat.size + 511) >> 9
    entry.st_blksize = 4096
    entry.st_uid = stat.uid
    entry.st_gid = stat.gid
    entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = stat.mtime_ns
    entry.entry_timeout = entry.attr_timeout = min(stat.ttl_s, 1e8)
    return entry


class Operations(pyfuse3.Operations):
    """One mount. Handles that pyfuse3 sees carry the marks of the extension; see `_passthrough.c`."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, fs: FileSystem, negative_ttl_s: float) -> None:
        super().__init__()
        self._fs = fs
        self._negative_ttl_s = negative_ttl_s
        self.errors = 0

    # -- names and attributes

    @guarded
    async def lookup(self, parent_inode: Any, name: Any, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """A missing name is answered as one, so that the kernel remembers it."""
        try:
            return _attributes(await self._fs.lookup(parent_inode, name))
        except LuxError as exc:
            if exc.errno != errno.ENOENT:
                raise
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = self._negative_ttl_s
            return missing

    @guarded
    async def getattr(self, inode: Any, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        return _attributes(await self._fs.getattr(inode))

    def forget(self, inode_list: Sequence[Any]) -> Any:
        """Inode numbers are persistent, so there is nothing to count."""

    @guarded
    async def readlink(self, inode: Any, ctx: Any) -> Any:
        """Target of a symlink."""
        return await self._fs.readlink(inode)

    @guarded
    async def access(self, inode: Any, mode: Any, ctx: Any) -> bool:
        """The kernel checks permissions (default_permissions)."""
        return True

    @guarded
    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> bytes:
        """One of ``user.luxfuse.*``."""
        return await self._fs.getxattr(inode, name)

    @guarded
    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        """Names of the extended attributes."""
        return await self._fs.listxattr(inode)

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
    async def opendir(self, inode: Any, ctx: Any) -> Any:
        """List if need be; the kernel keeps the listing, and its old one if that still holds."""
        handle, holds = await self._fs.opendir(inode)
        mark = DIRECTORY_MARK | (passthrough.MARK_KEEP_CACHE if holds else 0)
        return pyfuse3.FileHandleT(mark | handle)

    @guarded
    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        """Fill the reply with entries and their attributes."""
        entry = pyfuse3.EntryAttributes()  # readdir_reply copies it
        for name, stat, cookie in self._fs.readdir(fh & NUMBER_MASK, start_id):
            if not pyfuse3.readdir_reply(token, name, _attributes(stat, entry), cookie):
                break

    @guarded
    async def releasedir(self, fh: Any) -> None:
        """Close a directory."""
        self._fs.releasedir(fh & NUMBER_MASK)

    @guarded
    async def fsyncdir(self, fh: Any, datasync: bool) -> None:
        """Nothing is ever dirty."""

    # -- files

    @guarded
    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        """Open for reading, in passthrough if the file is whole in the cache."""
        if flags & WRITE_FLAGS:
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = await self._fs.open(inode)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle if handle & MARK else FILE_MARK | handle), keep_cache=True)

    @guarded
    async def read(self, fh: Any, off: int, size: int) -> Any:
        """Copy bytes to the kernel."""
        if fh & MARK_FAST:
            return await self._fs.files.read_registered(fh & INODE_MASK, off, size)
        return await self._fs.read(fh & NUMBER_MASK, off, size)

    @guarded
    async def flush(self, fh: Any) -> None:
        """Nothing is ever dirty."""

    @guarded
    async def fsync(self, fh: Any, datasync: bool) -> None:
        """Nothing is ever dirty."""

    @guarded
    async def release(self, fh: Any) -> None:
        """End a copied open; the extension ends the others."""
        self._fs.release(fh & NUMBER_MASK)

    # -- changes: mounts are read-only

    async def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    create = _refuse
    link = _refuse
    mkdir = _refuse
    mknod = _refuse
    removexattr = _refuse
    rename = _refuse
    rmdir = _refuse
    setattr = _refuse
    setxattr = _refuse
    symlink = _refuse
    unlink = _refuse
    write = _refuse
