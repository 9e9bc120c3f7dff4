"""A power cut takes what was never synced: of each file either what was promised last is there, or its object."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.index import lifecycle
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges
from tests.crash.lives import tree_of
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages, random_bytes, snapshot, until

OLD, LARGE, HALF = random_bytes(9000, 1), random_bytes(pages(1), 2), random_bytes(3000, 3)
KEPT = pytest.mark.expected_logs("was being written when the last run ended")


@pytest.fixture
def other_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns what is called once the machine has gone down."""

    def boot() -> None:
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr(lifecycle, "BOOT_ID", tmp_path / "boot")

    return boot


async def closed(m: Mount, data: bytes, directory: int = ROOT_INODE) -> int:
    """Close a file, which goes to the store, with a descriptor left open; returns the handle."""
    handle, _ = await m.kernel.create(m.fs, directory, b"a")
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.flush(m.fs, handle)
    await m.drain()
    return handle


async def cut(m: Mount, path: Path) -> FakeStore:
    """The power goes: nothing is left but what was committed, synced or stored."""
    with m.durable.lock:
        return snapshot(m, path / "cut", power_cut=True)


Tree = dict[str, bytes]


async def shows(path: Path, driver: FakeStore, options: Options, wanted: Tree, kept: int = 0) -> None:
    options.beginning_s = BEGINNING_S + 10
    async with mounted(path / "cut", driver, options) as m:
        assert m.outcome.lost == 0
        assert {name: await m.read_all(name) for name in wanted} == wanted
        await m.drain()
        assert {name: what[0] for name, what in tree_of(driver).items() if isinstance(what, tuple)} == wanted
        assert m.recovered.count() == kept


@pytest.mark.parametrize(
    ("mode", "data"),
    [("cache-through", OLD), ("cache-through", LARGE), ("async-through", OLD)],
    ids=["small", "large", "async"],
)
async def test_what_only_the_store_has_is_renamed(
    tmp_path: Path, mode: str, data: bytes, other_boot: Callable[[], None]
) -> None:
    options = Options(write_mode=mode)  # type: ignore[arg-type]
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        handle = await closed(m, data)
        await m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        driver = await cut(m, tmp_path)
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"b": data})


async def test_what_was_renamed_and_is_not_here_any_more_is_what_the_store_has(
    tmp_path: Path, other_boot: Callable[[], None]
) -> None:
    """The disk lost what it had acknowledged, or the run was one of an earlier version, which did not sync it."""
    options = Options(write_mode="cache-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        handle = await closed(m, LARGE)
        await m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        m.durable.synced.clear()
        driver = await cut(m, tmp_path)
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"b": LARGE})


@KEPT
async def test_a_directory_takes_along_what_only_the_store_has(tmp_path: Path, other_boot: Callable[[], None]) -> None:
    options = Options(write_mode="cache-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        handle = await closed(m, LARGE, await m.inode("d"))
        await m.kernel.write(m.fs, handle, 100, HALF)
        await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
        driver = await cut(m, tmp_path)
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"e/a": LARGE}, kept=0)


async def test_what_a_name_that_is_made_anew_replaces_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_boot: Callable[[], None]
) -> None:
    """A process that had renamed its file was killed, and did not wait for its close."""
    options = Options(write_mode="cache-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        await m.kernel.release(m.fs, await closed(m, OLD))
        await m.drain()
        monkeypatch.setattr(m.writeback, "schedule", lambda *_: None)  # b waits for its turn all the while
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
        await m.kernel.write(m.fs, handle, 0, HALF)
        await m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        await m.kernel.release(m.fs, handle)
        again, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a")
        await m.kernel.write(m.fs, again, 0, LARGE)
        await m.kernel.flush(m.fs, again)
        driver = await cut(m, tmp_path)
        await m.kernel.release(m.fs, again)
    other_boot()
    await shows(tmp_path, driver, options, {"a": LARGE, "b": HALF + OLD[len(HALF) :]})


# -- notes that promise nothing new


async def chmod(m: Mount, inode: int) -> None:
    await m.fs.setattr(inode, AttributeChanges(mode=0o600), None, CALLER)


async def setxattr(m: Mount, inode: int) -> None:
    await m.fs.xattrs.set(inode, b"user.colour", b"blue")


async def move_directory(m: Mount, inode: int) -> None:
    await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)


