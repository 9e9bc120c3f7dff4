"""Opens and reads under the kernel's rule, versions that change, and what is fetched ahead and behind."""

from __future__ import annotations

import errno
import os
import random
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.shares import shares_of
from luxfuse.types import Buffer
from luxfuse.vfs import ahead, backings
from luxfuse.vfs.errors import BadHandle, Stale
from luxfuse.vfs.xattrs import OWN
from tests.support.fake_kernel import ref_of
from tests.support.fake_store import FakeStore
from tests.support.harness import MIB, mounted, pages, random_bytes, until


def store_of(**sizes: int) -> FakeStore:
    driver = FakeStore()
    for number, (key, size) in enumerate(sizes.items()):
        driver.place(key, random_bytes(size, number))
    return driver


def hold_answers(driver: FakeStore, monkeypatch: pytest.MonkeyPatch, after: str = "") -> threading.Event:
    """Hold what was read of keys behind ``after`` until the event is set that is returned."""
    answers, read = threading.Event(), driver.read

    def late(key: str, *arguments: object, **options: object) -> Buffer:
        data = read(key, *arguments, **options)  # type: ignore[arg-type]
        if key > after:
            answers.wait(120)
        return data

    monkeypatch.setattr(driver, "read", late)
    return answers


async def test_a_small_file_is_fetched_whole_and_handed_over(tmp_path: Path) -> None:
    driver = store_of(a=pages(3))
    async with mounted(tmp_path, driver) as m:
        handle = await m.open("a")
        assert m.kernel.is_passthrough(handle)
        assert driver.counts["get"] == 2
        again = await m.open("a")
        assert m.kernel.registered == 1, "one backing an inode, not one an open"
        for h in (handle, again):
            assert await m.kernel.read_all(m.fs, h) == driver.objects["a"][0]
            await m.kernel.release(m.fs, h)
        assert driver.counts["get"] == 2
        assert bytes(await m.files.backings.read(await m.inode("a"), 5, 10)) == driver.objects["a"][0][5:15]


async def test_a_file_that_comes_in_one_piece_is_handed_over_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store_of(a=pages(1.5), b=10, c=pages(3))
    async with mounted(tmp_path, driver) as m:
        opened = []
        again = m.cache.open_for_kernel
        monkeypatch.setattr(m.cache, "open_for_kernel", lambda obj: opened.append(obj.record.key) or again(obj))
        for key in "abc":
            handle = await m.open(key)
            assert m.kernel.is_passthrough(handle)
            assert await m.kernel.read_all(m.fs, handle) == driver.objects[key][0]
            await m.kernel.release(m.fs, handle)
        assert opened == ["c"], "a thread has opened a cache file that was open"
        assert len(m.open_cache_files()) == 3
        m.files.backings.forget_all()
        assert not m.open_cache_files()


async def test_a_file_that_is_written_to_while_an_open_fetches_it_is_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store_of(a=10)
    answers = hold_answers(driver, monkeypatch)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("a")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.open, "a")
                await until(lambda: driver.counts["get"] == 1)
                handle = await m.kernel.open(m.fs, inode, os.O_WRONLY | os.O_TRUNC)
                await m.kernel.write(m.fs, handle, 0, b"written here")
                await m.kernel.close(m.fs, handle)
                assert m.files.backings.retire_idle(inode)
                scope.cancel()  # its caller has gone: it does not look any more
        answers.set()
        await until(lambda: m.cache.budget.idle)
        assert await m.read_all("a") == driver.objects["a"][0] == b"written here"


async def test_an_open_that_waits_while_the_file_is_written_to_opens_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store_of(a=10)
    answers = hold_answers(driver, monkeypatch)
    opened: list[int] = []

    async def open_it() -> None:
        opened.append(await m.open("a"))

    async with mounted(tmp_path, driver) as m, trio.open_nursery() as nursery:
        inode = await m.inode("a")
        nursery.start_soon(open_it)
        await until(lambda: driver.counts["get"] == 1)
        handle = await m.kernel.open(m.fs, inode, os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, b"written here")
        await m.kernel.close(m.fs, handle)
        assert m.files.backings.retire_idle(inode)
        answers.set()
        await until(lambda: opened)
        assert await m.read_all("a") == b"written here"
        assert await m.kernel.read_all(m.fs, opened[0]) == b"written here"
        await m.kernel.release(m.fs, opened[0])


async def test_small_files_ahead_share_turns_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store_of(**{f"f{number:03}": 1000 for number in range(100)})
    async with mounted(tmp_path, driver) as m:
        await m.entries()
        turns = []
        submit = m.store.submit

        def counting(kind: str, *arguments: Any, requests: int = 1, **named: Any) -> None:
            if kind == "get":
                turns.append(requests)
            submit(kind, *arguments, requests=requests, **named)

        monkeypatch.setattr(m.store, "submit", counting)
        for number in range(100):
            assert await m.read_all(f"f{number:03}") == driver.objects[f"f{number:03}"][0]
        assert sum(turns) == driver.counts["get"] == 100
        assert max(turns) > 1


