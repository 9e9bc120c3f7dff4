"""Small puts that begin at about the same time go in one turn of a thread; each is still a write of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import DeadlinePassed, NoCredentials, StoreAway, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.puts_together import Sums, Wanted
from luxfuse.understore.retrying import Store
from luxfuse.understore.small_puts import MOST_BYTES, MOST_PUTS, PutAnswer, SmallPut, Tell
from tests.support.fake_store import FakeStore
from tests.support.harness import until
from tests.support.virtual_time import virtual_time


@dataclass
class Several(FakeStore):
    """Puts several at once. ``says``: what it tells of a key instead of putting it; ``stuck``: keys that end last."""

    puts_small: bool = True
    together: list[list[str]] = field(default_factory=list)
    says: dict[str, list[PutAnswer]] = field(default_factory=dict)
    fails: Exception | None = None
    stuck: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hold("list")  # for those that are stuck

    def put_small(self, puts: Sequence[SmallPut], tell: Tell) -> None:
        self.together.append([put.key for put in puts])
        if self.fails is not None:
            raise self.fails
        tell([(n, self._outcome_of(put)) for n, put in enumerate(puts) if put.key not in self.stuck])
        if late := [(n, put) for n, put in enumerate(puts) if put.key in self.stuck]:
            self._wait()
            tell([(n, self._outcome_of(put)) for n, put in late])

    def _outcome_of(self, put: SmallPut) -> PutAnswer:
        if answers := self.says.get(put.key):
            return answers.pop(0)
        return PutAnswer(0.01, self.put(put.key, put.data, put.metadata, expect=put.expect))


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


def made(driver: FakeStore, most: int = 32, **more: int) -> Store:
    return Store(driver, request_timeout_s=30.0, max_requests=most, rng=random.Random(1), **more)


Outcome = ObjectInfo | StoreError | OSError | None


async def put(
    store: Store,
    key: str,
    data: bytes = b"x",
    read: Callable[[], tuple[bytes, Sums]] | None = None,
    size: int | None = None,
) -> ObjectInfo:
    def alone(driver: UnderStore) -> tuple[ObjectInfo, Sums]:
        content, sums = (read or whole)()
        return driver.put(key, content, {"a": key}), sums

    def whole() -> tuple[bytes, Sums]:
        return data, {0: len(data)}

    wanted = Wanted(key, len(data) if size is None else size, read or whole, {"a": key}, None)
    info, sums = await store.call("put", alone, what=f"PUT {key}", size_bytes=len(data), changes=[key], small=wanted)
    assert sums == {0: len(data)}
    return info


async def put_all(store: Store, keys: Sequence[str]) -> dict[str, Outcome]:
    """Put them at once; returns what came of each."""
    found: dict[str, Outcome] = {}

    async def one(key: str) -> None:
        try:
            found[key] = await put(store, key, key.encode())
        except (StoreError, OSError) as exc:
            found[key] = exc

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(one, key)
    return found


async def test_those_that_begin_at_once_go_together_and_each_is_counted() -> None:
    driver = Several()
    store = made(driver)
    found = await put_all(store, "abc")
    assert {key: isinstance(each, ObjectInfo) and each.key for key, each in found.items()} == {k: k for k in "abc"}
    assert [sorted(keys) for keys in driver.together] == [["a", "b", "c"]]
    assert {key: driver.objects[key][0] for key in "abc"} == {key: key.encode() for key in "abc"}
    assert store.counters.attempts["put"] == 3
    assert store.counters.latency["put"].count == 3
    assert store.idle


async def test_no_more_go_than_a_driver_puts_at_once() -> None:
    driver = Several()
    assert all((await put_all(made(driver), [str(n) for n in range(2 * MOST_PUTS)])).values())
    assert [len(keys) for keys in driver.together] == [MOST_PUTS, MOST_PUTS]


@pytest.mark.parametrize("driver", [FakeStore(), Several(puts_small=False)])
async def test_where_the_driver_cannot_they_are_put_alone(driver: FakeStore) -> None:
    assert len(await put_all(made(driver), "ab")) == 2
    assert sorted(driver.objects) == ["a", "b"]


async def test_large_ones_are_put_alone() -> None:
    driver = Several()
    store = made(driver)
    async with trio.open_nursery() as nursery:
        for key in "ab":
            nursery.start_soon(lambda key=key: put(store, key, size=MOST_BYTES + 1))
    assert sorted(driver.objects) == ["a", "b"]
    assert not driver.together


async def test_one_goes_as_usual() -> None:
    driver = Several()
    store = made(driver)
    assert await put(store, "a")
    assert (driver.together, store.counters.attempts["put"], store.counters.latency["put"].count) == ([], 1, 1)


async def test_what_is_not_simply_stored_is_put_as_usual_and_counted_again() -> None:
    driver = Several(says={"b": [PutAnswer(0.5)], "c": [PutAnswer()]})
    store = made(driver)
    found = await put_all(store, "abc")
    assert all(isinstance(each, ObjectInfo) for each in found.values())
    assert store.counters.attempts["put"] == 4  # of "c" no request was made
    assert store.counters.latency["put"].count == 4


async def test_a_failure_of_one_is_tried_again_and_touches_no_other(mock_clock: MockClock) -> None:
    driver = Several(says={"b": [PutAnswer(0.1, error=StoreUnavailable("busy"))]})
    store = made(driver)
    found = await put_all(store, "abc")
    assert all(isinstance(each, ObjectInfo) for each in found.values())
    assert [sorted(keys) for keys in driver.together] == [["a", "b", "c"]]
    assert (store.counters.retries, store.counters.errors, store.counters.attempts["put"]) == (1, 1, 4)


async def test_an_error_that_no_other_try_mends_is_raised_for_it_alone() -> None:
    driver = Several(says={"b": [PutAnswer(0.1, error=VersionChanged("changed"))]})
    store = made(driver)
    found = await put_all(store, "abc")
    assert isinstance(found.pop("b"), VersionChanged)
    assert all(isinstance(each, ObjectInfo) for each in found.values())
    assert store.counters.retries == 0


async def test_what_one_cannot_read_is_raised_for_it_alone() -> None:
    driver = Several()
    store = made(driver)
    found: list[object] = []

    def unreadable() -> tuple[bytes, Sums]:
        raise OSError(5, "no")

    async def bad() -> None:
        try:
            await put(store, "bad", read=unreadable)
        except OSError as exc:
            found.append(exc.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bad)
        nursery.start_soon(put, store, "good")
    assert found == [5]
    assert driver.together == [["good"]]
    assert list(driver.objects) == ["good"]


@pytest.mark.parametrize("error", [NoCredentials("none"), StoreUnavailable("no")])
async def test_what_fails_before_any_was_put_each_meets_as_usual(error: StoreError) -> None:
    driver = Several(fails=error)
    store = made(driver)
    assert len(await put_all(store, "ab")) == 2
    assert sorted(driver.objects) == ["a", "b"]
    assert store.counters.errors == 0


@pytest.mark.expected_logs("failed in an unexpected way")
async def test_a_mistake_of_ours_loses_nothing() -> None:
    driver = Several(fails=KeyError("no"))
    assert len(await put_all(made(driver), "ab")) == 2
    assert sorted(driver.objects) == ["a", "b"]


async def test_where_no_thread_can_be_started_they_are_put_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Several()

    def refuse(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    store = made(driver)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    assert len(await put_all(store, "ab")) == 2
    assert sorted(driver.objects) == ["a", "b"]
    assert not driver.together


async def test_one_that_is_stuck_holds_up_no_other_and_ends_at_its_deadline(mock_clock: MockClock) -> None:
    driver = Several(stuck={"b"})
    store = made(driver, most=4)
    ended: dict[str, float] = {}
    failed: list[type[StoreError]] = []

    async def one(key: str) -> None:
        try:
            await put(store, key)
        except StoreError as exc:
            failed.append(type(exc))
        ended[key] = trio.current_time()

    began_s = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            for key in "abc":
                nursery.start_soon(one, key)
        assert {key for key, at in ended.items() if at - began_s < 1} == {"a", "c"}
        assert ended["b"] - began_s == pytest.approx(30.0, abs=0.5)
        assert failed == [DeadlinePassed]
        assert (store.counters.timeouts, store.counters.state) == (1, "down")
        assert store.late.any_at("b")  # it may be carried out yet
        assert not store.late.any_at("a", "c")
        assert store._write_limiter.borrowed_tokens == 1  # its thread goes on
    finally:
        driver.release()
    await until(lambda: store._write_limiter.borrowed_tokens == 0)
    assert not store.late.any_at("b")
    assert sorted(driver.objects) == ["a", "b", "c"]


async def test_the_next_ones_do_not_wait_for_those_under_way() -> None:
    driver = Several(stuck={"a"})
    store = made(driver)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_all, store, "ab")
        await until(lambda: "b" in driver.objects)
        assert all((await put_all(store, "cd")).values())
        assert "a" not in driver.objects
        driver.release()
    assert "a" in driver.objects


async def test_they_hold_as_many_slots_as_they_are() -> None:
    driver = Several(stuck={"a", "b"})
    store = made(driver, most=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_all, store, ["a", "b"])
        await until(lambda: bool(driver.together))
        assert store._write_limiter.borrowed_tokens == 2
        assert len(await put_all(store, ["c", "d", "e"])) == 3  # one after the other
        assert [len(keys) for keys in driver.together] == [2]
        driver.release()


async def test_one_that_goes_alone_waits_for_a_slot_once() -> None:
    driver = Several()
    store = made(driver, most=1)
    slots = store._write_limiter
    put_before: list[int] = []

    async def next_one() -> None:
        await slots.acquire_on_behalf_of("next")
        put_before.append(driver.counts["put"])
        slots.release_on_behalf_of("next")

    slots.acquire_on_behalf_of_nowait("first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "a")
        await until(lambda: slots.statistics().tasks_waiting == 1)
        nursery.start_soon(next_one)
        await until(lambda: slots.statistics().tasks_waiting == 2)
        slots.release_on_behalf_of("first")
    assert put_before == [1], "it had to wait again, behind the next one"
    assert slots.borrowed_tokens == 0


@pytest.mark.parametrize("turns", range(5))
async def test_a_slot_of_one_that_goes_alone_is_freed_whenever_it_is_given_up(turns: int) -> None:
    store = made(Several())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "a")
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await until(lambda: store._write_limiter.borrowed_tokens == 0)
    assert await put(store, "a")


async def test_one_that_was_given_up_before_its_thread_came_to_it_is_not_made() -> None:
    driver = Several()
    store = made(driver)
    reading: list[str] = []
    go = threading.Event()
    scopes = {key: trio.CancelScope() for key in "ab"}

    async def one(key: str) -> None:
        def read() -> tuple[bytes, Sums]:
            reading.append(key)
            go.wait(60)
            return b"x", {0: 1}

        with scopes[key]:
            await put(store, key, read=read)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a")
        nursery.start_soon(one, "b")
        await until(lambda: bool(reading))
        (given_up,) = {"a", "b"} - set(reading)
        scopes[given_up].cancel()
        await until(lambda: store.counters.in_flight == 1)
        go.set()
    await until(lambda: store._write_limiter.borrowed_tokens == 0)
    assert [*driver.objects] == reading
    assert not store.late.any_at("a", "b")


@pytest.mark.expected_logs("cannot be reached")
async def test_that_it_was_sent_is_told_where_the_store_goes_away() -> None:
    driver = Several(stuck={"a", "b"})
    store = made(driver)
    found: dict[str, Outcome] = {}

    async def all_of_them() -> None:
        found.update(await put_all(store, "ab"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(all_of_them)
        await until(lambda: bool(driver.together))
        store.presence.found_away(None)
        await until(lambda: len(found) == 2)
        driver.release()
    assert [isinstance(each, StoreAway) and each.sent for each in found.values()] == [True, True]


async def test_bytes_that_a_limit_holds_back_wait_each_for_itself(mock_clock: MockClock) -> None:
    driver = Several()
    store = made(driver, put_bytes_s=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch_deadlines)
        began_s = trio.current_time()
        assert len(await put_all(store, ["a", "b", "c", "d"])) == 4
        assert trio.current_time() - began_s >= 2
        nursery.cancel_scope.cancel()
