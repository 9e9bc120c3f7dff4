"""Files of copied opens, lent to the lanes: when they are, and that they are taken back before they change."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from luxfuse.index.names import ROOT_INODE
from luxfuse.shares import shares_of
from luxfuse.vfs import lending
from luxfuse.vfs.ahead import FillBehind
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
        monkeypatch.setattr(lending, "shares", lambda: shares_of(5))
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
        raise lending.descriptors.NoDescriptors("no descriptors are left")

    async def fail_to_open(_obj: object) -> None:
        fail()

    tries = 0
    monkeypatch.setattr(lending, "OFFER_AGAIN_S", 1000.0)
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
        (oid,) = m.files.copied.lent._lent
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


# -- while they are filled


async def read_here_and_there(m: Mount, handle: int) -> None:
    """Read all pages of the first half backwards, which is no stream."""
    for page in reversed(range(20)):
        await m.kernel.read(m.fs, handle, pages(page), 10)


async def lend_filling(m: Mount) -> tuple[int, int]:
    """Open a file of 40 pages of which half is there, and wait until it is lent; returns handle and inode."""
    handle, inode = await m.open("big"), await m.inode("big")
    await read_here_and_there(m, handle)
    await until(lambda: inode in m.kernel.filled)
    return handle, inode


def large() -> FakeStore:
    driver = FakeStore()
    driver.place("big", random_bytes(pages(40), 1))
    return driver


@pytest.fixture
def not_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is filled behind a reader."""
    monkeypatch.setattr(FillBehind, "consider", lambda *_: None)


@pytest.mark.usefixtures("not_behind")
async def test_a_file_that_is_being_filled_is_lent_page_by_page(tmp_path: Path) -> None:
    driver = large()
    async with mounted(tmp_path, driver) as m:
        handle, inode = await lend_filling(m)
        assert m.kernel.filled[inode] == set(range(20))
        assert await m.kernel.read(m.fs, handle, pages(25), 10) == driver.objects["big"][0][pages(25) :][:10]
        assert m.kernel.filled[inode] == {*range(20), 25}
        assert not any(m.cache.recent.get(oid, 25) for oid in m.files.copied.lent._lent), "nobody asks us for it"
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["big"][0]
        await m.kernel.release(m.fs, handle)
        assert not m.kernel.lent


@pytest.mark.usefixtures("not_behind")
async def test_a_stream_is_heard_of_all_that_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "STREAM_RESTS_S", 1000.0)
    driver = large()
    async with mounted(tmp_path, driver) as m:
        handle, inode = await lend_filling(m)
        stream = await m.open("big")
        shared = m.files.copied.get(inode)
        assert shared is not None
        for page in range(24, 30):
            await m.kernel.read(m.fs, stream, pages(page), pages(1))
        assert shared.is_streamed
        assert m.kernel.filled[inode] <= {*range(20), 24}, "a page that was asked for before it was a stream"
        await m.kernel.read(m.fs, handle, pages(27), 10)
        assert 27 not in m.kernel.filled[inode]
        monkeypatch.setattr(lending, "STREAM_RESTS_S", 0.0)  # it stays open, and is read no more
        await m.kernel.read(m.fs, handle, pages(27), 10)
        assert 27 in m.kernel.filled[inode]
        for each in (stream, handle):
            await m.kernel.release(m.fs, each)


@pytest.mark.usefixtures("not_behind")
async def test_what_lanes_read_of_a_file_that_is_being_filled_is_not_trimmed(tmp_path: Path) -> None:
    """How hot its pages are is not known any more."""
    async with mounted(tmp_path, large()) as m:
        handle, _ = await lend_filling(m)
        (oid,) = m.files.copied.lent._lent
        assert await m.space.trimmer.trim(oid, m.space, pages(1)) == 0
        assert m.kernel.filled
        await m.kernel.release(m.fs, handle)
        assert await m.space.trimmer.trim(oid, m.space, pages(1)) == pages(1)


@pytest.mark.usefixtures("not_behind")
async def test_a_file_that_is_larger_than_the_cache_is_not_lent(tmp_path: Path) -> None:
    async with mounted(tmp_path, large(), capacity_bytes=pages(36)) as m:
        handle = await m.open("big")
        for page in reversed(range(30)):
            await m.kernel.read(m.fs, handle, pages(page), 10)
        await until(lambda: not m.cache.budget.held_bytes)
        await m.kernel.read(m.fs, handle, pages(3), 10)
        await trio.testing.wait_all_tasks_blocked()
        assert not m.kernel.lendings
        await m.kernel.release(m.fs, handle)


