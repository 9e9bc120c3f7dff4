"""An object that somebody else replaces is opened as what it is now, if nothing of the old version was given out."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.race import Done, Fetched, Keep
from luxfuse.types import PAGE_BYTES, Buffer, ObjectInfo
from luxfuse.vfs.errors import Stale
from luxfuse.volume.neighbours import Neighbours
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, pages, random_bytes

OLD, NEW = random_bytes(pages(6), 1), random_bytes(pages(7) + 5, 2)
PASSTHROUGH = pytest.mark.parametrize("passthrough", [True, False])


async def opened(m: Mount, path: str) -> int:
    """Open as the kernel does: an answer of ESTALE is followed by one more look-up."""
    try:
        return await m.open(path)
    except Stale:
        m.clock.advance(0.001)
        return await m.open(path)


async def read_all(m: Mount, path: str) -> bytes:
    handle = await opened(m, path)
    try:
        return await m.kernel.read_all(m.fs, handle)
    finally:
        await m.kernel.release(m.fs, handle)


@PASSTHROUGH
@pytest.mark.parametrize("known", ["listed", "looked at", "read at the end", "read at the beginning"])
async def test_a_large_object_that_was_replaced(tmp_path: Path, passthrough: bool, known: str) -> None:
    driver = FakeStore()
    driver.place("d/a", OLD)
    async with mounted(tmp_path, driver, passthrough=passthrough, whole_file_bytes=pages(2), readahead_bytes=0) as m:
        await m.entries("d")
        if known != "listed":
            await m.inode("d/a")
        if known.startswith("read"):
            handle = await opened(m, "d/a")
            at = pages(5) if known == "read at the end" else 0
            assert bytes(await m.kernel.read(m.fs, handle, at, 1000)) == OLD[at : at + 1000]
            await m.kernel.release(m.fs, handle)
        m.clock.advance(0.0001)
        driver.place("d/a", NEW)
        assert await read_all(m, "d/a") == NEW


@PASSTHROUGH
@pytest.mark.parametrize("what", ["longer", "shorter", "empty", "removed and made anew", "replaced twice", "as before"])
async def test_an_object_that_was_replaced_while_it_is_open(tmp_path: Path, passthrough: bool, what: str) -> None:
    """As after a close whose RELEASE has not arrived yet: the kernel sends it when the close has returned."""
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, passthrough=passthrough, whole_file_bytes=pages(2), readahead_bytes=0) as m:
        before = await opened(m, "a")
        assert bytes(await m.kernel.read(m.fs, before, 0, 1000)) == OLD[:1000]
        m.clock.advance(0.0001)
        if what == "removed and made anew":
            driver.remove("a")
        elif what == "replaced twice":
            driver.place("a", OLD[::-1])
        new = {"shorter": NEW[: pages(3)], "empty": b"", "as before": OLD}.get(what, NEW)
        driver.place("a", new)
        assert await read_all(m, "a") == new
        with pytest.raises(Stale):
            await m.kernel.read(m.fs, before, pages(5), 1000)
        await m.kernel.release(m.fs, before)
        assert await read_all(m, "a") == new


@pytest.mark.parametrize("request_kind", ["get", "head"])
async def test_what_was_asked_for_before_the_object_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_kind: str
) -> None:
    """The answer to it comes while the object is opened once more: it says nothing of what there is now."""
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2), readahead_bytes=0) as m:
        if request_kind == "head":  # the first page is here, so a HEAD is what an open asks with
            await m.kernel.release(m.fs, await opened(m, "a"))
        await m.inode("a")
        m.clock.advance(0.0001)
        name = "read" if request_kind == "get" else "head"
        answer, asked, replaced = getattr(driver, name), threading.Event(), threading.Event()

        def slow(*arguments: object, **options: object) -> object:
            result = answer(*arguments, **options)
            asked.set()
            assert replaced.wait(120)
            return result

        monkeypatch.setattr(driver, name, slow)
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                await m.kernel.release(m.fs, await opened(m, "a"))

            nursery.start_soon(first)
            await trio.to_thread.run_sync(asked.wait, 10)
            m.clock.advance(0.0001)
            driver.place("a", NEW)
            nursery.start_soon(read_new, m)
            await trio.testing.wait_all_tasks_blocked()
            m.clock.advance(0.0001)
            replaced.set()


async def read_new(m: Mount) -> None:
    assert await read_all(m, "a") == NEW


async def test_what_is_in_memory_only(tmp_path: Path) -> None:
    """The first page is known, but not on disk: the store is asked all the same."""
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, read_mode="no-cache", whole_file_bytes=pages(2), readahead_bytes=0) as m:
        handle = await opened(m, "a")
        assert bytes(await m.kernel.read(m.fs, handle, 0, 1000)) == OLD[:1000]
        await m.kernel.release(m.fs, handle)
        m.clock.advance(0.0001)
        driver.place("a", NEW)
        assert await read_all(m, "a") == NEW


async def test_the_second_open_comes_late_and_the_object_was_replaced_again(tmp_path: Path) -> None:
    """The kernel looks up once more only, however long that takes."""
    driver = FakeStore()
    driver.place("a", OLD)
    driver.place("b", OLD)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2), readahead_bytes=0) as m:
        inodes = {name: await m.inode(name) for name in "ab"}
        m.clock.advance(0.0001)
        for name, inode in inodes.items():
            driver.place(name, NEW)
            with pytest.raises(Stale):
                await m.kernel.open(m.fs, inode)
        m.clock.advance(0.5)
        for name in "ab":
            driver.place(name, OLD)
            handle = await m.open(name)
            assert bytes(await m.kernel.read(m.fs, handle, 0, 1000)) == NEW[:1000]
            await m.kernel.release(m.fs, handle)
        m.clock.advance(2)
        for name in "ab":
            assert await read_all(m, name) == OLD


class HasOld:
    """A peer that has the old version whole."""

    taking_part = False

    def ask(self, obj: CachedObject, flight: Flight, keep: Keep, answered: Done[Fetched], ask_store: object) -> bool:
        if obj.size != len(OLD):
            return False
        at = flight.pages.start * PAGE_BYTES
        answered(keep(memoryview(OLD)[at : at + flight.length], (), None), None)
        return True


async def test_a_first_page_from_a_peer_says_nothing_of_the_store(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", OLD)
    peer = HasOld()
    neighbours = Neighbours(peers=peer)
    options = Options(whole_file_bytes=pages(2), readahead_bytes=0, neighbours=lambda _store, _journal: neighbours)
    async with mounted(tmp_path, driver, options) as m:
        await m.inode("a")
        m.clock.advance(0.0001)
        driver.place("a", NEW)
        peer.taking_part = True
        assert await read_all(m, "a") == NEW


async def test_what_is_whole_in_the_cache_is_believed_for_its_time_to_live(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2)) as m:
        assert await read_all(m, "a") == OLD
        driver.place("a", NEW)
        requests = driver.counts.copy()
        assert await read_all(m, "a") == OLD
        assert driver.counts == requests


async def test_to_read_a_large_object_costs_no_request_more(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2)) as m:
        await m.entries()
        await m.inode("a")
        heads = driver.counts["head"]
        assert await read_all(m, "a") == OLD
        assert driver.counts["head"] == heads
        assert max(driver.reads.values()) == 1


async def test_who_has_read_something_is_told(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2), readahead_bytes=0) as m:
        handle = await opened(m, "a")
        assert bytes(await m.kernel.read(m.fs, handle, 0, 1000)) == OLD[:1000]
        driver.place("a", NEW)
        with pytest.raises(Stale):
            await m.kernel.read(m.fs, handle, pages(5), 1000)
        await m.kernel.release(m.fs, handle)
        assert await read_all(m, "a") == NEW


@pytest.mark.parametrize("ttl", [60.0, 0.0])
@pytest.mark.parametrize("large", [True, False])
async def test_an_object_that_is_replaced_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, ttl: float
) -> None:
    driver, size = FakeStore(), pages(6) if large else 5000
    driver.place("a", OLD[:size])
    async with mounted(
        tmp_path, driver, whole_file_bytes=pages(2) if large else pages(20), metadata_ttl_s=ttl, readahead_bytes=0
    ) as m:
        await m.inode("a")
        head, read, requests, versions = driver.head, driver.read, 0, [OLD[:size]]

        def replace() -> None:
            nonlocal requests
            requests += 1
            m.clock.advance(0.001)
            if requests % 3 != 2:
                versions.append(random_bytes(size, requests))
                driver.place("a", versions[-1])

        def heading(key: str) -> ObjectInfo:
            info = head(key)
            replace()
            return info

        def reading(*arguments: object, **options: object) -> Buffer:
            try:
                return read(*arguments, **options)  # type: ignore[arg-type]
            finally:
                replace()

        driver.place("a", NEW[:size])
        monkeypatch.setattr(driver, "head", heading)
        monkeypatch.setattr(driver, "read", reading)
        for _ in range(5):
            handle = await opened(m, "a")
            try:
                begun = bytes(await m.kernel.read(m.fs, handle, 0, 1000))
                assert begun in {version[:1000] for version in [*versions, NEW]}
            finally:
                await m.kernel.release(m.fs, handle)
            m.clock.advance(100)