async def test_a_large_file_is_copied_while_it_is_filled_and_handed_over_once_whole(tmp_path: Path) -> None:
    driver = store_of(big=pages(20))
    async with mounted(tmp_path, driver) as m:
        handle = await m.open("big")
        assert not m.kernel.is_passthrough(handle)
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["big"][0]
        second = await m.open("big")
        assert not m.kernel.is_passthrough(second), "no mixture of modes"
        await m.kernel.release(m.fs, handle)
        await m.kernel.release(m.fs, second)
        handle = await m.open("big")
        assert m.kernel.is_passthrough(handle)
        await m.kernel.release(m.fs, handle)


async def test_handles_end(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of(a=10, empty=0), passthrough=False) as m:
        handle = await m.open("a")
        await m.kernel.release(m.fs, handle)
        with pytest.raises(BadHandle):
            await m.fs.release(ref_of(handle))
        with pytest.raises(BadHandle):
            await m.fs.read(ref_of(handle), 0, 1)
        assert await m.read_all("empty") == b""
        assert not m.cache.contents._live
        assert not m.files.copied._inodes


async def test_a_kernel_that_refuses_backing_files_gets_copies(tmp_path: Path) -> None:
    driver = store_of(a=pages(2), b=pages(2))
    async with mounted(tmp_path, driver) as m:
        m.kernel.refuses = True
        for key in ("a", "b", "a"):
            assert await m.read_all(key) == driver.objects[key][0]
        assert m.files.backings.opened == 0


async def test_an_open_copied_file_keeps_its_version_or_is_stale(tmp_path: Path) -> None:
    driver = store_of(a=pages(20))
    old = driver.objects["a"][0]
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        handle = await m.open("a")
        assert await m.kernel.read(m.fs, handle, 0, MIB) == old[:MIB]
        driver.place("a", random_bytes(pages(20), 77))
        assert await m.kernel.read(m.fs, handle, 0, MIB) == old[:MIB]
        with pytest.raises(Stale):
            await m.kernel.read(m.fs, handle, pages(15), MIB)
        assert m.files.copied.stale_reads == 1
        inode = m.kernel.handles[handle]
        assert (await m.fs.getattr(inode)).size == pages(20)
        assert await m.inode("a") != inode, "the failed read made the name be asked for again"
        assert await m.read_all("a") == driver.objects["a"][0]
        assert await m.kernel.read(m.fs, handle, 0, MIB) == old[:MIB]
        await m.kernel.release(m.fs, handle)


async def test_an_open_passthrough_file_keeps_its_version(tmp_path: Path) -> None:
    driver = store_of(a=pages(2))
    old = driver.objects["a"][0]
    async with mounted(tmp_path, driver) as m:
        handle = await m.open("a")
        driver.place("a", random_bytes(pages(3), 78))
        m.clock.advance(61)
        assert await m.read_all("a") == driver.objects["a"][0]
        driver.remove("a")
        m.clock.advance(61)
        with pytest.raises(LuxError):
            await m.open("a")
        assert await m.kernel.read_all(m.fs, handle) == old
        assert (await m.fs.getattr(handle & ((1 << 48) - 1))).size == pages(2)
        await m.kernel.release(m.fs, handle)


async def test_an_object_replaced_between_look_up_and_open_is_stale_then_new(tmp_path: Path) -> None:
    driver = store_of(a=pages(2))
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("a")
        driver.place("a", random_bytes(pages(2), 79))
        with pytest.raises(Stale):
            await m.kernel.open(m.fs, inode)
        assert await m.read_all("a") == driver.objects["a"][0]
        driver.remove("a")


