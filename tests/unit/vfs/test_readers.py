"""What readers of an open file meet when its name, or its cache file, goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.errors import Stale
from tests.support.fake_kernel import CALLER, READ_BYTES, ref_of
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, random_bytes, until

SIZE = 300_000
PASSTHROUGH = pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])


async def write(m: Mount, name: bytes, data: bytes) -> int:
    """Make a file; returns its inode number."""
    handle, inode = await m.kernel.create(m.fs, ROOT_INODE, name)
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.close(m.fs, handle)
    return inode


@PASSTHROUGH
@pytest.mark.parametrize("replaced", [False, True], ids=["unlinked", "replaced"])
async def test_what_is_not_uploaded_is_read_after_it_lost_its_name(
    tmp_path: Path, passthrough: bool, replaced: bool
) -> None:
    data = random_bytes(SIZE, 1)
    async with mounted(tmp_path, FakeStore(), write_mode="must-cache", passthrough=passthrough, clean_end=False) as m:
        inode = await write(m, b"file", data)
        staged = m.staging.path_of(m.dirty.get(inode).number)
        first, second = await m.open("file"), await m.open("file")
        if replaced:
            await write(m, b"other", b"another")
            await m.fs.rename(ROOT_INODE, b"other", ROOT_INODE, b"file", 0)
        else:
            await m.fs.unlink(ROOT_INODE, b"file")
        await m.kernel.release(m.fs, first)
        shown = await m.fs.getattr(inode)
        assert (shown.size, shown.nlink) == (SIZE, 0)
        assert await m.kernel.read_all(m.fs, second) == data
        assert bytes(await m.fs.read(ref_of(second), 0, READ_BYTES)) == data  # as readahead(2) has it asked for
        again = await m.kernel.open(m.fs, inode)  # by /proc
        await m.kernel.release(m.fs, second)
        assert await m.kernel.read_all(m.fs, again) == data
        await m.kernel.release(m.fs, again)
        await until(lambda: m.dirty.get(inode) is None)
        assert not staged.exists()
        assert not m.kernel.is_registered(inode)
        assert m.space.staged_bytes == sum(dirty.accounted_bytes for dirty in m.dirty)


@PASSTHROUGH
async def test_what_lost_its_name_and_is_only_read_cannot_be_opened_for_writing(
    tmp_path: Path, passthrough: bool
) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode="must-cache", passthrough=passthrough, clean_end=False) as m:
        inode = await write(m, b"file", b"content")
        reader = await m.open("file")
        await m.fs.unlink(ROOT_INODE, b"file")
        with pytest.raises(Stale):
            await m.fs.open(inode, os.O_RDWR, CALLER)
        await m.kernel.release(m.fs, reader)
        assert m.dirty.get(inode) is None
