"""Room that is granted to what writes without asking: the cache keeps to its capacity, and nobody is refused too early."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.core.grants import MOST_BYTES, grant_bytes, is_tight
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import Caller
from luxfuse.vfs.errors import NoRoom, TooMany
from tests.support.fake_store import FakeStore
from tests.support.harness import MIB, Mount, mounted, until

CAPACITY = 64 * MIB
CHUNK = 128 << 10
EXTENTS_BYTES = 64 << 10
"""What ext4 may take for its maps of extents, which nobody can foresee."""


def asked(m: Mount) -> Callable[[], int]:
    """Count the writes that ask."""
    count = 0
    write = m.fs.write

    async def counted(*arguments: object) -> int:
        nonlocal count
        count += 1
        return await write(*arguments)  # type: ignore[arg-type]

    m.fs.write = counted  # type: ignore[method-assign]
    return lambda: count


def taken(m: Mount) -> int:
    return m.space.ledger.used_bytes + m.space.ledger.reserved_bytes


def staged(m: Mount) -> int:
    return sum(path.stat().st_blocks * 512 for path in m.space.directory.path.glob("staging/*"))


async def test_one_file_cannot_outgrow_the_cache_and_few_writes_ask(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(
        tmp_path, driver, capacity_bytes=CAPACITY, write_mode="async-through", grants=True, room_timeout_s=0.1
    ) as m:
        driver.hold("put")
        count = asked(m)
        handle, _ = await m.kernel.create(m.fs, 1, b"file")
        written, refused = 0, False
        while not refused:
            try:
                await m.kernel.write(m.fs, handle, written, b"x" * CHUNK)
                written += CHUNK
            except NoRoom:
                refused = True
            assert staged(m) - EXTENTS_BYTES <= taken(m) <= CAPACITY + EXTENTS_BYTES
        assert CAPACITY - MIB <= written <= CAPACITY
        await m.kernel.write(m.fs, handle, written - CHUNK, b"y" * CHUNK)  # takes no more than before
        with pytest.raises(NoRoom):
            await m.kernel.write(m.fs, handle, written - CHUNK, b"z" * 8 * CHUNK)
        assert count() < written / CHUNK
        await m.kernel.close(m.fs, handle)
        assert m.space.ledger.reserved_bytes == 0
        assert m.space.staged_bytes == staged(m)
        driver.release()


async def test_what_is_granted_and_not_filled_goes_to_those_that_need_it(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(
        tmp_path, driver, capacity_bytes=CAPACITY, write_mode="async-through", grants=True, room_timeout_s=5
    ) as m:
        driver.hold("put")
        handles = [(await m.kernel.create(m.fs, 1, b"file%d" % number))[0] for number in range(20)]
        for handle in handles:
            await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        held = m.space.ledger.reserved_bytes
        assert 0 < held <= CAPACITY // 4
        offset, last = CHUNK, CAPACITY - 20 * CHUNK
        while offset < last:
            await m.kernel.write(m.fs, handles[0], offset, b"x" * CHUNK)
            offset += CHUNK
            assert staged(m) - EXTENTS_BYTES <= taken(m) <= CAPACITY + EXTENTS_BYTES
        assert staged(m) > CAPACITY - held
        for handle in handles:
            await m.kernel.close(m.fs, handle)
        assert m.space.ledger.reserved_bytes == 0
        driver.release()


async def test_an_idle_writer_gives_room_back_where_much_is_granted(tmp_path: Path) -> None:
    async with mounted(tmp_path, FakeStore(), capacity_bytes=CAPACITY, write_mode="async-through", grants=True) as m:
        handles = [(await m.kernel.create(m.fs, 1, b"file%d" % number))[0] for number in range(20)]
        for handle in handles:
            await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        assert is_tight(CAPACITY, m.space.ledger.reserved_bytes)
        for dirty in m.dirty:
            m.writing.room.account(dirty)
        await until(lambda: not is_tight(CAPACITY, m.space.ledger.reserved_bytes))
        for handle in handles:
            await m.kernel.close(m.fs, handle)


async def test_writes_that_ask_together_are_granted_room_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(tmp_path, FakeStore(), capacity_bytes=CAPACITY, write_mode="async-through", grants=True) as m:
        handle, inode = await m.kernel.create(m.fs, 1, b"file")
        await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        m.kernel.granted(inode, take_back=True)
        dirty = next(iter(m.dirty))
        m.writing.room.account(dirty)
        assert m.space.ledger.reserved_bytes == 0
        reserve = m.space.reserve

        async def slow(wanted: int) -> bool:
            await trio.sleep(0.01)
            return await reserve(wanted)

        monkeypatch.setattr(m.space, "reserve", slow)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(m.writing.room.grant_more, dirty)
        once = grant_bytes(CAPACITY, 0, first=False)
        assert m.kernel.granted(inode) == m.space.ledger.reserved_bytes == once
        await m.kernel.close(m.fs, handle)


async def test_nothing_is_taken_back_where_there_are_too_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", grants=True, room_timeout_s=0.3) as m:
        driver.hold("put")
        handle, inode = await m.kernel.create(m.fs, 1, b"file")
        await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        granted = m.kernel.granted(inode)
        assert granted
        monkeypatch.setattr(m.writer._room, "most_dirty", 1)
        with pytest.raises(TooMany):
            await m.kernel.create(m.fs, 1, b"other")
        assert m.kernel.granted(inode) == granted
        monkeypatch.undo()
        await m.kernel.close(m.fs, handle)
        driver.release()


async def test_a_file_is_written_to_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", grants=True, room_timeout_s=0.1) as m:
        driver.hold("put")
        count = asked(m)
        handle, inode = await m.kernel.create(m.fs, 1, b"file")
        m.kernel.granted(inode, take_back=True)
        monkeypatch.setattr(m.writer._room, "most_dirty", 1)
        with pytest.raises(TooMany):
            await m.kernel.create(m.fs, 1, b"other")
        await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        assert count() == 1
        monkeypatch.undo()
        await m.kernel.close(m.fs, handle)
        driver.release()


async def test_nothing_is_made_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    caller = Caller(0, 0)
    async with mounted(tmp_path, driver, write_mode="async-through", room_timeout_s=0.1) as m:
        makes: list[Callable[[bytes], Awaitable[object]]] = [
            lambda name: m.fs.mkdir(ROOT_INODE, name, 0o755, caller),
            lambda name: m.fs.symlink(ROOT_INODE, name, b"target", caller),
            lambda name: m.fs.mknod(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, caller),
            lambda name: m.fs.mknod(ROOT_INODE, name, stat.S_IFIFO | 0o644, 0, caller),
        ]
        driver.hold("put")
        await m.fs.mkdir(ROOT_INODE, b"first", 0o755, caller)
        with monkeypatch.context() as patched:
            patched.setattr(m.writer._room, "most_dirty", 1)
            for make in makes:
                with pytest.raises(TooMany):
                    await make(b"more")
            assert list(await m.entries()) == [b"first"]
        for number, make in enumerate(makes):
            await make(b"%d" % number)
        driver.release()


async def test_nothing_is_removed_where_too_many_removals_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    for name in ("first", "second"):
        driver.place(name, b"content")
    async with mounted(tmp_path, driver, write_mode="async-through", room_timeout_s=0.1) as m:
        await m.entries()
        driver.hold("delete")
        await m.fs.unlink(ROOT_INODE, b"first")
        with monkeypatch.context() as patched:
            patched.setattr(m.writer._room, "most_dirty", 1)
            with pytest.raises(TooMany):
                await m.fs.unlink(ROOT_INODE, b"second")
            assert list(await m.entries()) == [b"second"]
            patched.setattr(m.writer._room, "timeout_s", 60.0)
            driver.release()
            await m.fs.unlink(ROOT_INODE, b"second")
        await m.drain()
    assert driver.objects == {}


async def test_what_takes_no_room_waits_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", grants=True, room_timeout_s=0.1) as m:
        driver.hold("put")
        count = asked(m)
        handle, inode = await m.kernel.create(m.fs, 1, b"file")
        await m.kernel.write(m.fs, handle, 0, b"x" * CHUNK)
        m.kernel.granted(inode, take_back=True)
        before = count()
        with monkeypatch.context() as patched:
            patched.setattr(m.space.ledger, "free_floor_bytes", 1 << 62)  # others have filled the disk
            patched.setattr(m.space.ledger, "fs_free_bytes", 0)
            with pytest.raises(NoRoom):
                await m.kernel.write(m.fs, handle, CHUNK, b"x")
            await m.kernel.write(m.fs, handle, 0, b"y" * CHUNK)
        assert count() == before + 2
        assert bytes(await m.kernel.read(m.fs, handle, 0, CHUNK)) == b"y" * CHUNK
        await m.kernel.close(m.fs, handle)
        driver.release()


def test_how_much() -> None:
    tib = 1 << 40
    assert grant_bytes(tib, 0, first=False) == MOST_BYTES
    assert 0 < grant_bytes(tib, 0, first=True) < MOST_BYTES
    assert grant_bytes(CAPACITY, 0, first=False) == CAPACITY // 64
    assert grant_bytes(CAPACITY, CAPACITY // 4, first=False) == 0
    assert grant_bytes(0, 0, first=True) == 0
