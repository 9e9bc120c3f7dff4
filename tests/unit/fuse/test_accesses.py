"""What is told of a request about a file that is written here: its size and bytes are those of the staging file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from luxfuse.core.tallies import sources_of
from luxfuse.fuse.accesses import Access, access_of
from luxfuse.fuse.busy import BusyFiles
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.tracing import event
from luxfuse.vfs.paths import source_of
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.several import Tree

OLD, NEW = b"old" * 100, b"new" * 5000


class Watched(Tree):
    """A tree whose requests are told."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        monkeypatch.setattr(passthrough, "caller", lambda: (os.getpid(), 1000, 0))
        self.told: list[Access] = []
        self.operations.observers.append(self._observe)

    def _observe(self, running: Running, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        in_kernel = self.kernel.hands_over
        self.told.append(access_of(self.operations, running, arguments, result, code, in_kernel=in_kernel))

    def bytes_of(self, operation: str) -> list[dict[str, int]]:
        """Return what programs could read by requests of a kind so far, by source."""
        return [sources_of(event(each, 0.0)) for each in self.told if each.operation == operation]

    async def opened(self, inode: int, flags: int = os.O_RDONLY) -> None:
        """Open, by asking the daemon, and close."""
        handle = self.kernel._opened(inode, await self.fs.open(inode, flags, CALLER))
        await self.kernel.close(self.fs, handle)


@pytest.fixture
async def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    store = FakeStore()
    store.place("old", OLD)
    tree = Watched(tmp_path, monkeypatch)
    try:
        async with tree.volume(0, store, clean_end=False):
            yield tree
    finally:
        tree.close()


async def test_an_open_of_a_file_that_is_written_counts_with_its_bytes_of_now(tree: Watched) -> None:
    busy = BusyFiles(tree.operations)
    busy.begin(0.0)
    handle = await tree.create("new")
    await tree.kernel.write(tree.fs, handle, 0, NEW)
    inode = await tree.inode("new")
    await tree.opened(inode)
    assert tree.bytes_of("open") == [{"staging": len(NEW)}]
    assert [use["size"] for use in busy.top(5)] == [len(NEW)]
    assert source_of(tree.volumes, inode) == "staging"
    await tree.kernel.close(tree.fs, handle)
    await tree.opened(inode)
    assert tree.bytes_of("open")[1:] == [{"kernel": len(NEW)}], "the store has it"
    assert source_of(tree.volumes, inode) == "ssd"


async def test_an_open_that_only_writes_lets_nobody_read(tree: Watched) -> None:
    inode = await tree.inode("old")
    await tree.opened(inode)
    await tree.opened(inode, os.O_WRONLY | os.O_APPEND)
    await tree.opened(inode, os.O_RDWR)
    assert tree.bytes_of("open") == [{"store": len(OLD)}, {}, {"staging": len(OLD)}]


async def test_copied_reads_of_a_file_that_is_written_come_from_staging(tree: Watched) -> None:
    tree.kernel.hands_over = False
    await tree.read("old")
    handle = await tree.create("new")
    await tree.kernel.write(tree.fs, handle, 0, NEW)
    assert await tree.read("new") == NEW
    await tree.kernel.close(tree.fs, handle)
    assert tree.bytes_of("open") == [{}, {}]
    old, *new = [found for found in tree.bytes_of("read") if found]
    assert sum(old.values()) == len(OLD)
    assert "staging" not in old
    assert new == [{"staging": len(NEW)}]
    assert source_of(tree.volumes, await tree.inode("old")) == "ssd", "though it is not open any more"
