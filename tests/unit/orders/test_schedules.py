"""Schedules on a mount without a kernel: what is fetched ahead, what stays in the cache, and how they end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from luxfuse.index.entries import Entry
from luxfuse.orders import schedule as following
from luxfuse.orders import schedules
from luxfuse.orders.schedules import ScheduleRefused
from luxfuse.types import PAGE_BYTES
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, MIB, Mount, mounted, random_bytes, until

KIB = 1 << 10


def tree(count: int = 60, size: int = 64 * KIB) -> FakeStore:
    store = FakeStore()
    for n in range(count):
        store.place(f"d{n % 3}/f{n:03}", random_bytes(size, n))
    return store


def cached(mount: Mount, *keys: str) -> list[bool]:
    found = []
    for key in keys:
        data, version = mount.driver.objects[key][:2]
        found.append(mount.cache.cached_bytes(key, version, len(data))[0] == len(data))
    return found


async def test_files_are_there_before_they_are_opened_and_their_opens_cost_nothing(tmp_path: Path) -> None:
    store = tree()
    names = list(store.objects)
    random.Random(1).shuffle(names)
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, MIB)
        assert job.tell(names, None) > 0
        await until(lambda: job.files == 16)  # 1 MiB of them
        await trio.testing.wait_all_tasks_blocked()
        assert cached(m, *names[:16]) == [True] * 16
        assert m.kernel.registered == 16
        heads = store.counts["head"]
        for number, name in enumerate(names, 1):
            await until(lambda: cached(m, name) == [True])  # noqa: B023 (it is called here)
            gets = store.counts["get"]
            assert await m.read_all(name) == store.objects[name][0]
            assert store.counts["get"] - gets <= 16, number
        assert (store.counts["get"], store.counts["head"]) == (60, heads), "each was fetched once, ahead"
        m.schedules.stop()
        await until(lambda: not m.schedules.running)
    assert m.schedules.files == 60
    assert m.schedules.bytes == 60 * 64 * KIB


async def test_lanes_answer_the_look_ups_of_names_that_were_told(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store, attributes="listing") as m:
        for directory in ("d0", "d1", "d2"):  # names that are just being recorded are not offered
            await m.entries(directory)
        await m.index.flush()
        job = m.schedules.begin(1, None)
        job.tell(["d1/f001", "d1/f004", "d2/f002", "d2", "d0/none"], None)
        await until(lambda: job.files == 3)
        assert {name for _, name in m.kernel.offered if name.startswith(b"f")} == {b"f001", b"f004", b"f002"}


async def test_a_name_that_is_gone_at_its_turn_is_neither_brought_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window may be full for long after names were looked up."""
    store = tree()
    async with mounted(tmp_path, store, attributes="listing") as m:
        await m.entries("d1")
        await m.index.flush()
        job = m.schedules.begin(1, None)
        find, peek = job._finder.find, m.namespace.peek

        async def then_gone(taken: Sequence[tuple[int, str]]) -> dict[int, tuple[int, bytes, Entry]]:
            found = await find(taken)
            monkeypatch.setattr(m.namespace, "peek", lambda d, name: None if name == b"f004" else peek(d, name))
            return found

        job._finder.find = then_gone  # type: ignore[method-assign]
        job.tell(["d1/f004", "d1/f001"], None)
        await until(lambda: job.files == 1)
        assert cached(m, "d1/f001", "d1/f004") == [True, False]
        assert {name for _, name in m.kernel.offered if name.startswith(b"f")} == {b"f001"}


async def test_the_first_files_are_not_kept_waiting_by_the_rest(tmp_path: Path) -> None:
    """A reader waits for the first ones: few are looked up together, and many once some are ahead."""
    store = tree(500, KIB)
    batches: list[int] = []
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, None)
        find = job._finder.find

        async def noted(taken: Sequence[tuple[int, str]]) -> dict[int, tuple[int, bytes, Entry]]:
            batches.append(len(taken))
            return await find(taken)

        job._finder.find = noted  # type: ignore[method-assign]
        job.tell(list(store.objects), 0)
        await until(lambda: job.files == 500)
    assert batches[0] == following.FIRST
    assert max(batches[1:]) > 4 * following.FIRST


