"""A tree of several volumes on fake stores, with one fake kernel."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from luxfuse.fuse.attributes import NUMBER_MASK
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import Caller
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.shares import KernelShares
from luxfuse.vfs.volumes import Volume, Volumes
from tests.support.fake_kernel import FakeKernel
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted

CONTEXT: Any = SimpleNamespace(uid=1000, gid=100, pid=7, umask=0o022)


class Handlers:
    """The handlers of `Operations` as `FakeKernel` calls a file system."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def open(self, inode: int, flags: int, caller: Caller) -> int:
        """Open; returns the handle, with marks only if it is in passthrough."""
        return _without_marks((await self._operations.open(inode, flags, CONTEXT)).fh)

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Any]:
        """Create and open; returns the handle as `open`, and the inode."""
        info, entry = await self._operations.create(parent, name, mode, flags, CONTEXT)
        return _without_marks(info.fh), SimpleNamespace(inode=entry.st_ino)

    async def getattr(self, inode: int) -> Any:
        """Return what reads are cut to."""
        return SimpleNamespace(size=(await self._operations.getattr(inode)).st_size)

    async def read(self, ref: Ref, offset: int, length: int) -> Any:
        """Read."""
        return await self._operations.read(_handle_of(ref), offset, length)

    async def write(self, ref: Ref, offset: int, data: bytes) -> int:
        """Write."""
        return await self._operations.write(_handle_of(ref), offset, data)

    async def flush(self, ref: Ref) -> None:
        """One descriptor is closed."""
        await self._operations.flush(_handle_of(ref))

    async def release(self, ref: Ref) -> None:
        """The last descriptor is closed."""
        await self._operations.release(_handle_of(ref))


def _without_marks(fh: int) -> int:
    return fh if fh & passthrough.MARK_FAST else fh & NUMBER_MASK


def _handle_of(ref: Ref) -> int:
    if ref.inode is not None:
        return passthrough.MARK | passthrough.MARK_FAST | ref.inode
    assert ref.number is not None
    return passthrough.MARK | ref.number


class Tree:
    """Volumes, their handlers, and what a program does with paths in them."""

    def __init__(self, path: Path) -> None:
        self.kernel = FakeKernel()
        self.shares = KernelShares(self.kernel)
        self.volumes = Volumes(self.kernel)
        self.operations = Operations(self.volumes, read_only=False)
        self.fs: Any = Handlers(self.operations)
        self._path = path

    @asynccontextmanager
    async def volume(
        self, number: int, store: FakeStore, *, read_only: bool = False, clean_end: bool = True
    ) -> AsyncIterator[tuple[Volume, Mount]]:
        """A volume that serves ``store`` but hangs nowhere yet; number 0 is the mount's own."""
        (self._path / str(number)).mkdir(exist_ok=True)
        options = Options(share=self.shares.share(number))
        async with mounted(self._path / str(number), store, options, clean_end=clean_end) as mount:
            volume = Volume(number) if number else self.volumes.main
            volume.serve(mount.fs, negative_ttl_s=5.0 + number, read_only=read_only)
            yield volume, mount

    async def inode(self, path: str) -> int:
        """Look a path up, name by name."""
        inode = ROOT_INODE
        for part in path.split("/") if path else []:
            inode = (await self.volumes.lookup(inode, part.encode())).inode
        return inode

    async def read(self, path: str) -> bytes:
        """Open, read and close."""
        handle = await self.kernel.open(self.fs, await self.inode(path))
        try:
            return await self.kernel.read_all(self.fs, handle)
        finally:
            await self.kernel.release(self.fs, handle)

    async def create(self, path: str) -> int:
        """Create a file; returns its handle."""
        parent, _, name = path.rpartition("/")
        return (await self.kernel.create(self.fs, await self.inode(parent), name.encode()))[0]

    async def write(self, path: str, data: bytes) -> None:
        """Create a file with some content."""
        handle = await self.create(path)
        await self.kernel.write(self.fs, handle, 0, data)
        await self.kernel.close(self.fs, handle)

    async def opendir(self, inode: int) -> tuple[int, bool]:
        """Open a directory; returns its handle, and whether the listing that the kernel has still holds."""
        fh = await self.operations.opendir(inode, CONTEXT)
        return fh & NUMBER_MASK, bool(fh & passthrough.MARK_KEEP_CACHE)

    async def listing(self, path: str, batch: int = 1000) -> list[tuple[bytes, int]]:
        """Names and inodes of a directory, read ``batch`` entries at a time."""
        handle, _ = await self.opendir(await self.inode(path))
        found: list[tuple[bytes, int]] = []
        cookie = 0
        try:
            while True:
                part = list(zip(range(batch), self.volumes.readdir(handle, cookie), strict=False))
                found += [(name, stat.inode) for _, (name, stat, _) in part]
                if not part:
                    return found
                cookie = part[-1][1][2]
        finally:
            await self.operations.releasedir(handle)

    def close(self) -> None:
        """What the end of the process closes."""
        for backing in self.kernel.table.values():
            for fd in (backing.fd, *backing.writers):
                os.close(fd)
        self.kernel.table.clear()


@asynccontextmanager
async def two_volumes(
    path: Path, outer: FakeStore, inner: FakeStore, at: str, *, read_only: bool = False, clean_end: bool = True
) -> AsyncIterator[tuple[Tree, Volume, Mount, Mount]]:
    """A tree of ``outer`` with ``inner`` attached; yields (tree, inner volume, outer mount, inner mount)."""
    tree = Tree(path)
    try:
        async with (
            tree.volume(0, outer) as (_, below),
            tree.volume(1, inner, read_only=read_only, clean_end=clean_end) as (volume, above),
        ):
            await tree.volumes.attach(volume, at)
            yield tree, volume, below, above
    finally:
        tree.close()