@pytest.mark.usefixtures("not_behind")
async def test_one_that_was_lent_while_it_was_filled_is_lent_as_a_whole(tmp_path: Path) -> None:
    driver = large()
    async with mounted(tmp_path, driver) as m:
        handle, inode = await lend_filling(m)
        shared = m.files.copied.get(inode)
        assert shared is not None
        shared.streamed_s = math.inf  # so that the lanes are told of nothing
        for page in range(20, 40):
            await m.kernel.read(m.fs, handle, pages(page), 10)
        shared.streamed_s = -math.inf
        await m.kernel.read(m.fs, handle, pages(30), 10)
        await until(lambda: m.kernel.lendings == 1)
        assert (inode in m.kernel.lent, inode in m.kernel.filled) == (True, False)
        await m.kernel.release(m.fs, handle)


@pytest.mark.usefixtures("not_behind")
@pytest.mark.parametrize("change", ["write", "drop", "volume", "distrusted", "damaged", "replaced"])
async def test_a_file_that_is_being_filled_is_taken_back_before_it_changes(
    tmp_path: Path, change: str, expected_logs: list[str]
) -> None:
    driver = large()
    if change == "damaged":
        expected_logs.append("damaged page")
    async with mounted(tmp_path, driver) as m:
        handle, inode = await lend_filling(m)
        shared = m.files.copied.get(inode)
        assert shared is not None
        obj = shared.obj
        assert obj is not None
        content, writing = driver.objects["big"][0], None
        if change == "write":
            writing = await m.kernel.open(m.fs, inode, os.O_RDWR)
            await m.kernel.write(m.fs, writing, 5, b"new")
            content = content[:5] + b"new" + content[8:]
        elif change == "drop":
            assert m.files.backings.may_drop(obj.oid)
        elif change == "volume":
            m.files.backings.forget_all()
        elif change == "distrusted":
            m.cache.contents.trust.distrust(obj)
        elif change == "damaged":
            m.cache.contents.trust.mend(obj, (3,))
        else:
            obj.file_number += 1
            m.cache.contents.readers.landed(obj, range(3, 4))
            obj.file_number -= 1
        assert inode not in m.kernel.lent
        assert await m.kernel.read_all(m.fs, handle) == content
        for each in filter(None, (handle, writing)):
            if each == writing:
                await m.kernel.flush(m.fs, each)
            await m.kernel.release(m.fs, each)


@pytest.mark.usefixtures("not_behind")
async def test_pages_that_somebody_else_may_have_written_are_not_lent(tmp_path: Path) -> None:
    driver = large()
    async with mounted(tmp_path, driver) as m:
        handle, inode = await m.open("big"), await m.inode("big")
        await m.kernel.read(m.fs, handle, pages(30), 10)
        shared = m.files.copied.get(inode)
        assert shared is not None
        assert shared.obj is not None
        assert shared.obj.trusted
        shared.obj.trusted.clear()
        await read_here_and_there(m, handle)
        await until(lambda: inode in m.kernel.filled)
        assert 30 not in m.kernel.filled[inode]
        m.cache.recent.discard(shared.obj.oid, 30)
        await m.kernel.read(m.fs, handle, pages(30), 10)
        assert 30 in m.kernel.filled[inode], "it was verified"
        await m.kernel.release(m.fs, handle)


@pytest.mark.usefixtures("not_behind")
async def test_a_file_that_will_not_be_whole_is_not_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FillBehind, "fits", lambda *_: False)
    async with mounted(tmp_path, large()) as m:
        handle = await m.open("big")
        await read_here_and_there(m, handle)
        await trio.testing.wait_all_tasks_blocked()
        assert not m.kernel.lent
        await m.kernel.release(m.fs, handle)


@pytest.mark.usefixtures("not_behind")
async def test_a_lack_of_descriptors_puts_the_lending_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_obj: object) -> None:
        nonlocal tries
        tries += 1
        raise lending.descriptors.NoDescriptors("no descriptors are left")

    tries = 0
    monkeypatch.setattr(lending, "OFFER_AGAIN_S", 1000.0)
    async with mounted(tmp_path, large()) as m:
        handle = await m.open("big")
        with monkeypatch.context() as patched:
            patched.setattr(m.cache, "open_while_filled", fail)
            await read_here_and_there(m, handle)
            await read_here_and_there(m, handle)
            await until(lambda: tries == 1)
        shared = m.files.copied.get(await m.inode("big"))
        assert shared is not None
        shared.not_before_s = trio.current_time()
        await read_here_and_there(m, handle)
        await until(lambda: m.kernel.filled)
        assert tries == 1
        await m.kernel.release(m.fs, handle)