async def test_opens_may_wait_for_what_is_on_its_way_and_for_nothing_else(tmp_path: Path) -> None:
    """Also where a file cannot be had, or is another one by then."""
    store = tree(20)
    async with mounted(tmp_path, store) as m:
        store.hold("get")
        job = m.schedules.begin(1, None)
        job.tell([*store.objects, "d0"], None)
        await until(lambda: len(m.kernel.expected) == 20)
        store.remove("d0/f000")
        store.place("d1/f001", b"another one")
        store.release()
        await until(lambda: not m.kernel.expected)
        assert m.kernel.registered == 18
        await until(lambda: (job.files, job.failed) == (18, 2))


async def test_what_comes_next_stays_in_a_cache_that_others_fill(tmp_path: Path) -> None:
    store = tree()
    for n in range(120):
        store.place(f"other/{n:03}", random_bytes(64 * KIB, 1000 + n))
    names = [name for name in store.objects if name.startswith("d")]
    async with mounted(tmp_path, store, capacity_bytes=4 * MIB, eviction_policy="lru") as m:
        job = m.schedules.begin(1, None)
        job.tell(names, None)
        await until(lambda: job.files >= 14 and not job._window._flights)  # of a cache of 4 MiB, a quarter
        ahead = [name for name in names if cached(m, name) == [True]]
        assert ahead == names[: len(ahead)]
        for n in range(120):
            await m.read_all(f"other/{n:03}")
        assert m.space.evictions > 50
        assert all(cached(m, *ahead))
        m.schedules.stop()
        await until(lambda: not m.schedules.running)
        for n in range(120):
            await m.read_all(f"other/{n:03}")
        assert not all(cached(m, *ahead)), "nothing is kept for a program that has left"


async def test_a_large_file_is_fetched_as_far_as_the_window_goes(tmp_path: Path) -> None:
    store = FakeStore()
    store.place("a", random_bytes(12 * PAGE_BYTES, 1))
    store.place("b", random_bytes(PAGE_BYTES, 2))
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, 4 * PAGE_BYTES)
        job.tell(["a", "b"], None)
        data, version = store.objects["a"][:2]
        await until(lambda: m.cache.cached_bytes("a", version, len(data))[0] == 4 * PAGE_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        assert cached(m, "b") == [False]
        assert await m.read_all("a") == data
        await until(lambda: cached(m, "b") == [True])
        assert not m.cache.budget.held_bytes


async def test_names_that_lead_nowhere_are_passed_over(tmp_path: Path) -> None:
    store = tree(6)
    store.place("empty", b"")
    names = ["d0/missing", "nowhere/x", "", "d1", "empty", *list(store.objects)[:6]]
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, None)
        job.tell(names, None)
        await until(lambda: job.files == 6)
        assert job.failed == 3
        assert not job.ended.is_set()


@AWAY
async def test_an_outage_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AWAY_S", 0.01)
    store = tree(20)
    names = list(store.objects)
    async with mounted(tmp_path, store) as m:
        await m.entries("d0")
        with m.impatient():
            store.flaky(1.0, 0)
            job = m.schedules.begin(1, None)
            job.tell(names[:10], None)
            await until(lambda: job.failed > 0)
        store.flaky(0.0, 0)
        await until(lambda: m.store.reachable)
        job.tell(names[10:], None)
        await until(lambda: all(cached(m, *names[10:])))


