"""Loading: what is found, fetched, skipped, left out and told."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
import trio.testing

from luxfuse.cache.cached import Flight
from luxfuse.core.names import path_of
from luxfuse.core.rules import PathPolicies, PathPolicy, PathRule
from luxfuse.errors import AccessDenied, StoreError, StoreUnavailable
from luxfuse.orders import load, loads
from luxfuse.orders.jobs import watch
from luxfuse.orders.load_progress import LoadProgress
from luxfuse.orders.loads import LoadRefused
from luxfuse.orders.window import TOGETHER
from luxfuse.types import PAGE_BYTES, Buffer, WriteMode
from luxfuse.understore.base import OnDescribed
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, MIB, Mount, mounted, pages, random_bytes, until

KIB = 1 << 10


class Piecemeal(FakeStore):
    """Each read waits until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[tuple[str, int]] = set()
        self.errors: dict[tuple[str, int], StoreError] = {}
        self._may: set[tuple[str, int]] = set()
        self._all = False
        self._told = threading.Condition()

    def let(self, key: str, start: int) -> None:
        """Let the read of what begins there go on."""
        with self._told:
            self._may.add((key, start))
            self._told.notify_all()

    def let_all(self) -> None:
        """Let all go on, and those to come."""
        with self._told:
            self._all = True
            self._told.notify_all()

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        with self._told:
            self.asked.add((key, start))
            assert self._told.wait_for(lambda: self._all or (key, start) in self._may, 120)
        if error := self.errors.get((key, start)):
            raise error
        return super().read(key, start, end, version, on_described=on_described)


def tree() -> FakeStore:
    store = FakeStore()
    for n in range(20):
        store.place(f"a/img_{n:02}.jpg", random_bytes(10 * KIB + n, n))
    for n in range(3):
        store.place(f"a/deep/er/t{n}.txt", random_bytes(KIB, 100 + n))
    store.place("a/empty", b"")
    store.place("b/big", random_bytes(pages(5.5), 200))
    store.place("b/[odd]*", random_bytes(KIB, 201))
    store.place("link.rclonelink", b"a")
    return store


async def run(mount: Mount, *paths: str) -> LoadProgress:
    job = mount.loads.start(paths)
    with trio.fail_after(60):
        async for step in watch(job):
            last = step
    assert last.done
    return last


def whole(mount: Mount, *keys: str) -> bool:
    for key in keys:
        data, version = mount.driver.objects[key][:2]
        if mount.cache.cached_bytes(key, version, len(data))[0] != len(data):
            return False
    return True


async def test_everything_below_a_directory_is_brought_and_reads_ask_nobody(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        step = await run(mount, "")
        assert (step.state, step.files, step.loaded_files, step.present_files) == ("done", 26, 25, 1)
        assert step.loaded_bytes == step.bytes == sum(len(o[0]) for k, o in store.objects.items() if "link" not in k)
        assert step.failures == ()
        assert store.counts["head"] == 0
        assert store.counts["list"] == 5  # one for each directory
        gets = store.counts["get"]
        for key in ("a/img_07.jpg", "a/deep/er/t1.txt", "b/big"):
            assert whole(mount, key)
            assert await mount.read_all(key) == store.objects[key][0]
        assert store.counts["get"] == gets
        assert not mount.cache.budget.held_bytes


@pytest.mark.parametrize("waiting", [False, True])
async def test_no_file_stays_open(tmp_path: Path, waiting: bool) -> None:
    async with mounted(tmp_path, tree()) as mount:
        budget = mount.cache.budget
        if waiting:
            assert budget.try_hold(budget.limit_bytes)
        job = mount.loads.start([""])
        if waiting:
            await until(lambda: budget._waiting)
            budget.give_back(budget.limit_bytes)
        await job.ended.wait()
        assert job.progress().loaded_files == 25
        assert mount.open_cache_files() == []


async def test_a_second_load_and_one_of_the_next_life_skip_what_is_whole(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await run(mount, "a")
        gets = store.counts["get"]
        step = await run(mount, "a", "a/img_03.jpg")
        assert (step.loaded_files, step.present_files) == (0, 25)
        assert store.counts["get"] == gets
    async with mounted(tmp_path, store) as mount:
        step = await run(mount, "")
        assert (step.loaded_files, step.present_files) == (2, 24)


async def test_a_file_that_is_there_in_part_is_completed(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store, passthrough=False, whole_file_bytes=0, readahead_bytes=0) as mount:
        handle = await mount.open("b/big")
        await mount.kernel.read(mount.fs, handle, 2 * PAGE_BYTES, 100)
        await mount.kernel.release(mount.fs, handle)
        await until(lambda: not mount.cache.budget.held_bytes)
        before = mount.cache.counters.understore_bytes
        step = await run(mount, "b/big")
        assert whole(mount, "b/big")
        assert step.loaded_files == 1
        assert mount.cache.counters.understore_bytes - before == step.loaded_bytes < step.bytes


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("a/img_0?.jpg", 10),
        ("a/*", 24),
        ("**/*.txt", 3),
        ("a/**", 24),
        ("*/img_1[0-4].jpg", 5),
        ("b/[odd]*", 1),  # there is such a name
        ("a/**/er/t2*", 1),
        ("*", 26),
    ],
)
async def test_patterns(tmp_path: Path, pattern: str, files: int) -> None:
    async with mounted(tmp_path, tree()) as mount:
        step = await run(mount, pattern)
        assert step.failures == ()
        assert step.loaded_files + step.present_files == files


