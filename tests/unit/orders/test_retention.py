"""Pins and time limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from luxfuse.core.rules import PathPolicy, PathRule
from luxfuse.types import WriteMode
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes

DAY_S = 86400.0


def store(count: int = 12, size: int = pages(1)) -> FakeStore:
    driver = FakeStore()
    for number in range(count):
        driver.place(f"d/{number:02}", random_bytes(size, number))
    driver.place("other", random_bytes(100, 99))
    return driver


async def cached(m: Mount) -> set[str]:
    return {record.key async for _, record in m.inventory.scan()}


async def read(m: Mount, *numbers: int) -> None:
    for number in numbers:
        assert await m.read_all(f"d/{number:02}") == m.driver.objects[f"d/{number:02}"][0]


@pytest.mark.parametrize("policy", ["tinylfu", "lru", "lrfu"])
async def test_what_is_pinned_stays_and_survives_a_restart(tmp_path: Path, policy: str) -> None:
    driver = store()
    small = {"capacity_bytes": pages(6), "eviction_policy": policy, "passthrough": False, "readahead_bytes": 0}
    async with mounted(tmp_path, driver, **small) as m:
        await read(m, 0, 1)
        answer = await m.retention.pin(["d/00", "d/01"])
        assert (answer.failures, answer.notes) == ([], [])
        assert m.space.standings.pinned_bytes == pages(2)
        await read(m, *range(2, 12))
        assert {"d/00", "d/01"} <= await cached(m)
        assert m.space.evictions
    async with mounted(tmp_path, driver, **small) as m:
        await read(m, *range(2, 12), *range(2, 12))
        assert {"d/00", "d/01"} <= await cached(m)
        await m.retention.unpin(["d/00"])
        assert m.space.standings.pinned_bytes == pages(1)
        for _ in range(4):
            await read(m, *range(2, 12))
        assert "d/01" in await cached(m)
        assert m.objects.used_bytes == m.space.ledger.used_bytes <= pages(6)


async def test_what_comes_into_a_pinned_directory_is_pinned(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(), capacity_bytes=pages(6), passthrough=False) as m:
        assert (await m.retention.pin(["d"])).notes[0].startswith("what is pinned is more than the cache can hold")
        await read(m, *range(12))
        assert 4 <= len(await cached(m)) <= 6
        assert m.space.evictions == 0, "what does not fit is read without being kept"
        first = await cached(m)
        await read(m, *range(12))
        assert await cached(m) == first


async def test_wrong_orders_are_told(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        assert (await m.retention.pin(["nowhere", "other"])).failures == ["nowhere: there is no such file or directory"]
        assert (await m.retention.unpin(["d"])).failures == ["d: is not pinned"]
        await m.retention.pin(["d"])
        (line,) = (await m.retention.unpin(["d/00"])).failures
        assert line == "d/00: is not pinned itself, but by a pin of d; unpin that"
        assert (await m.retention.unpin([""])).failures == [], "everything below"
        assert m.retention.marks.pins == {"other"} or not m.retention.marks.pins
        assert (await m.retention.limit(["d"], None, "free")).failures == ["d: has no time limit"]
        assert (await m.retention.limit(["gone"], 5.0, "free")).failures == ["gone: there is no such file or directory"]


async def test_what_is_cached_goes_after_its_time(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        await read(m, 0, 1)
        await m.read_all("other")
        await m.retention.limit(["d"], DAY_S, "free")
        await m.retention.pin(["d/01"])
        later(m, DAY_S - 60)
        await m.retention.expire()
        assert await cached(m) == {"d/00", "d/01", "other"}
        later(m, DAY_S + 1)
        await m.retention.expire()
        assert await cached(m) == {"d/01", "other"}, "what is pinned stays"
        assert m.retention.expired == 1
        assert await m.read_all("d/00") == m.driver.objects["d/00"][0]


def later(m: Mount, seconds: float) -> None:
    """Set the clock to so long after what was cached just now: when that was is real time."""
    m.clock.now_s = time.time() + seconds


async def test_a_rule_limits_the_time_and_a_file_that_is_open_stays(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        await read(m, 0, 1)
        handle = await m.open("d/01")
        m.fs._refusals._policies.replace([PathRule("d/**", ttl_s=60.0)], PathPolicy(WriteMode.CACHE_THROUGH, "cache"))
        later(m, 61)
        await m.retention.expire()
        assert await cached(m) == {"d/01"}
        await m.kernel.release(m.fs, handle)
        await m.retention.expire()
        assert await cached(m) == set()


async def test_files_are_removed_after_their_time(tmp_path: Path) -> None:
    driver = store(4)
    async with mounted(tmp_path, driver) as m:
        await m.entries("d")
        await m.retention.limit(["d"], DAY_S, "delete")
        await m.retention.limit(["d/01"], 1000 * DAY_S, "delete")
        await m.retention.pin(["d/02"])
        changed_s = driver.objects["d/00"][2] / 1e9
        before = set(driver.objects)
        m.clock.now_s = changed_s + DAY_S - 60
        await m.retention.expire()
        assert m.retention.expired == 0
        m.clock.now_s = changed_s + DAY_S + 60
        await m.retention.expire()
        await m.drain()
        assert set(driver.objects) - {"d/"} == before - {"d/00", "d/03"}
        assert set(await m.entries("d")) == {b"01", b"02"}


async def test_a_rule_can_pin_place_and_forbid(tmp_path: Path) -> None:
    rules = [PathRule("d/0?", pin=True), PathRule("d/1*", read_mode="no-cache"), PathRule("other", read_only=True)]
    async with mounted(tmp_path, store()) as m:
        m.fs._refusals._policies.replace(rules, PathPolicy(WriteMode.CACHE_THROUGH, "cache"))
        await read(m, 1, 10)
        assert await cached(m) == {"d/01"}
        assert m.space.standings.pinned_bytes == pages(1)
        with pytest.raises(Exception, match="read-only by a rule") as caught:
            await m.fs.unlink(1, b"other")
        assert caught.value.errno == 30  # type: ignore[attr-defined]
        await m.fs.unlink(await m.inode("d"), b"02")