async def test_several_share_the_room_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "AT_ONCE", 2)
    store = tree()
    async with mounted(tmp_path, store, capacity_bytes=4 * MIB) as m:
        jobs = [m.schedules.begin(number, None) for number in (1, 2)]
        with pytest.raises(ScheduleRefused, match="which is the most"):
            m.schedules.begin(3, None)
        for job, part in zip(jobs, (slice(0, 30), slice(30, 60)), strict=True):
            job.tell(list(store.objects)[part], None)
        await until(lambda: all(job.files > 5 for job in jobs))
        assert all(0 < job.schedule.window_bytes <= MIB // 2 for job in jobs)
    async with mounted(tmp_path / "other", store, read_mode="no-cache") as m:
        with pytest.raises(ScheduleRefused, match="no-cache"):
            m.schedules.begin(1, None)


@pytest.mark.parametrize("told", [0, 8])
async def test_one_that_is_silent_for_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int) -> None:
    monkeypatch.setattr(following, "SILENT_S", 0.05)
    store = tree(8, MIB)
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, MIB)
        job.tell(list(store.objects)[:told], None)  # of which one fills the window, and the others wait for their turn
        await until(job.ended.is_set)
        assert m.schedules.get(1) is None


async def test_no_file_is_fetched_twice_for_workers_that_read_one_order_side_by_side(tmp_path: Path) -> None:
    store = tree(240)
    store.delay_s = 0.002
    names = list(store.objects)
    async with mounted(tmp_path, store, capacity_bytes=120 * 64 * KIB) as m:
        for epoch in range(3):
            random.Random(epoch).shuffle(names)
            before, handed = store.reads.copy(), 0
            job = m.schedules.begin(epoch, None)
            job.tell(names, 0)

            def take(job: following.Following = job) -> list[str]:
                nonlocal handed
                batch = names[handed : handed + 4]
                handed += len(batch)
                job.tell([], handed)
                return batch

            async def work() -> None:
                batches = [take(), take()]  # as a DataLoader has them wait with each worker
                while any(batches):
                    for name in batches.pop(0):
                        assert await m.read_all(name) == store.objects[name][0]
                    batches.append(take())

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(work)
            m.schedules.end(job)
            fetched = store.reads - before
            assert max(fetched.values()) == 1, f"in epoch {epoch}; {job.failed} failed"
            assert epoch or fetched.total() == 240
            assert m.space.ledger.used_bytes <= 120 * 64 * KIB
        assert m.space.evictions > 240


async def test_what_readers_were_handed_outlives_the_schedule_for_a_moment(tmp_path: Path) -> None:
    store = tree(80)
    names = list(store.objects)
    async with mounted(tmp_path, store, capacity_bytes=4 * MIB, eviction_policy="lru") as m:
        job = m.schedules.begin(1, None)
        job.tell(names[:20], 0)
        await until(lambda: job.files >= 10)
        job.tell([], 8)
        m.schedules.end(job)
        assert m.schedules._lingering
        await until(job.ended.is_set)
        for name in names[20:]:
            await m.read_all(name)
        assert cached(m, *names[:8]) == [True] * 8
        assert not all(cached(m, *names[8:20])), "what nobody was handed may go"
        m.schedules._lingering.append((0.0, m.schedules._lingering.popleft()[1]))  # its time is over
        await until(lambda: not m.schedules._lingering)
        for name in names[20:]:
            await m.read_all(name)
        assert not all(cached(m, *names[:8]))


async def test_nothing_is_guessed_in_directories_whose_order_was_told(tmp_path: Path) -> None:
    store = tree(90)
    names = [name for name in store.objects if name.startswith("d0/")]  # their own order, which is easily foreseen
    async with mounted(tmp_path, store) as m:
        job = m.schedules.begin(1, 4 * 64 * KIB)
        job.tell(names[:8], 0)
        await until(lambda: job.files >= 4)
        for name in names[:8]:
            assert await m.read_all(name) == store.objects[name][0]
        await trio.testing.wait_all_tasks_blocked()
        assert m.files._ahead.files == 0
        assert store.reads.total() == 8
        m.schedules.end(job)
        await until(job.ended.is_set)
        for name in names[8:16]:
            await m.read_all(name)
        await until(lambda: m.files._ahead.files > 0)
