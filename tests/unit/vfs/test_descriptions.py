"""When the attributes of objects are asked for, how many at once, and what is shown while nobody knows them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from luxfuse.core.evidence import ENOUGH, SAMPLE
from luxfuse.errors import AccessDenied, StoreUnavailable
from luxfuse.index.entries import Attributes
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.attributes import Caller, to_metadata
from luxfuse.vfs.errors import NoSuchName
from tests.support.clustered import clustered
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted

SAID = {"mode": str(stat.S_IFREG | 0o600), "uid": "7", "gid": "8", "mtime": "1600000000.5"}


def store_of(count: int, metadata: dict[str, str] | None = None, directory: str = "d") -> FakeStore:
    driver = FakeStore()
    for number in range(count):
        driver.place(f"{directory}/{number:03}", b"x" * 10, metadata)
    return driver


async def modes(m: Mount, path: str) -> dict[bytes, tuple[int, float]]:
    """What READDIRPLUS says of each entry: permissions, and for how long."""
    directory = await m.inode(path) if path else ROOT_INODE
    handle, _ = await m.fs.directories.open(directory)
    found = {name: (stat.S_IMODE(said.mode), said.ttl_s) for name, said, _ in m.fs.directories.read(handle, 0)}
    m.fs.directories.close(handle)
    return {name: said for name, said in found.items() if name not in (b".", b"..")}


async def test_who_looks_at_one_after_the_other_waits_for_few(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of(300, SAID)) as m:
        directory = await m.inode("d")
        said = list((await modes(m, "d")).values())
        assert (said.count((0o644, 0.0)), said.count((0o600, 60.0))) == (300 - SAMPLE, SAMPLE)
        m.driver.counts.clear()
        for number in range(300):
            found = await m.fs.lookup(directory, b"%03d" % number)
            assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o600, 7, 8)
            assert found.mtime_ns == 1_600_000_000_500_000_000
        assert m.driver.counts == {"head": 300 - SAMPLE}
        assert set((await modes(m, "d")).values()) == {(0o600, 60.0)}
    async with mounted(tmp_path, m.driver) as m:
        assert {mode for mode, _ in (await modes(m, "d")).values()} == {0o600}
        assert m.driver.counts["head"] <= 301, "the directory's marker besides"


async def test_a_bucket_without_attributes_is_asked_a_few_times_in_all(tmp_path: Path) -> None:
    driver = FakeStore()
    for directory in range(20):
        for number in range(10):
            driver.place(f"d{directory}/{number}", b"x")
    async with mounted(tmp_path, driver) as m:
        await m.entries("")  # else a look-up that overtakes the listing asks for the name
        for directory in range(20):
            inode = await m.inode(f"d{directory}")
            await m.entries(f"d{directory}")
            for number in range(10):
                await m.fs.lookup(inode, str(number).encode())
        asked = driver.counts["head"]
        assert asked <= ENOUGH + SAMPLE
    driver.counts.clear()
    async with mounted(tmp_path, driver) as m:
        m.clock.advance(3600)
        await m.entries("")
        for directory in range(20):
            await m.entries(f"d{directory}")
            assert {ttl_s > 0 for _, ttl_s in (await modes(m, f"d{directory}")).values()} == {True}
        assert driver.counts["head"] == 0


async def test_listing_xattrs_asks_where_stat_does(tmp_path: Path) -> None:
    async with mounted(tmp_path / "none", store_of(300)) as m:
        directory = await m.inode("d")
        entries = [await m.fs.lookup(directory, b"%03d" % number) for number in range(300)]
        m.driver.counts.clear()
        assert [await m.fs.xattrs.names(each.inode) for each in entries] == [[]] * 300
        assert not m.driver.counts
    carrying = {**SAID, "xattr": to_metadata(Kind.FILE, Attributes(xattrs={"user.a": b"1"}))["xattr"]}
    async with mounted(tmp_path / "some", store_of(10, carrying)) as m:
        assert await m.fs.xattrs.names(await m.inode("d/005")) == [b"user.a"]


async def test_listing_asks_for_nothing_but_when_a_file_itself_is_asked_about(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of(20, SAID), attributes="listing") as m:
        entries = await m.entries("d")
        m.driver.counts.clear()
        for name, inode in entries.items():
            assert stat.S_IMODE((await m.fs.lookup(await m.inode("d"), name)).mode) == 0o644
            assert await m.inode(f"d/{name.decode()}") == inode
        assert m.driver.counts["head"] == 0
        assert stat.S_IMODE((await m.fs.getattr(entries[b"003"])).mode) == 0o600


async def test_others_are_let_in_by_nothing_that_is_not_known(tmp_path: Path) -> None:
    driver = store_of(3, SAID)
    driver.place("d/", b"", {"mode": str(stat.S_IFDIR | 0o700)})
    driver.place("plain", b"x")
    async with mounted(tmp_path, driver, allow_other=True) as m:
        assert {mode & 0o077 for mode, _ in (await modes(m, "")).values()} == {0}
        assert {ttl_s for _, ttl_s in (await modes(m, "")).values()} == {0.0}
        assert stat.S_IMODE((await m.fs.lookup(ROOT_INODE, b"d")).mode) == 0o700
        assert stat.S_IMODE((await m.fs.lookup(ROOT_INODE, b"plain")).mode) == 0o644
        assert {mode & 0o077 for mode, _ in (await modes(m, "d")).values()} == {0}


@AWAY
@pytest.mark.parametrize("error", [StoreUnavailable, AccessDenied])
async def test_nor_while_the_store_does_not_say(tmp_path: Path, error: type[Exception]) -> None:
    driver = store_of(1)
    async with mounted(tmp_path, driver, allow_other=True) as m:
        (inode,) = (await m.entries("d")).values()
        driver.fail_next(1000, lambda: error("fake"), "head")  # type: ignore[arg-type, return-value]
        with m.impatient():
            said = await m.fs.lookup(await m.inode("d"), b"000")
            assert (said.inode, stat.S_IMODE(said.mode), said.ttl_s) == (inode, 0o600, 0.0)
            assert stat.S_IMODE((await m.fs.getattr(inode)).mode) == 0o600
        driver._failures.clear()
        m.store.counters.state = "up"
        m.store.presence.answered()  # else it is in doubt, and what is known is shown where an answer takes long
        assert stat.S_IMODE((await m.fs.lookup(await m.inode("d"), b"000")).mode) == 0o644


async def test_a_directory_is_asked_for_again_where_others_are_let_in(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("d/", b"", {"mode": str(stat.S_IFDIR | 0o755)})
    driver.place("d/x", b"x")
    async with mounted(tmp_path, driver, allow_other=True) as m:
        assert stat.S_IMODE((await m.fs.lookup(ROOT_INODE, b"d")).mode) == 0o755
        driver.place("d/", b"", {"mode": str(stat.S_IFDIR | 0o700)})
        m.clock.advance(61)
        await m.entries("")  # which confirms that it is there, and says nothing of its mode
        assert stat.S_IMODE((await m.fs.lookup(ROOT_INODE, b"d")).mode) == 0o700


async def test_what_was_replaced_or_removed_since_it_was_listed_is_looked_up(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of(3, SAID)) as m:
        entries = await m.entries("d")
        m.driver.place("d/001", b"new content", {**SAID, "mode": str(stat.S_IFREG | 0o640)})
        m.driver.remove("d/002")
        directory = await m.inode("d")
        said = await m.fs.lookup(directory, b"001")
        assert said.inode != entries[b"001"]
        assert (said.size, stat.S_IMODE(said.mode)) == (11, 0o640)
        with pytest.raises(NoSuchName):
            await m.fs.lookup(directory, b"002")


async def test_a_copy_onto_itself_elsewhere_shows_with_the_next_listing(tmp_path: Path) -> None:
    driver = store_of(1, SAID)
    async with mounted(tmp_path, driver) as m:
        directory = await m.inode("d")
        await m.entries("d")
        before = await m.fs.lookup(directory, b"000")
        data, version, mtime_ns, _ = driver.objects["d/000"]
        driver.objects["d/000"] = data, version, mtime_ns + 5 * 10**9, {**SAID, "mode": str(stat.S_IFREG | 0o400)}
        m.clock.advance(61)
        await m.entries("d")
        after = await m.fs.lookup(directory, b"000")
        assert (after.inode, stat.S_IMODE(after.mode)) == (before.inode, 0o400)


async def test_what_is_written_here_is_not_asked_for_after_a_listing(tmp_path: Path) -> None:
    async with mounted(tmp_path, FakeStore()) as m:
        m.driver._now_ns = int(m.clock()) * 10**9
        await m.fs.mkdir(ROOT_INODE, b"d", 0o711, Caller(0, 0))
        m.driver.counts.clear()
        m.clock.advance(61)
        await m.entries("")
        assert stat.S_IMODE((await m.fs.lookup(ROOT_INODE, b"d")).mode) == 0o711
        assert m.driver.counts["head"] == 0


async def test_pages_of_another_node_bring_what_it_knows(tmp_path: Path) -> None:
    driver = store_of(6, SAID)
    async with clustered(tmp_path, driver, 2) as (a, b):
        for node in (a, b):
            await node.mount.entries("d")
        for number in range(6):
            key = f"d/{number:03}"
            for node in (a, b):
                entry = node.mount.names.get(node.mount.names.get(ROOT_INODE, b"d").inode, key[2:].encode())
                obj = node.mount.cache.acquire(key, entry.version, entry.size)
                await node.mount.cache.fetch_whole(obj)
                node.mount.cache.release(obj)
        assert sum(node.mount.cache.counters.peer_bytes for node in (a, b)) == 60
        asked = driver.counts["head"]
        for node in (a, b):
            assert {mode for mode, _ in (await modes(node.mount, "d")).values()} == {0o600}
        assert driver.counts["head"] == asked