async def test_a_file_that_is_about_to_be_opened_stays_with_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others are opened meanwhile; what was opened goes first."""
    monkeypatch.setattr(backings, "shares", lambda: shares_of(150)._replace(registered=3))
    driver = store_of(**{f"k{number}": pages(1) for number in range(8)})
    async with mounted(tmp_path, driver) as m:
        first = await m.open("k0")
        await m.kernel.release(m.fs, first)
        (inode,) = m.kernel.table
        backing = m.fs.files.backings.get(inode)
        assert backing is not None
        told = backing.oid
        m.files.backings.awaited.append(lambda oid: oid == told)
        m.cache.contents.protections.append(lambda _oid: True)  # a load is under way: that says nothing of opens
        for number in range(1, 8):
            await m.kernel.release(m.fs, await m.open(f"k{number}"))
            assert len(m.kernel.table) <= 3
        assert m.kernel.is_registered(inode)


async def test_where_all_are_about_to_be_opened_the_oldest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backings, "shares", lambda: shares_of(150)._replace(registered=3))
    driver = store_of(**{f"k{number}": pages(1) for number in range(8)})
    async with mounted(tmp_path, driver) as m:
        m.files.backings.awaited.append(lambda _oid: True)
        for number in range(8):
            await m.kernel.release(m.fs, await m.open(f"k{number}"))
        left = [m.files.backings.get(inode) for inode in m.kernel.table]
        assert {backing.name for backing in left if backing is not None} == {b"k5", b"k6", b"k7"}


@pytest.mark.parametrize("seed", range(6))
async def test_no_interleaving_of_opens_breaks_the_kernels_rule(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opens, reads, closes, evictions, retirements and replacements at once; `FakeKernel` is the judge."""
    monkeypatch.setattr(backings, "shares", lambda: shares_of(150)._replace(registered=3))
    rng = random.Random(seed)
    driver = store_of(**{f"k{number}": rng.randrange(1, pages(5)) for number in range(5)})
    driver.delay_s = 0.0005
    versions = {key: {content[0]} for key, content in driver.objects.items()}
    options = {"capacity_bytes": pages(8), "whole_file_bytes": pages(3), "memory_bytes": pages(4)}
    async with mounted(tmp_path, driver, **options) as m:

        async def program(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(10):
                key = f"k{mine.randrange(5)}"
                try:
                    handle = await m.open(key)
                except Stale:
                    continue
                try:
                    for _ in range(mine.randrange(3)):
                        await trio.sleep(mine.random() * 0.002)
                        got = await m.kernel.read_all(m.fs, handle)
                        assert got in versions[key], "bytes of no version, or a mixture"
                except Stale:
                    pass
                finally:
                    await m.kernel.release(m.fs, handle)

        async def trouble() -> None:
            while True:
                await trio.sleep(rng.random() * 0.01)
                action = rng.randrange(4)
                if action == 0:
                    key = f"k{rng.randrange(5)}"
                    data = rng.randbytes(rng.randrange(1, pages(5)))
                    versions[key].add(data)
                    driver.place(key, data)
                elif action == 1:
                    m.clock.advance(61)
                    for backing in m.kernel.table.values():
                        backing.fresh = False
                elif action == 2:
                    async with m.space._evicting:
                        await m.space._evict(pages(2))
                else:
                    m.files.backings.note_touched()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            async with trio.open_nursery() as programs:
                for number in range(8):
                    programs.start_soon(program, 100 * seed + number)
            nursery.cancel_scope.cancel()
        assert not m.files.copied._inodes
        assert not m.files.copied._handles
        await until(lambda: m.cache.budget.idle)
        assert m.ahead._on_their_way == 0
        assert not m.cache.contents._live, "an object is still counted as used"
        m.files.backings.forget_all()
        assert not m.kernel.table


async def test_files_are_fetched_ahead_in_listing_order_within_the_bound(tmp_path: Path) -> None:
    driver = store_of(**{f"f{number:03}": 100_000 for number in range(100)})
    async with mounted(tmp_path, driver, readahead_bytes=1_000_000) as m:
        await m.entries()
        most = expected = 0
        for number in range(100):
            assert await m.read_all(f"f{number:03}") == driver.objects[f"f{number:03}"][0]
            most = max(most, m.ahead._on_their_way)
            expected = max(expected, len(m.kernel.expected))
            assert m.ahead._on_their_way <= 1_000_000
        assert most >= 300_000
        assert m.ahead.files > 60
        assert driver.counts["get"] == 100, "a file was fetched twice"
        await until(lambda: m.ahead._on_their_way == 0)
        assert expected >= 3
        assert not m.kernel.expected


async def test_nothing_is_fetched_ahead_in_random_order_or_of_large_files(tmp_path: Path) -> None:
    driver = store_of(**{f"f{number:03}": 1000 for number in range(200)})
    async with mounted(tmp_path, driver) as m:
        await m.entries()
        order = list(range(0, 200, 3))
        random.Random(5).shuffle(order)
        for number in order:
            await m.read_all(f"f{number:03}")
        assert m.ahead.files <= 8
    driver = store_of(**{f"f{number:03}": pages(2) for number in range(20)})
    async with mounted(tmp_path / "large", driver, whole_file_bytes=pages(1)) as m:
        await m.entries()
        for number in range(10):
            await m.open(f"f{number:03}")
        assert m.ahead.files == 0


async def test_a_file_that_is_written_to_while_it_is_fetched_ahead_is_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store_of(**{f"f{number}": 10 for number in range(8)})
    answers = hold_answers(driver, monkeypatch, after="f3")
    async with mounted(tmp_path, driver) as m:
        await m.entries()
        for number in range(4):
            await m.read_all(f"f{number}")
        await until(lambda: driver.counts["get"] == 8)
        inode = await m.inode("f5")
        handle = await m.kernel.open(m.fs, inode, os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, b"written here")
        await m.kernel.close(m.fs, handle)
        assert driver.objects["f5"][0] == b"written here"
        assert m.files.backings.retire_idle(inode)
        answers.set()
        await until(lambda: m.ahead._on_their_way == 0)
        assert await m.read_all("f5") == b"written here"


async def test_a_file_ahead_whose_pages_are_in_memory_only_leaves_nothing_behind(tmp_path: Path) -> None:
    driver = store_of(**{f"f{number}": 1000 for number in range(10)})
    async with mounted(tmp_path, driver, capacity_bytes=0) as m:
        await m.entries()
        for _ in range(3):
            for number in range(10):
                assert await m.read_all(f"f{number}") == driver.objects[f"f{number}"][0]
        await until(lambda: m.cache.budget.idle)
        assert m.ahead._on_their_way == 0
        assert not m.cache.contents._live


async def test_the_rest_of_a_large_file_is_filled_behind_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "FILL_PAUSE_S", 0.001)
    driver = store_of(big=pages(24))
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        handle = await m.open("big")
        for page in (0, 3, 6, 9, 12, 15, 18, 21, 2):
            await m.kernel.read(m.fs, handle, pages(page), MIB)
        path = m.file_of("big")
        await until(
            lambda: (
                m.objects.load(bytes.fromhex(path.name)) is not None and m.objects.load(bytes.fromhex(path.name))[1].whole
            )
        )
        assert path.read_bytes() == driver.objects["big"][0]
        await m.kernel.release(m.fs, handle)
        assert sum(driver.reads.values()) == driver.counts["get"]
        spans = sorted(span for _, span in driver.reads)
        assert all(one[1] <= other[0] for one, other in pairwise(spans)), "fetched twice"