async def test_paths_that_lead_nowhere_are_told_and_the_rest_is_loaded(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree()) as mount:
        step = await run(mount, "gone", "a/img_00.jpg/x", "x*y", "link", "a/img_00.jpg")
        assert (step.loaded_files, step.failed_files) == (1, 4)
        assert step.failures == (
            "gone: there is no such file or directory",
            "a/img_00.jpg/x: there is no such file or directory",
            "x*y: nothing matches this pattern",
            "link: is no regular file; give the one that it stands for",
        )


async def test_a_list_of_files_lists_their_directory_once(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        step = await run(mount, *(f"a/img_{n:02}.jpg" for n in range(20)))
        assert step.loaded_files == 20
        # "a" itself is looked up; its files are not.
        assert store.counts["head"] <= 3
        assert store.counts["list"] <= 2


async def test_failures_are_counted_and_the_first_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LINES", 2)
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await mount.entries("a")
        store.fail_next(5, lambda: AccessDenied("GET: refused"), "get")
        step = await run(mount, "a")
        assert (step.failed_files, step.loaded_files) == (5, 18)
        assert len(step.failures) == 3
        assert "GET: refused" in step.failures[0]
        assert step.failures[2] == "3 more failed"
        step = await run(mount, "a")
        assert (step.failed_files, step.loaded_files) == (0, 5)


async def test_a_failure_that_passes_is_tried_again(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await mount.entries("a")
        store.fail_next(4, kind="get")
        step = await run(mount, "a")
        assert (step.failed_files, step.loaded_files) == (0, 23)


@AWAY
async def test_a_store_that_is_gone_ends_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GIVE_UP_AFTER", 4)
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await mount.entries("a")
        store.fail_next(10_000, lambda: StoreUnavailable("no route"), "get")
        with mount.impatient():
            step = await run(mount, "a")
        assert step.note is not None
        assert "cannot be reached" in step.note
        assert step.loaded_files == 0


async def test_a_walk_is_closed_when_its_load_ends_early(tmp_path: Path) -> None:
    closed = []

    class Endless:
        async def parts(self, _paths: object) -> AsyncGenerator[tuple[str, list[object]], None]:
            try:
                while True:
                    yield "part", []
            finally:
                closed.append(True)

    send, receive = trio.open_memory_channel(0)
    async with mounted(tmp_path, tree()) as mount, receive:
        job = mount.loads._make(1, [""])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job._walk, Endless(), send)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert closed


async def test_an_object_that_changed_since_it_was_listed_is_looked_up_again(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await mount.entries("a")
        store.place("a/img_05.jpg", b"another")
        store.remove("a/img_06.jpg")
        step = await run(mount, "a")
        assert whole(mount, "a/img_05.jpg")
        assert step.failed_files == 1
        assert step.failures[0].startswith("a/img_06.jpg: ")


async def test_what_does_not_fit_is_left_out_and_nothing_of_the_load_evicted(tmp_path: Path) -> None:
    store = FakeStore()
    for n in range(12):
        store.place(f"d/{n:02}", random_bytes(MIB, n))
    store.place("old", random_bytes(4 * MIB, 50))
    async with mounted(tmp_path, store, capacity_bytes=8 * MIB) as mount:
        await mount.read_all("old")
        step = await run(mount, "d")
        assert (step.loaded_files, step.left_out_files, step.left_out_bytes) == (7, 5, 5 * MIB)
        assert step.note is not None
        assert "5 files (5.0 MiB) left out" in step.note
        assert "(7.9 MiB)" in step.note
        assert whole(mount, *(f"d/{n:02}" for n in range(7)))
        assert store.counts["get"] == 2 + 7
        again = await run(mount, "d")
        assert (again.loaded_files, again.present_files, again.left_out_files) == (0, 7, 5)


async def test_no_part_of_a_load_is_evicted_either(tmp_path: Path) -> None:
    """Room is made while it runs: for the little that the first file leaves to be freed, a part of the next would do."""
    store = FakeStore()
    for n in range(4):
        store.place(f"d/{n}", random_bytes(pages(2), n))
    store.place("e/last", b"")
    async with mounted(tmp_path, store) as mount:
        await mount.entries("d")
        store.hold("list")
        job = mount.loads.start(["d", "e"])
        await until(lambda: job.progress().loaded_files == 4)
        await mount.space.free_ahead(pages(2) + 1)
        assert whole(mount, "d/0", "d/1", "d/2", "d/3")
        store.release()
        await job.ended.wait()
        await mount.space.free_ahead(pages(2) + 1)
        assert not whole(mount, "d/0", "d/1", "d/2", "d/3")


async def test_a_file_larger_than_the_cache_is_left_out(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree(), capacity_bytes=4 * MIB) as mount:
        step = await run(mount, "b")
        assert (step.loaded_files, step.left_out_files) == (1, 1)


async def test_stop_keeps_what_was_loaded_and_gives_everything_back(tmp_path: Path) -> None:
    store = Piecemeal()
    for n in range(400):
        store.place(f"d/{n:03}", random_bytes(100 * KIB, n))
    for n in range(40):
        store.let(f"d/{n:03}", 0)
    async with mounted(tmp_path, store, max_requests=2) as mount:
        job = mount.loads.start(["d"])
        await until(lambda: job.progress().loaded_files > 20)
        assert mount.loads.stop() == 1
        store.let_all()
        await until(lambda: job.ended.is_set() and not mount.cache.budget.held_bytes)
        step = job.progress()
        assert step.state == "stopped"
        assert 20 < step.loaded_files < 400
        assert mount.loads.stop() == 0
        assert not mount.cache.contents._live
        rest = await run(mount, "d")
        assert rest.present_files >= step.loaded_files
        assert rest.present_files + rest.loaded_files == 400


async def test_readers_go_first(tmp_path: Path) -> None:
    store = Piecemeal()
    for n in range(300):
        store.place(f"d/{n:03}", random_bytes(100 * KIB, n))
    store.place("wanted", random_bytes(100 * KIB, 1000))
    async with mounted(tmp_path, store, max_requests=2) as mount:
        await mount.entries()
        await mount.inode("wanted")
        job = mount.loads.start(["d"])
        # Both threads have a turn.
        await until(lambda: len(store.asked) == 2 and mount.store.counters.attempts["get"] == 2 * TOGETHER)
        contents: list[bytes] = []

        async def read() -> None:
            contents.append(await mount.read_all("wanted"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: mount.store.counters.attempts["get"] > 2 * TOGETHER)
            at, _ = sorted(store.asked)  # what the thread fetches that goes on
            fetched = 0
            while at != ("wanted", 0):
                before = set(store.asked)
                store.let(*at)
                await until(lambda before=before: store.asked > before)  # type: ignore[misc]
                (at,) = store.asked - before
                fetched += 1
            assert fetched <= TOGETHER
            store.let_all()
        assert contents == [store.objects["wanted"][0]]
        mount.loads.stop()
        await job.ended.wait()


async def test_two_loads_of_the_same_fetch_everything_once(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        jobs = [mount.loads.start(["a", "b"]) for _ in range(2)]
        for job in jobs:
            with trio.fail_after(60):
                await job.ended.wait()
        assert all(job.progress().failed_files == 0 for job in jobs)
        assert sum(store.reads.values()) == 23 + 1 + 3
        assert set(store.reads.values()) == {1}


@pytest.mark.parametrize("error", [None, AccessDenied("GET: refused")])
async def test_what_others_begin_to_fetch_meanwhile_is_waited_for(tmp_path: Path, error: AccessDenied | None) -> None:
    store = Piecemeal()
    store.place("big", random_bytes(pages(8), 1))
    async with mounted(tmp_path, store) as mount:
        job = mount.loads.start(["big"])
        await until(lambda: ("big", 0) in store.asked)
        obj = mount.cache.acquire("big", store.objects["big"][1], pages(8))
        assert 6 not in obj.flights
        (other,) = mount.cache.start(obj, range(6, 8))
        if error is not None:
            store.errors["big", pages(6)] = error
        for page in range(6):  # in requests for one page each, if the machine is slow
            store.let("big", pages(page))
        await until(lambda: obj.pages.count == 6)
        store.let("big", pages(6))
        await other.done.wait()
        with trio.fail_after(60):
            await job.ended.wait()
        step = job.progress()
        assert (step.left_out_files, step.loaded_files, step.failed_files) == (0, error is None, error is not None)
        mount.cache.release(obj)


async def test_small_files_come_one_after_the_other_until_the_line_is_known(tmp_path: Path) -> None:
    store = Piecemeal()
    for n in range(6):
        store.place(f"d/{n}", random_bytes(int(1.5 * MIB), n))
    async with mounted(tmp_path, store) as mount:
        await mount.entries("d")
        job = mount.loads.start(["d"])
        await until(lambda: bool(store.asked))
        await trio.testing.wait_all_tasks_blocked()
        assert mount.cache.budget.held_bytes == 1.5 * MIB
        store.let_all()
        with trio.fail_after(60):
            await job.ended.wait()
        assert job.progress().loaded_files == 6


async def test_files_that_are_written_to_count_as_there(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree(), write_mode="async-through") as mount:
        handle, _ = await mount.kernel.create(mount.fs, 1, b"mine")
        step = await run(mount, "")
        assert step.failed_files == 0
        await mount.kernel.release(mount.fs, handle)


async def test_loads_are_bounded_and_the_last_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "JOBS_AT_ONCE", 2)
    monkeypatch.setattr(loads, "JOBS_REMEMBERED", 1)
    store = tree()
    async with mounted(tmp_path, store) as mount:
        for _ in range(4):
            await run(mount, "a")
        assert [p.job for p in mount.loads.progress()] == [3, 4]
        store.delay_s = 0.05
        for _ in range(2):
            mount.loads.start(["b"])
        with pytest.raises(LoadRefused, match="2 loads are running"):
            mount.loads.start(["b"])
        mount.loads.stop()
        await until(lambda: not mount.loads.running)


async def test_fetched_bytes_are_let_go_at_once(tmp_path: Path) -> None:
    """Not when the collector comes by: until then a load would hold all that it has fetched."""
    store = FakeStore()
    store.place("large", random_bytes(12 * MIB, 1))
    for n in range(20):
        store.place(f"small/{n}", random_bytes(5000, n))
    async with mounted(tmp_path, store) as mount:
        gc.collect()
        others = flights()
        gc.disable()
        try:
            await run(mount, "")
            assert len(flights()) <= len(others)
        finally:
            gc.enable()


def flights() -> list[Flight]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Flight)]


async def test_what_a_rule_holds_to_a_low_rate_takes_nothing_from_the_rest(tmp_path: Path) -> None:
    store = FakeStore()
    slow, fast = random_bytes(pages(24), 1), random_bytes(pages(3), 2)
    store.place("slow/big", slow)
    store.place("fast/big", fast)
    for n in range(20):
        store.place(f"slow/{n}", random_bytes(200 * KIB, n))
        store.place(f"fast/{n}", random_bytes(200 * KIB, n))
    async with mounted(tmp_path, store, memory_bytes=8 * MIB) as mount:
        default = PathPolicy(WriteMode.CACHE_THROUGH, "cache")
        rule = PathRule("slow/**", bandwidth_limit_bytes_s=64 * KIB)
        mount.store.follow_rules(PathPolicies([rule], default), path_of)
        held = mount.loads.start(["slow"])
        obj = mount.cache.acquire("slow/big", store.objects["slow/big"][1], len(slow))
        mount.cache.start(obj, range(obj.pages.total))
        mount.cache.release(obj)
        await until(lambda: mount.store.held_back("get") >= 10)
        assert (await run(mount, "fast")).loaded_files == 21
        assert await mount.read_all("fast/big") == fast
        assert sum(n for (key, _), n in store.reads.items() if key.startswith("slow")) <= 2
        assert held.state == "running"
        mount.store.follow_rules(PathPolicies([], default), path_of)
        with trio.fail_after(60):
            await held.ended.wait()
        assert held.progress().loaded_files + held.progress().present_files == 21
        assert whole(mount, "slow/big", *(f"slow/{n}" for n in range(20)))
