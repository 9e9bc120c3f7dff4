"""Cache directories that are added to a running mount, and drained from one."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import trio

from luxfuse.cache import mover
from luxfuse.cache.placing import Placing
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import ConfigError, MountError
from luxfuse.tiers.directory import CacheDirectory
from tests.support.harness import Mount, Options, mounted, pages, until
from tests.support.tiers import acquire, consistent, space, store, tier


@pytest.fixture(autouse=True)
def _at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BYTES_PER_S", 1 << 60)
    monkeypatch.setattr("luxfuse.cache.directories.POLL_S", 0.01)


def setting(path: Path | str, capacity: float, name: str = "mem") -> CacheSetting:
    return CacheSetting(str(path), pages(capacity), name, high_watermark=1.0, low_watermark=1.0)  # type: ignore[arg-type]


def options(*more: CacheSetting, **changes: object) -> Options:
    given = {"capacity_bytes": pages(8), "more_caches": more, "whole_file_bytes": pages(4), **changes}
    return Options(**given)  # type: ignore[arg-type]


def home(tmp_path: Path) -> CacheSetting:
    return setting(tmp_path / "cache", 8, "ssd")


def is_free(path: Path) -> bool:
    """Whether nobody has, or has kept, the lock of a cache directory."""
    try:
        CacheDirectory(path, "source", "source").close()
    except MountError:
        return False
    return True


async def read_all(m: Mount, count: int) -> None:
    for number in range(count):
        assert await m.read_all(f"k{number:02}") == m.driver.objects[f"k{number:02}"][0]


async def test_what_is_added_is_used_at_once(tmp_path: Path) -> None:
    driver = store(6)
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 2)
        await m.directories.add(setting(tmp_path / "mem", 3))
        await read_all(m, 6)
        assert Counter(tier(m, f"k{n:02}") for n in range(6)) == {"ssd": 3, "mem": 3}
        assert [s.tier for s in m.hierarchy] == ["mem", "ssd"]
        consistent(m)
    async with mounted(tmp_path, driver, options(setting("mem", 3))) as m:
        await read_all(m, 6)
        assert driver.counts["get"] == 6


async def test_what_is_known_of_a_directory_is_warm_when_it_is_added(tmp_path: Path) -> None:
    driver = store(6)
    mem = setting("mem", 4)
    async with mounted(tmp_path, driver, options(mem)) as m:
        await read_all(m, 6)
    async with mounted(tmp_path, driver, options()) as m:
        live = m.cache.acquire("k00", driver.objects["k00"][1], pages(1))
        acquire(m, "k01")
        assert not live.whole
        added = await m.directories.add(setting(tmp_path / "mem", 4))
        assert live.whole
        assert added.ledger.used_bytes == pages(4)
        await read_all(m, 6)
        m.cache.release(live)
        assert driver.counts["get"] == 6
        consistent(m)


async def test_what_cannot_be_added_changes_nothing(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(2), options(setting("mem", 2))) as m:
        (tmp_path / "file").write_text("no directory")
        other = CacheDirectory(tmp_path / "staged", "source")
        other.close()
        (other.path / "staging" / f"{7:016x}").write_text("changed")
        for path, reason in (("file", "give a directory"), ("staged", "1 changed files"), ("mem", "in use already")):
            with pytest.raises(ConfigError, match=reason):
                await m.directories.add(setting(tmp_path / path, 2))
        wanted = [home(tmp_path), setting(tmp_path / "new", 2), setting(tmp_path / "file", 2)]
        with pytest.raises(ConfigError, match="give a directory"):
            await m.directories.apply(wanted)
        assert len(list(m.hierarchy)) == 2
        assert not space(m, "mem").draining
        await read_all(m, 2)
        for path in ("new", "staged"):
            await until(lambda path=path: is_free(tmp_path / path))  # type: ignore[misc]


async def test_what_fails_afterwards_takes_back_what_was_added(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(2), options(setting("mem", 2))) as m:
        counts = []

        async def fail_later() -> None:
            async with m.directories.changed_to([home(tmp_path), setting(tmp_path / "new", 2)]):
                counts.append(len(list(m.hierarchy)))
                raise ConfigError("later")

        with pytest.raises(ConfigError, match="later"):
            await fail_later()
        assert counts == [3]
        await until(lambda: len(list(m.hierarchy)) == 2)
        assert not space(m, "mem").draining
        await until(lambda: is_free(tmp_path / "new"))
        await read_all(m, 2)


async def test_the_home_directory_stays(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(1), options(setting("mem", 2))) as m:
        with pytest.raises(ConfigError, match="cannot be taken away from a mount in use; unmount"):
            await m.directories.drain(m.hierarchy.home)
        with pytest.raises(ConfigError, match="cannot be taken away"):
            await m.directories.apply([setting(tmp_path / "mem", 2)])
        assert not m.hierarchy.home.draining


async def test_draining_moves_what_has_room_and_drops_the_rest(tmp_path: Path) -> None:
    driver = store(10)
    async with mounted(tmp_path, driver, options(setting("mem", 6), capacity_bytes=pages(7))) as m:
        await read_all(m, 10)
        assert m.hierarchy.home.ledger.used_bytes == pages(4)
        mem = space(m, "mem")
        with trio.fail_after(60):
            await m.directories.drain(mem)
        assert [s.tier for s in m.hierarchy] == ["ssd"]
        assert {tier(m, f"k{n:02}") for n in range(10)} == {"ssd", None}
        assert m.hierarchy.home.ledger.used_bytes == pages(7)
        assert not list(mem.directory.stored())
        consistent(m)
        again = CacheDirectory(tmp_path / "mem", "source")
        assert again.slot == "source", "its lock was kept"
        again.close()
        await read_all(m, 10)
        consistent(m)
    async with mounted(tmp_path, driver, options(setting("mem", 6))) as m:
        consistent(m)


async def test_draining_waits_for_open_and_staged_files(tmp_path: Path) -> None:
    driver = store(4)
    async with mounted(tmp_path, driver, options(setting("mem", 4))) as m:
        await read_all(m, 4)
        mem = space(m, "mem")
        reader = await m.open("k00")
        also = await m.open("k01")
        writer = await m.kernel.open(m.fs, await m.inode("k01"), os.O_RDWR)
        assert m.writing.room.tier_of(m.dirty.get(await m.inode("k01"))) == "mem"  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.directories.drain, mem)
            await until(lambda: tier(m, "k02") == tier(m, "k03") == "ssd")
            assert mem.draining
            later = await m.kernel.open(m.fs, await m.inode("k02"), os.O_RDWR)
            assert m.writing.room.tier_of(m.dirty.get(await m.inode("k02"))) == "ssd"  # type: ignore[arg-type]
            await m.kernel.close(m.fs, later)
            await m.kernel.write(m.fs, writer, 0, b"new")
            await m.kernel.close(m.fs, writer)
            await m.kernel.release(m.fs, also)
            await m.drain()
            assert await m.kernel.read_all(m.fs, reader) == driver.objects["k00"][0]
            assert mem in list(m.hierarchy)
            await m.kernel.release(m.fs, reader)
            with trio.fail_after(60):
                while not mem.gone:
                    await trio.sleep(0.01)
        assert driver.objects["k01"][0][:3] == b"new"
        await m.drain()
        gets = driver.counts["get"]
        await read_all(m, 4)
        assert driver.counts["get"] == gets, "everything came along"
        consistent(m)


async def test_what_is_fetched_while_a_directory_is_drained_goes_elsewhere(tmp_path: Path) -> None:
    driver = store(8, pages(2))
    async with mounted(tmp_path, driver, options(setting("mem", 4), capacity_bytes=pages(20))) as m:
        await read_all(m, 2)
        mem = space(m, "mem")
        handle = await m.open("k00")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.directories.drain, mem)
            await until(lambda: mem.draining)
            await read_all(m, 8)
            assert {tier(m, f"k{n:02}") for n in range(2, 8)} == {"ssd"}
            await m.kernel.release(m.fs, handle)
        assert {tier(m, f"k{n:02}") for n in range(8)} == {"ssd"}
        consistent(m)


@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_sick_directory_is_given_up_with_what_it_holds(tmp_path: Path) -> None:
    driver = store(4)
    async with mounted(tmp_path, driver, options(setting("mem", 2))) as m:
        await read_all(m, 4)
        mem = space(m, "mem")
        handle = await m.open("k00")
        shutil.rmtree(mem.directory.path)
        mem.fail(OSError(5, "made up"))
        with trio.fail_after(60):
            await m.directories.drain(mem)
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["k00"][0]
        await m.kernel.release(m.fs, handle)
        await read_all(m, 4)
        assert {tier(m, f"k{n:02}") for n in range(4)} == {"ssd"}
        consistent(m)


async def test_a_new_list_of_directories_is_applied(tmp_path: Path) -> None:
    driver = store(6)
    async with mounted(tmp_path, driver, options(setting("mem", 2))) as m:
        await read_all(m, 6)
        handle = await m.open("k00")
        await m.directories.apply([home(tmp_path), setting(tmp_path / "hdd", 8, "hdd")])
        assert [s.tier for s in m.hierarchy] == ["mem", "ssd", "hdd"]
        mem = space(m, "mem")
        await until(lambda: mem.draining)
        await m.directories.apply([home(tmp_path), setting(tmp_path / "hdd", 8, "hdd"), setting(tmp_path / "mem", 2)])
        await until(lambda: not mem.draining)
        assert not mem.shut, "it was taken back"
        await m.directories.apply([home(tmp_path), setting(tmp_path / "hdd", 8, "hdd")])
        await m.kernel.release(m.fs, handle)
        await until(lambda: mem.gone)
        assert [s.tier for s in m.hierarchy] == ["ssd", "hdd"]
        await m.mover.round()
        await read_all(m, 6)
        assert driver.counts["get"] == 6
        consistent(m)


async def test_draining_puts_nothing_above_the_tier_that_it_may_have(tmp_path: Path) -> None:
    driver = store(2)
    more = setting("mem", 4), setting("hdd", 4, "hdd")
    async with mounted(tmp_path, driver, options(*more, capacity_bytes=pages(1))) as m:
        m.hierarchy.shared.rules.placing = lambda key: Placing(highest="hdd" if key == "k00" else None)
        await read_all(m, 2)
        assert (tier(m, "k00"), tier(m, "k01")) == ("hdd", "mem")
        assert await m.mover.move(acquire(m, "k01").oid, space(m, "hdd"))
        await m.directories.drain(space(m, "hdd"))
        assert (tier(m, "k00"), tier(m, "k01")) == (None, "ssd")
        consistent(m)
