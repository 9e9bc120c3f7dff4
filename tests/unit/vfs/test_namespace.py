"""Look-ups: what is known and for how long, one question for all who ask, outages."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from luxfuse.core.evidence import SAMPLE
from luxfuse.errors import AccessDenied, LuxError, StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.uncommitted import Table
from luxfuse.vfs.errors import KernelBusy, NameTooLong, NoSuchName, Stale
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted, until
from tests.support.late_listing import LateListing


def store_of(*keys: str) -> FakeStore:
    driver = FakeStore()
    for key in keys:
        driver.place(key, key.encode())
    return driver


def requests(mount: Mount) -> int:
    return sum(mount.driver.counts.values())


async def test_what_is_known_is_not_asked_for_within_the_ttl(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/b")) as m:
        inode = await m.inode("d/a")
        before = requests(m)
        m.clock.advance(59)
        assert await m.inode("d/a") == inode
        assert (await m.fs.getattr(inode)).ttl_s == pytest.approx(1)
        assert requests(m) == before
        m.clock.advance(2)
        assert await m.inode("d/a") == inode
        assert requests(m) > before


async def test_a_missing_name_is_asked_for_again_after_its_own_ttl(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        with pytest.raises(NoSuchName):
            await m.inode("new")
        before = requests(m)
        m.driver.place("new", b"x")
        m.clock.advance(4)
        with pytest.raises(NoSuchName):
            await m.inode("new")
        assert requests(m) == before
        m.clock.advance(2)
        assert await m.inode("new")


async def test_a_listing_answers_for_all_its_names_without_a_question_each(tmp_path: Path) -> None:
    keys = [f"d/{number}" for number in range(200)]
    async with mounted(tmp_path, store_of(*keys)) as m:
        entries = await m.entries("d")
        assert len(entries) == 200
        heads = m.driver.counts["head"]
        for key in keys:
            assert await m.inode(key) == entries[key[2:].encode()]
        with pytest.raises(NoSuchName):
            await m.inode("d/none")
        assert m.driver.counts["head"] <= heads + SAMPLE


async def test_many_who_ask_for_one_name_ask_once(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        found = []
        m.driver.hold()

        async def ask() -> None:
            found.append(await m.inode("a"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            m.driver.release()
        assert len(set(found)) == 1
        assert m.driver.counts["head"] == 1


async def test_a_listing_is_made_once_for_all_who_wait(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a", "b")) as m:
        m.driver.hold()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(m.entries)
            await wait_all_tasks_blocked()
            m.driver.release()
        assert m.driver.counts["list"] == 1


async def test_a_listing_that_takes_longer_than_the_ttl_is_not_joined(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        m.driver.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.entries)
            await wait_all_tasks_blocked()
            await until(lambda: m.driver.counts["list"] == 1)
            m.clock.advance(61)
            found: list[dict] = []

            async def late() -> None:
                found.append(await m.entries())

            nursery.start_soon(late)
            await wait_all_tasks_blocked()
            m.driver.release()
        assert m.driver.counts["list"] == 2
        assert set(found[0]) == {b"a"}


async def test_after_several_expired_names_the_directory_is_listed_instead(tmp_path: Path) -> None:
    keys = [f"d/{number:03}" for number in range(100)]
    async with mounted(tmp_path, store_of(*keys)) as m:
        await m.entries("d")
        m.clock.advance(61)
        m.driver.counts.clear()
        for key in keys[:3]:
            await m.inode(key)
        await until(lambda: not m.lister.is_listing(m.names.get(ROOT_INODE, b"d").inode))
        for key in keys:
            await m.inode(key)
        assert m.driver.counts["head"] <= 4 + SAMPLE
        assert requests(m) <= 10 + SAMPLE


@pytest.mark.expected_logs("skipping key")
async def test_kinds_of_names(tmp_path: Path) -> None:
    driver = store_of("file", "dir/x", "link.rclonelink", "both", "both/x", "marker/")
    async with mounted(tmp_path, driver) as m:
        looked_up = {
            name: (await m.fs.lookup(ROOT_INODE, name.encode())).mode >> 12
            for name in ("file", "dir", "link", "both", "marker")
        }
        assert looked_up == {"file": 0o10, "dir": 0o4, "link": 0o12, "both": 0o4, "marker": 0o4}
        for name in ("link.rclonelink", "none", "fil", "x" * 255, "file/", "a\0b"):
            with pytest.raises(NoSuchName):
                await m.fs.lookup(ROOT_INODE, name.encode())
        with pytest.raises(NoSuchName):
            await m.fs.lookup(ROOT_INODE, b"\xff\xfe")
        assert await m.fs.readlink((await m.fs.lookup(ROOT_INODE, b"link")).inode) == b"link.rclonelink"
        assert set(await m.entries("marker")) == set()


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "x" * 1024])
async def test_a_name_of_more_than_255_bytes_is_too_long(tmp_path: Path, name: str) -> None:
    async with mounted(tmp_path, store_of("a", name)) as m:
        with pytest.raises(NameTooLong) as failure:
            await m.fs.lookup(ROOT_INODE, name.encode())
        assert failure.value.errno == errno.ENAMETOOLONG
        assert requests(m) == 0


@pytest.mark.expected_logs("skipping key")
async def test_listing_and_look_up_agree(tmp_path: Path) -> None:
    """Whatever a listing shows can be looked up when it has expired, as the same kind and inode."""
    driver = store_of(
        "file",
        "dir/x",
        "link.rclonelink",
        "both",
        "both/x",
        "marker/",
        ".rclonelink",
        "a.rclonelink/x",
        "//",
        "./x",
        "../x",
        "l" * 300,
        "ok",
        "two",
        "two.rclonelink",
    )
    async with mounted(tmp_path, driver) as m:
        entries = await m.entries()
        assert set(entries) == {b"file", b"dir", b"link", b"both", b"marker", b".rclonelink", b"ok", b"two"} | {
            b"a.rclonelink"
        } & set(entries)
        assert m.lister.skipped_keys >= 5
        kinds = {name: (await m.fs.lookup(ROOT_INODE, name)).mode for name in entries}
        m.clock.advance(61)
        for name, inode in entries.items():
            if name == b"a.rclonelink":
                continue
            stat = await m.fs.lookup(ROOT_INODE, name)
            assert (stat.mode, stat.inode) == (kinds[name], inode), name


async def test_skipped_keys_are_logged_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected_logs: list
) -> None:
    expected_logs.append("skipping key")
    async with mounted(tmp_path, store_of("ok", "l" * 300, "m" * 300, "both", "both/x")) as m:
        assert set(await m.entries()) == {b"ok", b"both"}
        m.clock.advance(100)
        await m.entries()
        assert m.lister.skipped_keys == 3 * m.driver.counts["list"] >= 6
    assert sum("skipping key" in record.message for record in caplog.records) == 1


async def test_a_replaced_object_is_a_new_inode_and_the_old_one_is_stale(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        old = await m.inode("a")
        m.driver.place("a", b"new content")
        assert (await m.fs.getattr(old)).size == 1
        m.clock.advance(61)
        with pytest.raises(Stale):
            await m.fs.getattr(old)
        new = await m.inode("a")
        assert new != old
        assert (await m.fs.getattr(new)).size == 11
        with pytest.raises(Stale):
            await m.kernel.open(m.fs, old)


async def test_a_removed_object_is_gone_after_the_ttl(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a", "b")) as m:
        inode = (await m.entries())[b"a"]
        m.driver.remove("a")
        m.clock.advance(61)
        with pytest.raises(Stale):
            await m.fs.getattr(inode)
        with pytest.raises(NoSuchName):
            await m.inode("a")
        assert set(await m.entries()) == {b"b"}


async def test_changes_that_a_listing_finds_are_told_to_the_kernel(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("same", "changed", "gone")) as m:
        await m.entries()
        m.driver.place("changed", b"x")
        m.driver.remove("gone")
        m.driver.place("new", b"x")
        m.clock.advance(61)
        await m.entries()
        assert sorted(m.kernel.invalidated) == [(ROOT_INODE, b"changed"), (ROOT_INODE, b"gone")]


async def test_a_directory_that_vanished(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/e/f", "x")) as m:
        inode = await m.inode("d/e")
        m.driver.remove("d/e/f")
        m.clock.advance(61)
        with pytest.raises((NoSuchName, Stale)):
            await m.fs.directories.open(inode)
        with pytest.raises(NoSuchName):
            await m.inode("d")


async def test_a_directory_that_vanished_leaves_nothing_in_the_index(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/e/f", "d/g", "x")) as m:
        await m.entries("d/e")
        await m.entries("d")
        inode = await m.inode("d/e")
        m.driver.remove("d/e/f")
        m.driver.remove("d/g")
        m.clock.advance(61)
        assert set(await m.entries()) == {b"x"}
        await until(lambda: len(m.index.committed_items(Table.NAMES, b"", b"", 10)) == 1)
        with pytest.raises(Stale):
            await m.fs.getattr(inode)
        m.driver.place("d/e/f", b"again")
        m.clock.advance(61)
        assert await m.inode("d/e") != inode
        assert set(await m.entries("d/e")) == {b"f"}


@AWAY
async def test_an_outage_serves_what_is_known_and_is_no_absence(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a", "d/b"), passthrough=False) as m:
        inode = await m.inode("a")
        before = await m.entries("d")
        root = await m.entries()
        assert await m.read_all("a") == b"a"
        m.clock.advance(1000)
        m.driver.flaky(1.0, 1)
        with m.impatient():
            assert await m.inode("a") == inode
            assert await m.entries("d") == before
            assert await m.entries() == root
            assert await m.read_all("a") == b"a"
            assert 0 < (await m.fs.getattr(inode)).ttl_s <= 1
            for path in ("unknown", "d/unknown"):
                with pytest.raises(StoreUnavailable):
                    await m.inode(path)
        assert m.namespace.belief.stale_served
        m.driver.flaky(0, 1)
        m.driver.place("a", b"after the outage")
        with trio.fail_after(60):
            while (await m.inode("a")) == inode:
                m.clock.advance(61)
                await trio.sleep(0.01)
        assert await m.read_all("a") == b"after the outage"


async def test_refused_credentials_are_neither_absence_nor_stale_service(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a")) as m:
        await m.inode("a")
        m.clock.advance(61)
        m.driver.fail_next(10, lambda: AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await m.inode("a")


@pytest.mark.parametrize("ttl", [0.0, 1e9])
async def test_extreme_ttls(tmp_path: Path, ttl: float) -> None:
    async with mounted(tmp_path, store_of("a"), metadata_ttl_s=ttl, negative_ttl_s=0.0) as m:
        old = await m.inode("a")
        m.driver.place("a", b"changed")
        m.clock.advance(1)
        assert ((await m.inode("a")) == old) == (ttl > 0)
        with pytest.raises(NoSuchName):
            await m.inode("b")
        m.driver.place("b", b"")
        assert (await m.inode("b")) > 0


async def test_a_clock_set_back_makes_everything_be_asked_again(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("a", "gone")) as m:
        old = await m.inode("a")
        m.driver.place("a", b"changed")
        m.clock.advance(-100_000)
        assert await m.inode("a") != old


async def test_a_listing_after_a_clock_was_set_back_shows_what_is(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/gone", "d/same")) as m:
        before = await m.entries("d")
        m.driver.place("d/a", b"changed")
        m.driver.remove("d/gone")
        m.clock.advance(-100_000)
        after = await m.entries("d")
        assert set(after) == {b"a", b"same"}
        assert after[b"a"] != before[b"a"]
        assert after[b"same"] == before[b"same"]
        assert await m.inode("d/same") == before[b"same"]
        asked = requests(m)
        assert await m.inode("d/same") == before[b"same"]
        assert requests(m) == asked


async def test_refresh_asks_now(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/gone", "e")) as m:
        old = (await m.entries("d"))[b"a"]
        with pytest.raises(NoSuchName):
            await m.inode("d/new")
        m.driver.place("d/a", b"changed")
        m.driver.place("d/new", b"")
        m.driver.remove("d/gone")
        m.clock.advance(0.001)
        await m.fs.refresh("/d")
        entries = await m.entries("d")
        assert set(entries) == {b"a", b"new"}
        assert entries[b"a"] != old
        assert await m.inode("d/new")
        before = await m.inode("e")
        m.driver.place("e", b"changed")
        await m.fs.refresh("e")
        assert await m.inode("e") != before
        with pytest.raises(NoSuchName):
            await m.fs.refresh("none")
        await m.fs.refresh("/")


async def test_a_listing_that_was_on_its_way_does_not_undo_a_refresh(tmp_path: Path) -> None:
    driver = LateListing()
    driver.place("d/a", b"a")
    async with mounted(tmp_path, driver) as m:
        directory = await m.inode("d")
        driver.wait_for("d/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.entries, "d")
            await until(lambda: driver.under_way)
            driver.place("d/new", b"new")
            m.clock.advance(0.001)
            nursery.start_soon(m.fs.refresh, "d")
            await until(lambda: m.lister.is_listing(directory))
            driver.give()
        assert await m.inode("d/new")


async def test_an_index_that_fails_does_not_end_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: list
) -> None:
    expected_logs.append("index")
    async with mounted(tmp_path, store_of("d/a", "d/b", "d/c", "d/d"), flusher=False) as m:
        directory = await m.inode("d")

        def refuse(*_args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(m.index, "_commit", refuse)
        for name in "abcd":  # the listing that follows fails in the background
            await m.inode(f"d/{name}")
        await wait_all_tasks_blocked()
        await until(lambda: not m.lister.is_listing(directory))
        monkeypatch.undo()
        assert len(await m.entries("d")) == 4


async def test_refresh_waits_until_the_kernel_has_forgotten(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/gone", "gone")) as m:
        await m.entries("d")
        m.driver.place("d/a", b"changed")
        m.driver.remove("gone")
        m.clock.advance(0.001)
        await m.fs.refresh("d")
        assert m.kernel.settled == len(m.kernel.invalidated) == 2
        with pytest.raises(NoSuchName):
            await m.fs.refresh("gone")
        assert m.kernel.settled == len(m.kernel.invalidated) == 3
        m.kernel.keeps_up = False
        with pytest.raises(KernelBusy):
            await m.fs.refresh("d")
        with pytest.raises(NoSuchName):
            await m.fs.refresh("gone")


async def test_the_kernel_is_told_of_very_many_changes_without_a_long_queue(tmp_path: Path) -> None:
    names = [f"{number:05}" for number in range(24_000)]
    async with mounted(tmp_path, store_of(*names, "same")) as m:
        await m.entries()
        for name in names[:12_000]:
            m.driver.place(name, b"changed")
        for name in names[12_000:]:
            m.driver.remove(name)
        m.clock.advance(61)
        async with trio.open_nursery() as nursery:
            for _ in range(3):  # who share a listing
                nursery.start_soon(m.entries)
        assert sorted(m.kernel.invalidated) == [(ROOT_INODE, name.encode()) for name in names]
        assert m.kernel.most_unsettled <= 20_000


async def test_a_kernel_that_does_not_keep_up_does_not_hold_a_listing(tmp_path: Path) -> None:
    names = [f"{number:05}" for number in range(12_000)]
    async with mounted(tmp_path, store_of(*names)) as m:
        await m.entries()
        for name in names:
            m.driver.remove(name)
        m.clock.advance(61)
        m.kernel.keeps_up = False
        assert await m.entries() == {}
        assert len(m.kernel.invalidated) == 5_000


async def test_a_full_index_serves_old_listings_and_refuses_new_ones_without_blaming_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path, store_of("d/a", "d/b", "e/c"), flusher=False) as m:
        known = await m.entries("d")
        fresh = await m.inode("e")
        await m.index.flush()

        def refuse(*_args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(m.index, "_commit", refuse)
        m.driver.place("d/new", b"x")
        m.clock.advance(61)
        assert await m.entries("d") == known
        assert m.namespace.belief.stale_served == 1
        with pytest.raises(LuxError, match=r"directory 'e/'.*cannot be recorded.*No space left") as failure:
            await m.fs.directories.open(fresh)
        assert failure.value.errno == errno.EIO
        assert await m.inode("d/new"), "names looked up are kept in memory"
        monkeypatch.undo()
        assert set(await m.entries("d")) == {b"a", b"b", b"new"}
        assert set(await m.entries("e")) == {b"c"}


async def test_an_index_that_takes_no_more_changes_keeps_serving_known_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path, store_of("a", "gone"), flusher=False) as m:
        entries = await m.entries()
        known, gone = entries[b"a"], entries[b"gone"]
        m.driver.place("b", b"b")

        def refuse(*_args: object) -> None:
            raise OSError(errno.ENOSPC, "index takes no changes")

        monkeypatch.setattr(m.index, "apply", refuse)
        m.driver.remove("gone")
        m.clock.advance(61)
        assert await m.inode("a") == known
        assert await m.inode("gone") == gone
        with pytest.raises(LuxError, match="b'b' was looked up, but cannot be recorded") as failure:
            await m.inode("b")
        assert failure.value.errno == errno.EIO
        monkeypatch.undo()
        assert await m.inode("b")
        m.clock.advance(61)
        with pytest.raises(NoSuchName):
            await m.inode("gone")


async def test_looking_into_a_directory_that_is_no_more_does_not_end_the_mount(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of("d/a", "x")) as m:
        inode = await m.inode("d")
        await m.inode("d/a")
        m.driver.remove("d/a")
        m.clock.advance(61)
        await m.entries()
        m.namespace.places.forget_prefixes()
        for name in (b"a", b"b", b"c"):
            with pytest.raises((Stale, NoSuchName)):
                await m.fs.lookup(inode, name)
        await wait_all_tasks_blocked(0.01)
        assert await m.inode("x")


async def test_names_survive_a_restart_with_their_inodes(tmp_path: Path) -> None:
    driver = store_of("d/a", "d/b", "e")
    async with mounted(tmp_path, driver) as m:
        before = (await m.entries(), await m.entries("d"))
    driver.counts.clear()
    async with mounted(tmp_path, driver) as m:
        assert (await m.entries(), await m.entries("d")) == before
        assert not driver.counts
