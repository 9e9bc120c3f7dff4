"""Epochs whose order is told, in virtual time (`tests.simulation.epochs`): what the policy gives, on any machine.

The goals are those of `python -m tests.bench.epochs`: told at 20 ms a request, with a cache for half of the files, 5 times
the rate of not told and 0.8 of that with everything local; cold 0.7 of the rate of a load.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import trio

from tests.simulation import epochs as simulated
from tests.simulation.epochs import MOST_REQUESTS, FarStore, Job, run
from tests.support.harness import Mount

FILES = 1000
HALF, ALL = FILES // 2, 2 * FILES


class Epoch(NamedTuple):
    rate: float
    late: int
    gets: int
    most_gets: int
    """Of one file."""


def epoch(cached_files: int, *, told: bool) -> Epoch:
    """Run an epoch of two workers, the cache full. Fails if a file goes between its fetch and its read."""

    async def work(m: Mount, store: FarStore) -> Epoch:
        await m.loads.start([""]).ended.wait()
        store.files.clear()
        job = Job(m, 2)
        if told:
            watch_evictions(m, store, job)
        await job.find()
        rate = await job.epoch(1, told=told)
        print(f"told {told}: {rate:.0f}/s, {job.late} late, {store.files.total()} requests")
        return Epoch(rate, job.late, store.files.total(), max(store.files.values(), default=0))

    return run(FILES, cached_files, work)


def watch_evictions(m: Mount, store: FarStore, job: Job) -> None:
    """Fail if a file goes that was fetched in this epoch and not read yet."""
    evict = m.space.evict

    async def watched(oids: list[bytes]) -> object:
        for oid in oids:
            record = m.cache.contents.record_of(oid)
            assert record is not None
            assert record.key in job.read or not store.files[record.key], f"{record.key} goes before it is read"
        return await evict(oids)

    m.space.evict = watched  # type: ignore[method-assign, assignment]


def test_with_the_order_told_readers_hardly_wait() -> None:
    not_told, told = (epoch(HALF, told=told) for told in (False, True))
    local = epoch(ALL, told=False)
    assert (local.late, local.gets) == (0, 0)
    assert not_told.late > FILES * 0.45, "half of the files are not in the cache"
    assert told.rate > 6.5 * not_told.rate
    assert told.rate > 0.8 * local.rate
    assert told.late < FILES // 40
    assert told.most_gets == 1


def test_far_away_more_requests_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ms a request: a window that is fetched in a few large turns would come too late."""
    monkeypatch.setattr(simulated, "LATENCY_S", 0.1)
    told = epoch(HALF, told=True)
    assert told.rate > 12 * 2 / (0.5 * 0.1), "of two workers each of whom waits for every second file"
    assert told.most_gets == 1


def test_a_cold_epoch_is_about_as_fast_as_a_load() -> None:
    async def load(m: Mount, _: FarStore) -> float:
        began_s = trio.current_time()
        job = m.loads.start([""])
        await job.ended.wait()
        assert job.progress().loaded_files == 2 * FILES
        return 2 * FILES / (trio.current_time() - began_s)

    async def read(m: Mount, store: FarStore) -> float:
        job = Job(m, 8, step_s=0.0)
        await job.find()
        rate = await job.epoch(1, told=True)
        assert set(store.files.values()) == {1}
        return rate

    loaded = run(2 * FILES, 4 * FILES, load)
    assert loaded > 0.7 * MOST_REQUESTS / simulated.LATENCY_S
    assert run(2 * FILES, 4 * FILES, read) > 0.85 * loaded
