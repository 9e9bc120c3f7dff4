"""What readers of an open file meet when its name, or its cache file, goes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.errors import Busy, Stale
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
async def test_what_lost_its_name_and_is_only_read_cannot_be_opened_for_writing(tmp_path: Path, passthrough: bool) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode="must-cache", passthrough=passthrough, clean_end=False) as m:
        inode = await write(m, b"file", b"content")
        reader = await m.open("file")
        await m.fs.unlink(ROOT_INODE, b"file")
        with pytest.raises(Stale):
            await m.fs.open(inode, os.O_RDWR, CALLER)
        await m.kernel.release(m.fs, reader)
        assert m.dirty.get(inode) is None


async def lose_the_file(m: Mount) -> None:
    m.file_of("file").unlink()


async def damage_all_and_lose_the_file(m: Mount) -> None:
    """The pages are dropped, one by one, before the file goes: nothing is missed."""
    path = m.file_of("file")
    path.write_bytes(bytes(SIZE))
    obj = m.cache.acquire("file", m.driver.objects["file"][1], SIZE)
    try:
        obj.trusted.clear()
        assert await m.cache.open_for_kernel(obj) is None
    finally:
        m.cache.release(obj)
    path.unlink()


async def lose_the_directory(m: Mount) -> None:
    m.file_of("file").unlink()
    m.cache.contents.forget_files(m.space)
    m.files.backings.forget_all()


@pytest.mark.expected_logs("gone", "damaged")
@pytest.mark.parametrize("lose", [lose_the_file, damage_all_and_lose_the_file, lose_the_directory])
async def test_nothing_is_written_to_a_cache_file_that_is_lost(
    tmp_path: Path, lose: Callable[[Mount], Awaitable[None]]
) -> None:
    driver = FakeStore()
    driver.place("file", data := random_bytes(SIZE, 2))
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("file")
        reader = await m.open("file")
        assert m.kernel.is_passthrough(reader)
        await lose(m)
        with pytest.raises(Busy):
            await m.kernel.open(m.fs, inode, os.O_RDWR)
        second = await m.open("file")
        assert m.kernel.is_passthrough(second)
        await m.kernel.release(m.fs, second)
        await m.kernel.release(m.fs, reader)
        writer = await m.kernel.open(m.fs, inode, os.O_RDWR)
        await m.kernel.write(m.fs, writer, 0, b"new")
        assert await m.read_all("file") == b"new" + data[3:]
        await m.kernel.close(m.fs, writer)
        assert driver.objects["file"][0] == b"new" + data[3:]
