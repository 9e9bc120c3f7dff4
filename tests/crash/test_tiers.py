"""The daemon is killed at every named step of a move between cache directories, and of an eviction in parts.

Whatever the last commit of the index was: the next life has one good copy of each object, or fetches it again, counts
what is on disk, and leaves nothing that belongs to nobody.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from luxfuse.cache import mover
from luxfuse.cache.sweep import sweep
from luxfuse.core.cache_directory import CacheSetting
from tests.crash.lives import Kill, Killer
from tests.support.harness import Mount, Options, mounted, pages
from tests.support.tiers import acquire, consistent, space, store, tier

PARTIAL, WHOLE = "k00", "k01"
STEPS = {"relocate.begun", "relocate.copied", "relocate.arrived", "relocate.recorded", "relocate.removed"}


@pytest.fixture(autouse=True)
def _in_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BYTES_PER_S", 1 << 60)
    monkeypatch.setattr(mover, "SLICE_PAGES", 1)
    monkeypatch.setattr("luxfuse.cache.sweep.PAUSE_S", 0)


def options() -> Options:
    mem = CacheSetting("mem", pages(4), "mem", high_watermark=1.0, low_watermark=0.5)
    hdd = CacheSetting("hdd", pages(8), "hdd", high_watermark=1.0, low_watermark=1.0)
    # Nothing is committed but by the test.
    return Options(capacity_bytes=pages(8), more_caches=(mem, hdd), whole_file_bytes=pages(4), flusher=False)


class MoveKiller(Killer):
    """A killer that may commit the index first, or else leaves it as it was before the move."""

    def __init__(self, target: Path, *, committed: bool) -> None:
        super().__init__(target)
        self.committed = committed

    def __call__(self, step: str) -> None:
        if self.mount is not None and self.committed:
            index = self.mount.index
            index._commit({**index._committing.records, **index._pending.records}, lambda _txn: None)
        super().__call__(step)


async def killed(path: Path, *, committed: bool, open_file: bool) -> list[Kill]:
    """Move objects to and fro, and return what kills at each step left."""
    driver = store(2, pages(3))
    killer = MoveKiller(path / "kills", committed=committed)
    async with mounted(path / "first", driver, options()) as m:
        obj = m.cache.acquire(PARTIAL, driver.objects[PARTIAL][1], pages(3))
        for page in (0, 2):
            await m.cache.read(obj, pages(page), 1)
        m.cache.release(obj)
        await m.read_all(WHOLE)
        assert (tier(m, PARTIAL), tier(m, WHOLE)) == ("mem", "ssd")
        await m.index.flush()
        with killer.watching(m, lambda: ([], False)):
            assert await m.mover.move(acquire(m, PARTIAL).oid, space(m, "hdd"))
            handle = await m.open(WHOLE)
            if not open_file:
                await m.kernel.release(m.fs, handle)
            assert await m.mover.move(acquire(m, WHOLE).oid, space(m, "hdd"))
            if open_file:
                assert tier(m, WHOLE) == "ssd"
                await m.kernel.release(m.fs, handle)
                await m.mover.round()
            assert tier(m, WHOLE) == "hdd"
            assert await m.mover.move(acquire(m, WHOLE).oid, space(m, "mem")), "where it would be fetched to again"
        consistent(m)
    assert set(killer.times) == STEPS
    return killer.kills


def leftovers(m: Mount) -> list[Path]:
    return [path for s in m.hierarchy for path in (s.directory.path / "moving").iterdir()]


async def check(kill: Kill, *, sweep_first: bool) -> int:
    """Live on after a kill; returns how often the store was asked for something that had been cached whole."""
    async with mounted(kill.path, kill.driver, options()) as m:
        assert not m.beginning.clean
        assert not leftovers(m), kill.step
        if sweep_first:
            for s in m.hierarchy:
                await sweep(m.cache.contents, s)
                assert all(m.objects.directory_of(oid) == s.number for oid in s.directory.stored()), kill.step
        for key in kill.driver.objects:  # a part first: what else lies under that name must not count as cached
            data, version, _, _ = kill.driver.objects[key]
            obj = m.cache.acquire(key, version, len(data))
            assert bytes(await m.cache.read(obj, pages(1) - 5, 5)) == data[pages(1) - 5 : pages(1)], kill.step
            m.cache.release(obj)
        for s in m.hierarchy:
            await sweep(m.cache.contents, s)
        consistent(m)
        before = kill.driver.counts["get"]
        assert await m.read_all(WHOLE) == kill.driver.objects[WHOLE][0], kill.step
        again = kill.driver.counts["get"] - before
        for key in kill.driver.objects:
            assert await m.read_all(key) == kill.driver.objects[key][0], kill.step
        consistent(m)
    return again


@pytest.mark.parametrize("open_file", [False, True])
@pytest.mark.parametrize("sweep_first", [True, False])
async def test_killed_at_each_step_of_a_move_and_all_is_committed(
    tmp_path: Path, sweep_first: bool, open_file: bool
) -> None:
    for kill in await killed(tmp_path, committed=True, open_file=open_file):
        assert not await check(kill, sweep_first=sweep_first), f"{kill.step}: a whole object was lost"


@pytest.mark.expected_logs("is gone; fetching it again")
@pytest.mark.parametrize("sweep_first", [True, False])
async def test_killed_at_each_step_of_a_move_and_the_last_commit_is_lost(tmp_path: Path, sweep_first: bool) -> None:
    lost = set()
    for kill in await killed(tmp_path, committed=False, open_file=False):
        if await check(kill, sweep_first=sweep_first):
            lost.add(kill.step)
    assert lost, "no kill came after the old file had gone: nothing was tested"
    assert all(step.partition("#")[0] == "relocate.removed" or int(step.partition("#")[2]) > 1 for step in lost)


@pytest.mark.expected_logs("is gone; fetching it again")
async def test_killed_again_while_recovering_from_a_kill(tmp_path: Path) -> None:
    """The same move is killed at its end in one life after the other; what is left does not add up."""
    (kill,) = [k for k in await killed(tmp_path, committed=False, open_file=False) if k.step == "relocate.recorded#1"]
    for life in range(3):
        killer = MoveKiller(tmp_path / f"again{life}", committed=bool(life % 2))
        async with mounted(kill.path, kill.driver, options(), clean_end=False) as m:
            with killer.watching(m, lambda: ([], False)):
                target = next(s for s in m.hierarchy if s.tier != tier(m, PARTIAL))
                assert await m.mover.move(acquire(m, PARTIAL).oid, target)
        kill = killer.kills[-2]
        assert kill.step.startswith("relocate.recorded")
    with trio.fail_after(120):
        await check(kill, sweep_first=True)


@pytest.mark.parametrize("committed", [True, False])
async def test_killed_while_pages_are_taken_out_of_a_file(tmp_path: Path, committed: bool) -> None:
    """No page is recorded that is a hole: that would be found damaged, and logged."""
    driver = store(1, pages(4))
    killer = MoveKiller(tmp_path / "kills", committed=committed)
    async with mounted(tmp_path / "first", driver, options()) as m:
        await m.read_all("k00")
        await m.index.flush()
        with killer.watching(m, lambda: ([], False)):
            for _ in range(2):
                assert await m.space.trimmer.trim(acquire(m, "k00").oid, space(m, "mem"), 200_000) == pages(1)
                assert await m.read_all("k00") == driver.objects["k00"][0]
        assert set(killer.times) == {"trim.committed", "trim.punched"}
    for kill in killer.kills:
        async with mounted(kill.path, kill.driver, options()) as m:
            assert await m.read_all("k00") == kill.driver.objects["k00"][0], kill.step
            consistent(m)
        assert kill.driver.counts["get"] <= 1, "the other pages are there"