async def test_a_file_of_which_little_was_read_is_not_filled(tmp_path: Path) -> None:
    driver = store_of(big=pages(24))
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        handle = await m.open("big")
        await m.kernel.read(m.fs, handle, pages(20), 4096)
        await m.kernel.release(m.fs, handle)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert driver.counts["get"] == 2  # with the first page, by which the open meets the store


async def test_xattrs_tell_what_is_cached(tmp_path: Path) -> None:
    driver = store_of(big=pages(20), small=100, empty=0)
    driver.place("d/x", b"")
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:

        async def xattrs(path: str) -> dict[str, str]:
            inode = await m.inode(path)
            assert await m.fs.xattrs.names(inode) == []  # else `cp -a` would write them onto the copy
            return {n.decode(): (await m.fs.xattrs.get(inode, b"user.luxfuse." + n)).decode() for n in OWN}

        assert await xattrs("big") == {
            "version": driver.objects["big"][1],
            "cached_bytes": "0",
            "tier": "none",
            "state": "remote",
        }
        handle = await m.open("big")
        await m.kernel.read(m.fs, handle, 0, 10)
        await m.kernel.release(m.fs, handle)
        partial = await xattrs("big")
        assert (partial["state"], partial["tier"], partial["cached_bytes"]) == ("partial", "ssd", str(MIB))
        await m.read_all("small")
        assert (await xattrs("small"))["state"] == "cached"
        assert (await xattrs("small"))["cached_bytes"] == "100"
        assert (await xattrs("empty"))["state"] == "cached"
        for inode, name in [
            (await m.inode("small"), b"user.other"),
            (await m.inode("d"), b"user.luxfuse.state"),
            (ROOT_INODE, b"user.luxfuse.state"),
            (await m.inode("small"), b"user.luxfuse.nonsense"),
        ]:
            with pytest.raises(LuxError) as caught:
                await m.fs.xattrs.get(inode, name)
            assert caught.value.errno == 61


async def test_a_full_or_sick_cache_serves_copies(tmp_path: Path) -> None:
    driver = store_of(a=pages(2), b=pages(2))
    async with mounted(tmp_path, driver, capacity_bytes=0) as m:
        for key in ("a", "b"):
            assert await m.read_all(key) == driver.objects[key][0]
        assert m.disk_bytes() == 0


@pytest.mark.expected_logs("no descriptors are left")
async def test_files_are_copied_while_no_descriptors_are_left_to_hand_them_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def fail(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise OSError(errno.EMFILE, "Too many open files")
        return open_file(path, *rest, **named)

    driver = FakeStore()
    driver.place("a", b"content")
    async with mounted(tmp_path, driver) as m:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", fail)
            handle = await m.open("a")
            assert not m.kernel.is_passthrough(handle)
            assert await m.kernel.read_all(m.fs, handle) == b"content"
            await m.kernel.release(m.fs, handle)
        handle = await m.open("a")
        assert m.kernel.is_passthrough(handle)
        await m.kernel.release(m.fs, handle)
