"""What calls cost in `async-through`: commits of journal and index, syncs of staging files. Each waits for the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.index.names import ROOT_INODE
from luxfuse.index.transactions import Transaction
from luxfuse.vfs.attributes import AttributeChanges
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, mounted, snapshot, until

LARGE = 1 << 20
Call = Callable[[Mount, int, int], Awaitable[None]]


async def overwrite(m: Mount, handle: int, number: int) -> None:
    await m.kernel.write(m.fs, handle, 4096 * number, os.urandom(4096))
    await m.kernel.fsync(m.fs, handle)


async def fsync_only(m: Mount, handle: int, number: int) -> None:
    await m.kernel.fsync(m.fs, handle)


async def open_only(m: Mount, handle: int, number: int) -> None:
    opened = await m.kernel.open(m.fs, await m.inode("stored"), os.O_RDWR)
    await m.kernel.close(m.fs, opened)


async def create(m: Mount, handle: int, number: int) -> None:
    new, _ = await m.kernel.create(m.fs, ROOT_INODE, f"new-{number}".encode())
    await m.kernel.write(m.fs, new, 0, b"content")
    await m.kernel.close(m.fs, new)


async def create_and_remove(m: Mount, handle: int, number: int) -> None:
    await create(m, handle, number)
    await m.fs.unlink(ROOT_INODE, f"new-{number}".encode())


async def temporary(m: Mount, handle: int, number: int) -> None:
    new, _ = await m.kernel.create(m.fs, ROOT_INODE, b"temporary")
    await m.kernel.write(m.fs, new, 0, b"content")
    await m.fs.unlink(ROOT_INODE, b"temporary")
    await m.kernel.close(m.fs, new)


async def replace(m: Mount, handle: int, number: int) -> None:
    new, _ = await m.kernel.create(m.fs, ROOT_INODE, b"file.tmp")
    await m.kernel.write(m.fs, new, 0, b"content")
    await m.kernel.fsync(m.fs, new)
    await m.kernel.close(m.fs, new)
    await m.fs.rename(ROOT_INODE, b"file.tmp", ROOT_INODE, b"file", 0)


@pytest.fixture
async def m(tmp_path: Path) -> AsyncIterator[Mount]:
    driver = FakeStore()
    driver.place("stored", os.urandom(LARGE))
    async with mounted(tmp_path, driver, write_mode="async-through", clean_end=False) as mount:
        driver.hold("put")
        yield mount
        driver.release()


@pytest.mark.parametrize(
    ("call", "commits", "syncs"),
    [
        (overwrite, 0, 1),
        (fsync_only, 0, 0),
        (open_only, 0, 0),
        (create, 1, 0),
        (create_and_remove, 1, 0),
        (temporary, 0, 0),
        (replace, 2, 0),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_what_calls_cost(m: Mount, monkeypatch: pytest.MonkeyPatch, call: Call, commits: int, syncs: int) -> None:
    """Of the first time, more may be needed. (Beside it, one in the background now and then takes notes to the disk.)"""
    synced = []
    sync = m.staging.sync
    monkeypatch.setattr(m.staging, "sync", lambda fd: (synced.append(fd), sync(fd)))
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"large")
    await m.kernel.write(m.fs, handle, 0, os.urandom(LARGE))
    await m.kernel.fsync(m.fs, handle)
    await call(m, handle, 0)
    while m.journal.uncommitted:
        await trio.sleep(0.01)
    monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
    await trio.sleep(0.05)
    synced.clear()
    before = m.journal._writes
    for number in range(1, 6):
        await call(m, handle, number)
    assert (m.journal._writes - before, len(synced)) == (5 * commits, 5 * syncs)
    await m.kernel.close(m.fs, handle)


async def chmod(m: Mount, inode: int) -> None:
    await m.fs.setattr(inode, AttributeChanges(mode=0o640), None, CALLER)


async def utimens(m: Mount, inode: int) -> None:
    await m.fs.setattr(inode, AttributeChanges(atime_ns=10**18, mtime_ns=10**18), None, CALLER)


async def set_atime(m: Mount, inode: int) -> None:
    await m.fs.setattr(inode, AttributeChanges(atime_ns=10**18), None, CALLER)


async def setxattr(m: Mount, inode: int) -> None:
    await m.fs.xattrs.set(inode, b"user.colour", b"blue")


@pytest.mark.parametrize("mode", ["async-through", "must-cache"])
@pytest.mark.parametrize("call", [chmod, utimens, set_atime, setxattr], ids=lambda value: value.__name__)
async def test_an_fsync_makes_attributes_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Mount, int], Awaitable[None]], mode: str
) -> None:
    monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
    async with mounted(tmp_path / "life", FakeStore(), write_mode=mode, clean_end=False) as m:
        m.driver.hold("put")
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"file")
        await m.kernel.write(m.fs, handle, 0, b"content")
        await m.kernel.fsync(m.fs, handle)
        inode = await m.inode("file")
        await call(m, inode)
        await m.kernel.fsync(m.fs, handle)
        stat, xattrs = await m.fs.getattr(inode), await m.fs.xattrs.names(inode)
        driver = snapshot(m, tmp_path / "next", power_cut=True)
        before = m.journal._writes
        await m.kernel.fsync(m.fs, handle)
        assert m.journal._writes == before
        await m.kernel.close(m.fs, handle)
        m.driver.release()
    async with mounted(tmp_path / "next", driver, write_mode=mode, beginning_s=BEGINNING_S + 10) as m:
        inode = await m.inode("file")
        found = await m.fs.getattr(inode)
        assert (found.mode, found.atime_ns, found.mtime_ns) == (stat.mode, stat.atime_ns, stat.mtime_ns)
        assert await m.fs.xattrs.names(inode) == xattrs


async def test_an_fsync_of_a_directory_makes_its_names_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
    driver = FakeStore()
    for name in ("gone", "old"):
        driver.place(name, b"content")
    async with mounted(tmp_path / "life", driver, write_mode="async-through", clean_end=False) as m:
        driver.hold("put")
        await m.kernel.close(m.fs, (await m.kernel.create(m.fs, ROOT_INODE, b"made"))[0])
        await m.fs.unlink(ROOT_INODE, b"gone")
        await m.fs.rename(ROOT_INODE, b"old", ROOT_INODE, b"new", 0)
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        await m.fs.fsyncdir(ROOT_INODE)
        assert not m.journal.uncommitted
        after = snapshot(m, tmp_path / "next", power_cut=True)
        driver.release()
    async with mounted(tmp_path / "next", after, write_mode="async-through", beginning_s=BEGINNING_S + 10) as m:
        assert set(await m.entries()) == {b"made", b"new", b"d"}


async def test_what_went_from_the_store_is_not_made_anew_by_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker of a directory was noted on the disk, pushed, and then removed, before the journal forgot it."""
    monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
    driver = FakeStore()
    driver.place("d/file", b"content")
    async with mounted(tmp_path / "life", driver, write_mode="cache-through") as mount:
        directory = await mount.inode("d")
        driver.hold("put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.fs.unlink, directory, b"file")
            while not mount.journal.files:
                await trio.sleep(0.001)
            await mount.journal.commit()
            driver.release()
        await mount.fs.rmdir(ROOT_INODE, b"d")
        shutil.copytree(tmp_path / "life", tmp_path / "next")
    later_s = BEGINNING_S + 10
    async with mounted(tmp_path / "next", driver, write_mode="cache-through", beginning_s=later_s) as mount:
        assert await mount.entries() == {}
    assert not driver.objects


async def listing(m: Mount, handle: int, number: int) -> None:
    assert f"new-{number}".encode() in await m.entries("d")


async def unlink(m: Mount, handle: int, number: int) -> None:
    await m.fs.unlink(await m.inode("d"), f"new-{number}".encode())


async def rename(m: Mount, handle: int, number: int) -> None:
    directory = await m.inode("d")
    await m.fs.rename(directory, f"new-{number}".encode(), directory, f"other-{number}".encode(), 0)


async def rmdir(m: Mount, handle: int, number: int) -> None:
    directory = await m.inode("d")
    await m.fs.rmdir(directory, f"dir-{number}".encode())


@pytest.mark.parametrize("call", [listing, unlink, rename, rmdir], ids=lambda value: value.__name__)
async def test_the_index_is_not_committed_for_a_call(m: Mount, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """Each call shows what was changed before it, though the index takes that to the disk later."""
    directory = (await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)).inode
    commits = 0
    run = m.index.run

    async def counted(function: Callable[[Transaction], object]) -> object:
        nonlocal commits
        commits += 1
        return await run(function)

    await until(lambda: not (m.index.uncommitted or m.index._changed.is_set()))  # nor is it about to take something there
    monkeypatch.setattr("luxfuse.index.store.COMMIT_INTERVAL_S", 3600)
    monkeypatch.setattr(m.index, "run", counted)
    for number in range(3):
        new, _ = await m.kernel.create(m.fs, directory, f"new-{number}".encode())
        await m.kernel.close(m.fs, new)
        await m.fs.mkdir(directory, f"dir-{number}".encode(), 0o755, CALLER)
    for number in range(3):
        await call(m, 0, number)
    assert m.index.uncommitted
    assert commits == 0
