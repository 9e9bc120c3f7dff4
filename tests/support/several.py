"""A tree of several volumes on fake stores, with one fake kernel."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.shares import KernelShares
from luxfuse.vfs.volumes import Volume, Volumes
from tests.support.fake_kernel import FakeKernel
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted


class Tree:
    """Volumes, and what a program does with paths in them."""

    def __init__(self, path: Path) -> None:
        self.kernel = FakeKernel()
        self.shares = KernelShares(self.kernel)
        self.fs = Volumes(self.shares)
        self._path = path

    @asynccontextmanager
    async def volume(
        self, number: int, store: FakeStore, *, read_only: bool = False, clean_end: bool = True
    ) -> AsyncIterator[tuple[Volume, Mount]]:
        """A volume that serves ``store`` but hangs nowhere yet; number 0 is the mount's own."""
        (self._path / str(number)).mkdir(exist_ok=True)
        options = Options(share=self.shares.share(number))
        async with mounted(self._path / str(number), store, options, clean_end=clean_end) as mount:
            volume = Volume(number) if number else self.fs.main
            volume.serve(mount.fs, negative_ttl_s=5.0 + number, read_only=read_only)
            yield volume, mount

    async def inode(self, path: str) -> int:
        """Look a path up, name by name."""
        inode = ROOT_INODE
        for part in path.split("/") if path else []:
            inode = (await self.fs.lookup(inode, part.encode())).inode
        return inode

    async def read(self, path: str) -> bytes:
        """Open, read and close."""
        handle = await self.kernel.open(self.fs, await self.inode(path))  # type: ignore[arg-type]
        try:
            return await self.kernel.read_all(self.fs, handle)  # type: ignore[arg-type]
        finally:
            await self.kernel.release(self.fs, handle)  # type: ignore[arg-type]

    async def create(self, path: str) -> int:
        """Create a file; returns its handle."""
        parent, _, name = path.rpartition("/")
        return (await self.kernel.create(self.fs, await self.inode(parent), name.encode()))[0]  # type: ignore[arg-type]

    async def write(self, path: str, data: bytes) -> None:
        """Create a file with some content."""
        handle = await self.create(path)
        await self.kernel.write(self.fs, handle, 0, data)  # type: ignore[arg-type]
        await self.kernel.close(self.fs, handle)  # type: ignore[arg-type]

    async def listing(self, path: str, batch: int = 1000) -> list[tuple[bytes, int]]:
        """Names and inodes of a directory, read ``batch`` entries at a time."""
        handle, _ = await self.fs.opendir(await self.inode(path))
        found: list[tuple[bytes, int]] = []
        cookie = 0
        try:
            while True:
                part = list(zip(range(batch), self.fs.readdir(handle, cookie), strict=False))
                found += [(name, stat.inode) for _, (name, stat, _) in part]
                if not part:
                    return found
                cookie = part[-1][1][2]
        finally:
            self.fs.releasedir(handle)

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
            await tree.fs.attach(volume, at)
            yield tree, volume, below, above
    finally:
        tree.close()