DESCRIBED: list[Callable[[Mount, int], Awaitable[None]]] = [chmod, setxattr]


@pytest.mark.parametrize("call", DESCRIBED, ids=lambda call: call.__name__)
async def test_what_was_synced_is_not_lost_for_what_was_not(
    tmp_path: Path, call: Callable[[Mount, int], Awaitable[None]], other_boot: Callable[[], None]
) -> None:
    options, more = Options(write_mode="async-through"), random_bytes(pages(1), 4)
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        m.driver.hold("put", "put_file")
        handle, inode = await synced(m, LARGE)
        (dirty,) = m.dirty
        stamp = dirty.stamp
        await m.kernel.write(m.fs, handle, len(LARGE), more)
        await call(m, inode)
        await m.journal.commit()
        driver = await cut(m, tmp_path)
        m.driver.release()
        await m.kernel.close(m.fs, handle)
    assert stamp is not None
    torn(tmp_path, stamp.mtime_ns)
    other_boot()
    await shows(tmp_path, driver, options, {"a": LARGE})


def torn(path: Path, mtime_ns: int) -> None:
    """What came after the sync of a large file was not on the disk yet."""
    (staged,) = (path for path in (path / "cut").glob("cache/*/staging/*") if path.stat().st_size)
    os.truncate(staged, len(LARGE))
    os.utime(staged, ns=(mtime_ns, mtime_ns))


async def synced(m: Mount, data: bytes) -> tuple[int, int]:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a")
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.fsync(m.fs, handle)
    return handle, await m.inode("a")


@KEPT
@pytest.mark.parametrize("call", [*DESCRIBED, move_directory], ids=lambda call: call.__name__)
async def test_what_was_not_synced_does_not_replace_what_the_store_has(
    tmp_path: Path, call: Callable[[Mount, int], Awaitable[None]], other_boot: Callable[[], None]
) -> None:
    options = Options(write_mode="cache-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        handle = await closed(m, OLD, await m.inode("d"))
        inode = await m.inode("d/a")
        await m.kernel.write(m.fs, handle, 100, HALF)
        await call(m, inode)
        await m.journal.commit()
        driver = snapshot(m, tmp_path / "cut")
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"e/a" if call is move_directory else "d/a": OLD}, kept=1)


async def test_what_was_synced_is_not_lost_for_what_comes_during_the_sync(
    tmp_path: Path, other_boot: Callable[[], None]
) -> None:
    options, more = Options(write_mode="async-through"), random_bytes(pages(1), 4)
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        m.driver.hold("put", "put_file")
        sync, stamps = m.staging.sync, list[int]()

        def append(fd: int) -> None:
            stamps.append(os.fstat(fd).st_mtime_ns)
            sync(fd)
            os.pwrite(fd, more, len(LARGE))

        m.staging.sync = append  # type: ignore[method-assign]
        handle, _ = await synced(m, LARGE)
        driver = await cut(m, tmp_path)
        m.driver.release()
        m.staging.sync = sync  # type: ignore[method-assign]
        await m.kernel.close(m.fs, handle)
    torn(tmp_path, stamps[0])
    other_boot()
    await shows(tmp_path, driver, options, {"a": LARGE})


# -- after a restart


@pytest.mark.parametrize("stored", [True, False])
async def test_an_fsync_after_a_restart_syncs_what_was_written_before(
    tmp_path: Path, stored: bool, other_boot: Callable[[], None]
) -> None:
    """Only a part of it was promised before the kill."""
    options, more = Options(write_mode="async-through"), random_bytes(pages(1), 4)
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        if not stored:
            m.driver.hold("put", "put_file")
        handle, _ = await synced(m, LARGE)
        if stored:
            await m.drain()
        await m.kernel.write(m.fs, handle, len(LARGE), more)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        m.driver.release()
        await m.kernel.close(m.fs, handle)
    killed.hold("put", "put_file")
    options.beginning_s = BEGINNING_S + 5
    async with mounted(tmp_path / "killed", killed, options, clean_end=False) as m:
        inode = await m.inode("a")
        await chmod(m, inode)
        handle = await m.kernel.open(m.fs, inode, os.O_WRONLY)
        await m.kernel.fsync(m.fs, handle)
        driver = await cut(m, tmp_path)
        killed.release()
        await m.kernel.close(m.fs, handle)
    driver.release()
    other_boot()
    await shows(tmp_path, driver, options, {"a": LARGE + more})


