"""A flat directory of local files as a file system: what the fuse layer and the kernel do, without stores and caches.

    python -m tests.unit.fuse.small_fs MOUNTPOINT DIRECTORY TRACE [copy] [ro]

Every call is written to the file TRACE, one JSON list a line. ``copy``: no passthrough.
"""

from __future__ import annotations

import json
import os
import stat as stat_module
import sys
from pathlib import Path
from typing import Any

import trio

from luxfuse.core.listed_spans import Position
from luxfuse.errors import LuxError
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import Session
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.volumes import Volumes

ROOT = 1
TTL_S = 60.0


class Failure(LuxError):
    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.errno = code


class SmallFs:
    """The methods of `luxfuse.vfs.filesystem.FileSystem`, its parts, namespace and missing names that the tests need."""

    def __init__(self, kernel: KernelSide, directory: Path, trace: Path) -> None:
        self.kernel = kernel
        self.namespace = self.missing = self.answers = self.places = self
        self.can_ask = True
        self.directory = directory
        self.trace = trace.open("a", buffering=1)
        self.names: dict[bytes, int] = {}
        self.handles: dict[int, tuple[int, int]] = {}
        self.copied: set[int] = set()
        self.last_inode, self.last_handle = ROOT, 0
        self.xattrs, self.directories = SmallXattrs(self), SmallDirectories(self)
        kernel.on_drained(lambda inode: self.note("drained", inode))

    def looked_up(self, parent: int, name: bytes) -> None:
        """The lanes answer no look-ups."""

    def place_of(self, inode: int) -> None:
        """Nor for inodes: none has a place that could be offered."""

    def note(self, *what: Any) -> None:
        print(json.dumps(what, default=os.fsdecode), file=self.trace)

    def path(self, inode: int) -> str:
        return f"{self.directory}/{inode}"

    def find(self, name: bytes) -> int:
        inode = self.names.get(name)
        if inode is None:
            raise Failure(2)
        return inode

    def stat(self, inode: int) -> Stat:
        st = os.lstat(self.directory if inode == ROOT else self.path(inode))
        return Stat(
            inode=inode,
            mode=st.st_mode,
            size=st.st_size,
            uid=st.st_uid,
            gid=st.st_gid,
            mtime_ns=st.st_mtime_ns,
            ttl_s=TTL_S,
            atime_ns=st.st_atime_ns,
            ctime_ns=st.st_ctime_ns,
            blocks=st.st_blocks,
            nlink=1,
            rdev=st.st_rdev,
        )

    # -- names

    def is_doubtful(self, parent: int, name: bytes) -> bool:
        return False

    async def lookup(self, parent: int, name: bytes) -> Stat:
        return self.stat(self.find(name))

    async def getattr(self, inode: int) -> Stat:
        self.note("getattr", inode)
        return self.stat(inode)

    def new(self, name: bytes) -> int:
        if name in self.names:
            raise Failure(17)
        self.last_inode += 1
        self.names[name] = self.last_inode
        return self.last_inode

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Stat]:
        self.note("create", name, mode, caller.uid, caller.umask)
        inode = self.new(name)
        fd = os.open(self.path(inode), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        os.fchmod(fd, mode)
        os.chown(fd, caller.uid, caller.gid)
        os.close(fd)
        return self.opened(inode, flags), self.stat(inode)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Stat:
        self.note("mknod", name, mode, rdev)
        inode = self.new(name)
        os.mknod(self.path(inode), mode, rdev)
        return self.stat(inode)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Stat:
        self.note("mkdir", name, mode)
        raise Failure(1)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Stat:
        self.note("symlink", name, target)
        inode = self.new(name)
        os.symlink(target, self.path(inode))
        return self.stat(inode)

    async def readlink(self, inode: int) -> bytes:
        return os.fsencode(os.readlink(self.path(inode)))

    async def link(self, inode: int, parent: int, name: bytes, caller: Caller) -> Stat:
        self.note("link", name)
        raise Failure(1)

    async def unlink(self, parent: int, name: bytes) -> None:
        self.note("unlink", name)
        os.unlink(self.path(self.find(name)))
        del self.names[name]

    async def rmdir(self, parent: int, name: bytes) -> None:
        raise Failure(20)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self.note("rename", name, new_name, flags)
        if flags & 1 and new_name in self.names:
            raise Failure(17)
        self.names[new_name] = self.names.pop(name)

    async def setattr(self, inode: int, changes: AttributeChanges, ref: Ref | None, caller: Caller) -> Stat:
        self.note("setattr", inode, {name: getattr(changes, name) for name in changes.__slots__}, ref)
        path = self.path(inode)
        if changes.size is not None:
            os.truncate(path, changes.size)
        if changes.uid is not None or changes.gid is not None:
            os.chown(path, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid)
        if changes.mode is not None:
            os.chmod(path, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            st = os.stat(path)
            atime_ns = st.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            os.utime(path, ns=(atime_ns, st.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns))
        return self.stat(inode)

    async def fsyncdir(self, inode: int) -> None:
        self.note("fsyncdir", inode)

    # -- files

    def opened(self, inode: int, flags: int) -> int:
        path = self.path(inode)
        if flags & os.O_TRUNC:
            os.truncate(path, 0)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if not self.kernel.hands_over:
            self.last_handle += 1
            self.handles[self.last_handle] = (inode, os.open(path, os.O_RDWR))
            return self.last_handle
        if not self.kernel.is_registered(inode):
            fd = os.open(path, os.O_RDONLY)
            assert self.kernel.register(inode, fd, os.fstat(fd).st_mtime_ns, TTL_S)
            os.close(fd)
        handle = self.kernel.acquire(inode, TTL_S, writing=writing)
        assert handle is not None
        return handle

    async def open(self, inode: int, flags: int, caller: Caller) -> int:
        self.note("open", inode, flags & 0o7777 & ~0o3000 | flags & os.O_TRUNC)
        return self.opened(inode, flags)

    def fd_of(self, ref: Ref) -> int:
        if ref.inode is not None:
            return os.open(self.path(ref.inode), os.O_RDWR)
        assert ref.number is not None
        return os.dup(self.handles[ref.number][1])

    async def read(self, ref: Ref, offset: int, length: int) -> bytes:
        fd = self.fd_of(ref)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    async def write(self, ref: Ref, offset: int, data: bytes) -> int:
        self.note("write", ref, offset, len(data))
        fd = self.fd_of(ref)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    async def flush(self, ref: Ref) -> None:
        self.note("flush", ref)

    async def fsync(self, ref: Ref, datasync: bool) -> None:
        self.note("fsync", ref, datasync)

    async def fallocate(self, ref: Ref, mode: int, offset: int, length: int) -> None:
        self.note("fallocate", ref, mode, offset, length)
        if mode & 2:
            raise Failure(95)
        fd = self.fd_of(ref)
        try:
            os.posix_fallocate(fd, offset, length)
        finally:
            os.close(fd)

    async def release(self, ref: Ref) -> None:
        self.note("release", ref)
        if ref.inode is not None:
            self.kernel.restamp(ref.inode, os.stat(self.path(ref.inode)).st_mtime_ns, TTL_S)
            self.kernel.released(ref.inode)
        else:
            assert ref.number is not None
            os.close(self.handles.pop(ref.number)[1])


class SmallXattrs:
    """The extended attributes of a `SmallFs`."""

    def __init__(self, fs: SmallFs) -> None:
        self.fs = fs
        self.values: dict[tuple[int, bytes], bytes] = {}

    async def get(self, inode: int, name: bytes) -> bytes:
        self.fs.note("getxattr", inode, name)
        if (inode, name) not in self.values:
            raise Failure(61)
        return self.values[inode, name]

    async def set(self, inode: int, name: bytes, value: bytes) -> None:
        self.fs.note("setxattr", inode, name, value)
        if name == b"user.mode":  # changed behind the kernel's back, which is then told
            os.chmod(self.fs.path(inode), int(value, 8))
            self.fs.kernel.invalidate_inode(inode)
            await self.fs.kernel.forgotten()
        self.values[inode, name] = value

    async def remove(self, inode: int, name: bytes) -> None:
        if self.values.pop((inode, name), None) is None:
            raise Failure(61)


class SmallDirectories:
    """The one directory of a `SmallFs`."""

    def __init__(self, fs: SmallFs) -> None:
        self.fs = fs

    async def open(self, inode: int, whole: bool) -> tuple[int, bool]:
        return 7, False

    def streams(self, handle: int) -> bool:
        return False

    async def prepare(self, handle: int, cookie: int) -> None:
        pass

    def positions(self, handle: int, start: int, cookie: int, name: bytes) -> dict[int, Position]:
        return {}

    async def more(self, handle: int) -> bool:
        return False

    def inode_of(self, handle: int) -> int:
        return ROOT

    def read(self, handle: int, cookie: int) -> Any:
        for number, (name, inode) in enumerate(sorted(self.fs.names.items())[cookie:], cookie + 1):
            yield name, self.fs.stat(inode), number

    def close(self, handle: int) -> None:
        pass


async def serve(mountpoint: str, directory: str, trace: str, *flags: str) -> None:
    os.umask(0)
    kernel = KernelSide()
    fs = SmallFs(kernel, Path(directory), Path(trace))
    volumes = Volumes(kernel)
    volumes.main.serve(fs, negative_ttl_s=0.0, read_only=False)  # type: ignore[arg-type]
    operations = Operations(volumes, read_only="ro" in flags)
    session = Session(
        operations,
        kernel,
        mountpoint=mountpoint,
        source="small",
        allow_other=os.geteuid() == 0,
        want_passthrough="copy" not in flags and "lanes" not in flags,
        want_data_plane="lanes" in flags,
        cache_directories=[Path(directory)],
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(session.serve)
        fs.note("ready", kernel.passthrough, kernel.reason)
        await session.ended.wait()
        fs.note("errors", operations.errors)


if __name__ == "__main__":
    assert stat_module.S_ISDIR(os.stat(sys.argv[2]).st_mode)
    trio.run(serve, *sys.argv[1:])
