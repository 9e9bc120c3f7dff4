"""Reading directories: every entry that stays comes exactly once, whatever changes meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from luxfuse.core.evidence import SAMPLE
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import ListPage
from luxfuse.understore.base import ListedPart
from luxfuse.vfs import open_directories
from luxfuse.vfs.attributes import AttributeChanges
from luxfuse.vfs.errors import BadHandle, NotADirectory, NotALink
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, mounted, until

T = TypeVar("T")


def store_of(*keys: str) -> FakeStore:
    driver = FakeStore()
    for key in keys:
        driver.place(key, key.encode())
    return driver


async def test_dots_come_first_and_cookies_are_positions(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/b", "d/c")) as m:
        inode = await m.inode("d")
        handle, _ = await m.fs.directories.open(inode)
        everything = list(m.fs.directories.read(handle, 0))
        assert [name for name, _, _ in everything] == [b".", b"..", b"a", b"b", b"c"]
        assert everything[0][1].inode == inode
        assert everything[1][1].inode == ROOT_INODE
        for position, (_, _, cookie) in enumerate(everything):
            rest = [name for name, _, _ in m.fs.directories.read(handle, cookie)]
            assert rest == [name for name, _, _ in everything[position + 1 :]]
        m.fs.directories.close(handle)
        with pytest.raises(BadHandle):
            list(m.fs.directories.read(handle, 0))


@pytest.mark.parametrize("seed", range(4))
async def test_each_entry_that_stays_comes_once_while_the_directory_changes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_directories, "BATCH", 8)
    rng = random.Random(seed)
    stay = {f"s{number:04}" for number in range(300)}
    driver = store_of(*stay, *(f"g{number:04}" for number in range(50)))
    replaced = set(rng.sample(sorted(stay), 60))
    async with mounted(tmp_path, driver) as m:
        handle, _ = await m.fs.directories.open(ROOT_INODE)
        seen: list[bytes] = []
        cookie = 0
        for round_number in range(10_000):
            part = list(islice(m.fs.directories.read(handle, cookie), rng.randrange(1, 30)))
            if not part:
                break
            seen += [name for name, _, _ in part]
            cookie = part[-1][2]
            if round_number % 3 == 0:
                for key in rng.sample(sorted(replaced), 10):
                    driver.place(key, b"another")
                for key in [key for key in driver.objects if key.startswith("g")][:5]:
                    driver.remove(key)
                driver.place(f"n{round_number:04}", b"")
                m.clock.advance(61)
                other, _ = await m.fs.directories.open(ROOT_INODE)  # lists anew
                m.fs.directories.close(other)
        assert len(seen) == len(set(seen)), "an entry came twice"
        assert {key.encode() for key in stay} <= set(seen)
        m.fs.directories.close(handle)


async def test_a_position_survives_the_end_of_its_entry(tmp_path: Path) -> None:
    """The kernel goes on from the cookie of an entry that was replaced or removed, perhaps on another handle."""
    driver = store_of(*(f"f{number:03}" for number in range(20)))
    async with mounted(tmp_path, driver) as m:
        handle, _ = await m.fs.directories.open(ROOT_INODE)
        everything = list(m.fs.directories.read(handle, 0))
        driver.place("f005", b"replaced")
        driver.remove("f010")
        m.clock.advance(61)
        other, holds = await m.fs.directories.open(ROOT_INODE)
        assert not holds
        for name, following in ((b"f005", b"f006"), (b"f010", b"f011")):
            cookie = next(cookie for n, _, cookie in everything if n == name)
            assert next(m.fs.directories.read(other, cookie))[0] == following


async def test_a_large_directory_comes_whole_with_attributes(tmp_path: Path) -> None:
    driver = store_of(*(f"d/{number:05}" for number in range(12_345)))
    async with mounted(tmp_path, driver) as m:
        assert len(await m.entries("d")) == 12_345
        assert driver.counts["head"] <= 2 + SAMPLE  # a few are asked for, to find out whether they carry attributes


async def test_the_kernels_copy_holds_while_the_listing_does(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        assert [(await m.fs.directories.open(ROOT_INODE))[1] for _ in range(2)] == [False, True]
        m.clock.advance(61)
        assert [(await m.fs.directories.open(ROOT_INODE))[1] for _ in range(2)] == [False, True]
        await m.fs.refresh("/")
        assert not (await m.fs.directories.open(ROOT_INODE))[1]


@AWAY
async def test_a_failing_listing_leaves_the_old_one(tmp_path: Path) -> None:
    driver = store_of(*(f"f{number:04}" for number in range(2500)))
    async with mounted(tmp_path, driver) as m:
        before = await m.entries()
        assert len(before) == 2500
        driver.remove("f0001")
        m.clock.advance(61)
        driver.fail_next(1000, kind="list")
        with m.impatient():
            assert await m.entries() == before
        driver._failures.clear()
        await m.store.probe()
        after = await m.entries()
        assert before.keys() - after.keys() == {b"f0001"}


async def test_wrong_kinds(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("f", "d/x")) as m:
        with pytest.raises(NotADirectory):
            await m.fs.directories.open(await m.inode("f"))
        with pytest.raises(NotALink):
            await m.fs.readlink(await m.inode("f"))
        inode = await m.inode("d")
        assert (await m.fs.lookup(inode, b".")).inode == inode
        assert (await m.fs.lookup(inode, b"..")).inode == ROOT_INODE


async def test_entries_are_listed_with_the_attributes_that_each_has(tmp_path: Path) -> None:
    """What holds for one plain file is taken over for the next: not where that is dirty, described, doubted, or older."""
    driver = store_of(*(f"d/f{number:02}" for number in range(12)), "d/s/x")
    driver.place("d/f03", b"described", {"mode": str(0o100640)})
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        inode = await m.inode("d")
        handle, _ = await m.fs.directories.open(inode)
        await m.fs.getattr(await m.inode("d/f03"))
        m.clock.advance(20)
        await m.fs.namespace.confirm(await m.inode("d/f05"), m.clock())
        driver.hold("put")
        await m.fs.setattr(await m.inode("d/f07"), AttributeChanges(size=3), None, CALLER)
        belief = m.fs.namespace.belief
        for doubted in (False, True):
            if doubted:
                belief.doubts.entries.note(await m.inode("d/f09"), m.clock() + 0.5)
            for name, stat, cookie in list(m.fs.directories.read(handle, 0))[2:]:
                entry = m.fs.namespace.peek(inode, name)
                assert entry is not None
                assert entry.inode == cookie
                expected = m.fs.directories.shown.stat(entry)
                if m.fs.directories._descriptions.lacks(inode, entry):
                    expected.ttl_s = 0.0
                assert stat == expected, name
        driver.release()
        m.fs.directories.close(handle)


class Belated(FakeStore):
    """Answers a listing with what was there when it came, once that is ``due``."""

    asked = False
    due = threading.Event()

    def _answered(self, answer: T) -> T:
        self.asked = True
        assert self.due.wait(120)
        return answer

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        return iter(self._answered(list(super().list_directory(prefix))))

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        return self._answered(super().list_page(prefix, after, token))


async def test_a_directory_whose_marker_arrives_while_it_is_listed(tmp_path: Path) -> None:
    driver = Belated()
    driver.due.set()
    async with mounted(tmp_path, driver, write_mode="async-through") as m, trio.open_nursery() as nursery:
        inode = (await m.fs.mkdir(ROOT_INODE, b"made", 0o755, CALLER)).inode
        m.names.listings.forget(inode)
        driver.due.clear()
        driver.asked = False
        nursery.start_soon(m.fs.directories.open, inode)
        await until(lambda: driver.asked)
        await m.drain()
        driver.due.set()