@pytest.mark.parametrize("opened", [True, False])
async def test_what_somebody_else_wrote_meanwhile_keeps_its_attributes(tmp_path: Path, opened: bool) -> None:
    """Of ours only attributes are left to be told the store, if anything."""
    options = Options(write_mode="async-through")
    theirs = {"mode": str(0o100640), "mtime": "1700000000", "uid": "7"}
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        handle = await closed(m, OLD)
        if not opened:
            await m.kernel.release(m.fs, handle)
            await until(lambda: not len(m.dirty))
            m.driver.hold("copy")
            await chmod(m, await m.inode("a"))
        await m.journal.commit()
        driver = snapshot(m, tmp_path / "cut")
        m.driver.release()
        if opened:
            await m.kernel.close(m.fs, handle)
    driver.place("a", LARGE, theirs)
    await shows(tmp_path, driver, options, {"a": LARGE})
    assert driver.objects["a"][3] == theirs


async def test_an_fsync_says_of_the_content_what_the_push_that_ended_meanwhile_has_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has more by then than was there when the sync began."""
    begun, go = threading.Event(), threading.Event()
    async with mounted(tmp_path, FakeStore(), Options(write_mode="async-through")) as m:
        await m.entries()
        handle = await closed(m, LARGE)
        await m.kernel.write(m.fs, handle, 0, OLD)
        sync = m.staging.sync

        def slow(fd: int) -> None:
            begun.set()
            assert go.wait(60)
            sync(fd)

        monkeypatch.setattr(m.staging, "sync", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.kernel.fsync, m.fs, handle)
            await until(begun.is_set)
            await m.kernel.write(m.fs, handle, 0, HALF)
            (dirty,) = m.dirty
            await m.writeback.push(dirty)
            go.set()
        ((_, record),) = m.journal.files.items()
        assert dirty.stamp is not None
        assert (record.content, record.stamp) == (False, dirty.stamp.mtime_ns)
        await m.kernel.close(m.fs, handle)


async def test_what_the_store_has_needs_no_older_content_in_the_journal(
    tmp_path: Path, other_boot: Callable[[], None]
) -> None:
    """One that was promised after a push had begun, but before that looked at the content."""
    options, driver = Options(write_mode="async-through"), FakeStore()
    driver.place("a", OLD, {"mode": "33188"})
    async with mounted(tmp_path / "life", driver, options, clean_end=False) as m:
        await m.entries()
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
        await m.kernel.write(m.fs, handle, 0, HALF)
        driver.hold("head")
        heads = driver.counts["head"]
        await m.kernel.fsync(m.fs, handle)
        m.writeback.hurry()
        await until(lambda: driver.counts["head"] > heads)
        await m.kernel.write(m.fs, handle, 0, b"promised")
        await m.kernel.fsync(m.fs, handle)
        await m.kernel.write(m.fs, handle, 0, b"stored..")
        driver.release()
        await until(lambda: driver.objects["a"][0].startswith(b"stored.."))
        await until(lambda: all(not dirty.lock.locked() for dirty in m.dirty))
        await m.kernel.fsync(m.fs, handle)
        assert [m.journal.inline(number) for number in m.journal.files] == [None]
        driver = await cut(m, tmp_path)
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"a": b"stored.." + HALF[8:] + OLD[len(HALF) :]})


@KEPT
async def test_a_huge_file_that_was_emptied_first_is_not_read(tmp_path: Path, other_boot: Callable[[], None]) -> None:
    options = Options(write_mode="async-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        m.driver.hold("put", "put_file")
        handle, inode = await m.kernel.create(m.fs, ROOT_INODE, b"a")
        await m.kernel.write(m.fs, handle, 0, OLD)
        await m.kernel.close(m.fs, handle)
        handle = await m.kernel.open(m.fs, inode, os.O_WRONLY | os.O_TRUNC)
        (dirty,) = m.dirty
        os.truncate(dirty.content.fd, 1 << 40)
        driver = snapshot(m, tmp_path / "cut")
        os.truncate(dirty.content.fd, 0)
        m.driver.release()
        await m.kernel.close(m.fs, handle)
    other_boot()
    await shows(tmp_path, driver, options, {"a": OLD}, kept=1)
