"""What another node says to have changed is asked for again; what it does not speak of is not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from luxfuse.core.notices import Change, ChangeKind
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import ObjectInfo
from luxfuse.vfs.errors import NoSuchName
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until
from tests.support.late_listing import LateListing


def store() -> FakeStore:
    driver = FakeStore()
    driver.place("d/a", b"old")
    driver.place("d/b", b"same")
    driver.place("top", b"old")
    return driver


def tell(m: Mount, change: Change) -> None:
    m.clock.advance(0.001)
    m.namespace.news.changed_elsewhere(change)


async def warm(m: Mount) -> None:
    for path in ("d/a", "d/b", "top"):
        await m.read_all(path)
    await m.entries("d")
    await m.entries("")


async def test_a_written_file_is_seen_at_the_next_open_and_no_other_is_asked_for(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, passthrough=True) as m:
        await warm(m)
        driver.place("d/a", b"new!")
        assert await m.read_all("d/a") == b"old"
        tell(m, Change("d/a", ChangeKind.WRITTEN))
        heads = driver.counts["head"]
        assert await m.read_all("d/b") == b"same"
        assert driver.counts["head"] == heads
        assert await m.read_all("d/a") == b"new!"
        assert driver.counts["head"] > heads


async def test_an_open_file_keeps_its_version_and_the_next_open_has_the_new_one(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, passthrough=True) as m:
        await warm(m)
        handle = await m.open("d/a")
        assert m.kernel.is_passthrough(handle)
        driver.place("d/a", b"new!")
        tell(m, Change("d/a", ChangeKind.WRITTEN))
        assert not m.kernel.table[open_inode(m)].fresh
        assert await m.kernel.read_all(m.fs, handle) == b"old"
        assert await m.read_all("d/a") == b"new!"


def open_inode(m: Mount) -> int:
    """The inode that the kernel has open."""
    (inode,) = [inode for inode, backing in m.kernel.table.items() if backing.opens]
    return inode


@pytest.mark.parametrize("kind", [ChangeKind.WRITTEN, ChangeKind.BELOW])
async def test_a_new_file_is_seen_by_name_and_in_listings(tmp_path: Path, kind: ChangeKind) -> None:
    driver = store()
    async with mounted(tmp_path, driver) as m:
        await warm(m)
        with pytest.raises(NoSuchName):
            await m.inode("d/new")
        driver.place("d/new", b"x")
        tell(m, Change("d/new" if kind is ChangeKind.WRITTEN else "d/", kind))
        assert b"new" in await m.entries("d")
        assert await m.read_all("d/new") == b"x"


async def test_a_removed_file_is_gone(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver) as m:
        await warm(m)
        driver.remove("d/a")
        tell(m, Change("d/a", ChangeKind.GONE))
        with pytest.raises(NoSuchName):
            await m.inode("d/a")
        assert b"a" not in await m.entries("d")


async def test_a_file_in_a_new_directory_is_seen(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver) as m:
        await warm(m)
        driver.place("e/f/g", b"deep")
        tell(m, Change("e/f/g", ChangeKind.WRITTEN))
        assert b"e" in await m.entries("")
        assert await m.read_all("e/f/g") == b"deep"


async def test_a_change_of_many_in_the_root(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver) as m:
        await warm(m)
        driver.place("top", b"new!")
        driver.place("more", b"1")
        tell(m, Change("", ChangeKind.BELOW))
        assert await m.read_all("top") == b"new!"
        assert b"more" in await m.entries("")


async def test_an_answer_that_was_on_its_way_is_not_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store()
    may_answer, head = threading.Event(), driver.head

    def late(key: str) -> ObjectInfo:
        info = head(key)
        may_answer.wait(120)
        return info

    async with mounted(tmp_path, driver) as m:
        await warm(m)
        monkeypatch.setattr(driver, "head", late)
        tell(m, Change("d/a", ChangeKind.WRITTEN))
        got: list[bytes] = []

        async def read() -> None:
            got.append(await m.read_all("d/a"))

        heads = driver.counts["head"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: driver.counts["head"] > heads)
            driver.place("d/a", b"newer!")
            tell(m, Change("d/a", ChangeKind.WRITTEN))
            may_answer.set()
        assert got == [b"newer!"]


@pytest.mark.parametrize("ahead", [False, True])
async def test_a_directory_that_is_not_stored_yet_is_not_empty_for_longer_than_its_listing_says(
    tmp_path: Path, ahead: bool
) -> None:
    driver = LateListing()
    async with mounted(tmp_path, driver, write_mode="async-through", clean_end=False) as m:
        driver.hold("put")
        directory = (await m.fs.mkdir(ROOT_INODE, b"out", 0o755, CALLER)).inode
        m.clock.advance(3.0 if ahead else 61.0)
        driver.wait_for("out/")
        async with trio.open_nursery() as nursery:
            if ahead:
                m.namespace.relisting.list_ahead(directory)
            else:
                nursery.start_soon(m.entries, "out")
            await until(lambda: driver.under_way)
            driver.place("out/rank1", b"by another node")
            tell(m, Change("out/rank1", ChangeKind.WRITTEN))
            m.clock.advance(0.001)
            driver.give()
            await until(lambda: not m.lister.is_listing(directory))
        assert await m.inode("out/rank1")
        driver.release()


async def test_what_is_written_here_is_ours_to_say(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await warm(m)
        m.namespace.hold(None, 1, b"top")
        tell(m, Change("top", ChangeKind.GONE))
        assert b"top" in await m.entries("")
        m.namespace.settle(None, 1, b"top")


async def test_a_directory_that_changes_all_the_time_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store()
    head, told = driver.head, 0

    def meanwhile(key: str) -> ObjectInfo:
        nonlocal told
        told += 1
        trio.from_thread.run_sync(tell, m, Change(f"d/new{told}", ChangeKind.WRITTEN))
        return head(key)

    async with mounted(tmp_path, driver) as m:
        await warm(m)
        directory = await m.inode("d")
        monkeypatch.setattr(driver, "head", meanwhile)
        tell(m, Change("d/a", ChangeKind.WRITTEN))
        assert await m.namespace.lookup(directory, b"a")
        with pytest.raises(NoSuchName):
            await m.namespace.lookup(directory, b"missing")
        assert told <= 10
        assert m.namespace.missing.is_doubtful(directory, b"missing"), "the kernel must not keep that"
        monkeypatch.undo()
        with pytest.raises(NoSuchName):
            await m.namespace.lookup(directory, b"missing")
        assert not m.namespace.missing.is_doubtful(directory, b"missing")


async def test_doubts_end_though_the_clock_is_set_back(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver) as m:
        await warm(m)
        tell(m, Change("", ChangeKind.BELOW))
        tell(m, Change("d/a", ChangeKind.GONE))
        m.clock.advance(-3600)
        driver.place("d/a", b"new!")
        assert await m.read_all("d/a") == b"new!"
        m.clock.advance(2)
        await warm(m)
        counts = dict(driver.counts)
        assert await m.read_all("d/a") == b"new!"
        assert await m.read_all("top") == b"old"
        await m.entries("d")
        assert {kind: driver.counts[kind] - counts[kind] for kind in ("head", "list")} == {"head": 0, "list": 0}
