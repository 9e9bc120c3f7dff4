"""Whole files of copied opens, lent to the lanes: when they are, and that they are taken back before they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs import copied
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until

SIZE = pages(20)


def store_of(*names: str) -> FakeStore:
    driver = FakeStore()
    for number, name in enumerate(names):
        driver.place(name, random_bytes(SIZE, number))
    return driver


async def lend(m: Mount, name: str = "big") -> int:
    """Open a large file cold, read it, and wait until it is lent; returns the handle."""
    handle = await m.open(name)
    inode = await m.inode(name)
    await m.kernel.read_all(m.fs, handle)

    shared = m.files.copied.get(inode)
    assert shared is not None
    await until(lambda: shared.obj.whole)
    await m.kernel.read(m.fs, handle, 0, 10)
    await until(lambda: inode in m.kernel.lent)
    return handle


async def test_a_file_is_lent_once_it_is_whole_and_until_it_is_closed(tmp_path: Path) -> None:
    driver = store_of("big")
    async with mounted(tmp_path, driver) as m:
        handle = await lend(m)
        second = await m.open("big")
        gets = driver.counts["get"]
        for each in (handle, second):
            assert await m.kernel.read_all(m.fs, each) == driver.objects["big"][0]
        assert (m.kernel.lendings, driver.counts["get"]) == (1, gets)
        await m.kernel.release(m.fs, handle)
        assert m.kernel.lent
        await m.kernel.release(m.fs, second)
        assert not m.kernel.lent
        handle = await m.open("big")
        assert m.kernel.is_passthrough(handle)
        await m.kernel.release(m.fs, handle)


async def test_no_more_are_lent_than_there_are_descriptors_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(tmp_path, store_of("a", "b")) as m:
        first = await lend(m, "a")
        monkeypatch.setattr(copied.descriptors, "limit", lambda: copied.LENT_SHARE)
        second = await m.open("b")
        for _ in range(3):
            await m.kernel.read_all(m.fs, second)
        assert m.kernel.lendings == 1
        for each in (first, second):
            await m.kernel.release(m.fs, each)


@pytest.mark.parametrize("missing", ["open", "lend"])
async def test_a_file_is_offered_again_after_a_lack_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def fail(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise copied.descriptors.NoDescriptors("no descriptors are left")

    async def fail_to_open(_obj: object) -> None:
        fail()

    tries = 0
    monkeypatch.setattr(copied, "OFFER_AGAIN_S", 1000.0)
    async with mounted(tmp_path, store_of("big")) as m:
        handle = await m.open("big")
        shared = m.files.copied.get(await m.inode("big"))
        assert shared is not None
        with monkeypatch.context() as patched:
            if missing == "open":
                patched.setattr(m.cache, "open_for_kernel", fail_to_open)
            else:
                patched.setattr(m.kernel, "lend", fail)
            await m.kernel.read_all(m.fs, handle)
            await until(lambda: shared.obj is not None and shared.obj.whole)
            await m.kernel.read(m.fs, handle, 0, 10)
            await until(lambda: tries == 1)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await m.kernel.read(m.fs, handle, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert (tries, m.kernel.lendings) == (1, 0), "not at each read"
        shared.not_before_s = trio.current_time()
        await m.kernel.read(m.fs, handle, 0, 10)
        await until(lambda: m.kernel.lendings == 1)
        await m.kernel.release(m.fs, handle)


async def test_a_file_is_offered_again_after_a_reader_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path, store_of("big")) as m:
        handle = await m.open("big")
        shared = m.files.copied.get(await m.inode("big"))
        assert shared is not None
        with monkeypatch.context() as patched:
            patched.setattr(m.cache, "open_for_kernel", lambda _obj: trio.sleep_forever())
            patched.setattr(m.cache, "is_verified", lambda _obj: True)
            async with trio.open_nursery() as nursery:

                async def read_all_the_time() -> None:
                    while True:
                        await m.kernel.read_all(m.fs, handle)

                nursery.start_soon(read_all_the_time)
                await until(lambda: shared.offered is not None)
                nursery.cancel_scope.cancel()
            assert shared.obj is not None
            assert shared.obj.whole
            assert not m.kernel.lent
        await m.kernel.read(m.fs, handle, 0, 10)
        await until(lambda: m.kernel.lent)
        await m.kernel.release(m.fs, handle)


@pytest.mark.parametrize("change", ["write", "rename", "drop", "volume"])
async def test_a_file_is_taken_back_before_it_changes(tmp_path: Path, change: str) -> None:
    driver = store_of("big")
    async with mounted(tmp_path, driver) as m:
        handle = await lend(m)
        inode = await m.inode("big")
        (oid,) = m.files.copied._lent
        content = driver.objects["big"][0]
        writing = None
        if change == "write":
            writing = await m.kernel.open(m.fs, inode, os.O_RDWR)
            await m.kernel.write(m.fs, writing, 5, b"new")
            content = content[:5] + b"new" + content[8:]
        elif change == "rename":
            await m.fs.rename(ROOT_INODE, b"big", ROOT_INODE, b"other", 0)
        elif change == "drop":
            assert m.files.backings.may_drop(oid)
        else:
            m.files.backings.forget_all()
        assert inode not in m.kernel.lent
        assert await m.kernel.read_all(m.fs, handle) == content
        for each in filter(None, (handle, writing)):
            if each == writing:
                await m.kernel.flush(m.fs, each)
            await m.kernel.release(m.fs, each)
