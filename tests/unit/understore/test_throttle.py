"""Limits on bytes a second, as a store keeps them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from luxfuse.core.rules import PathPolicies, PathPolicy, PathRule
from luxfuse.errors import DeadlinePassed
from luxfuse.types import WriteMode
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time

KIB = 1 << 10
RATE = 100 * KIB


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


@asynccontextmanager
async def limited(fake: FakeStore, timeout_s: float = 30.0, **limits: int) -> AsyncIterator[Store]:
    store = Store(fake, request_timeout_s=timeout_s, max_requests=4, rng=random.Random(1), **limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch_deadlines)
        yield store
        nursery.cancel_scope.cancel()
    store.close()


def filled() -> tuple[FakeStore, str]:
    fake = FakeStore()
    return fake, fake.place("a", bytes(300 * KIB)).version


async def test_reads_keep_to_the_rate(mock_clock) -> None:
    fake, version = filled()
    async with limited(fake, get_bytes_s=RATE) as store:
        began_s = trio.current_time()
        for start in range(0, 300 * KIB, 50 * KIB):
            await store.read("a", start, start + 50 * KIB, version)
        # The last one went when those before it were paid for, less what the bucket held.
        assert trio.current_time() - began_s >= 250 / 100 - 0.1 - 0.01
        assert trio.current_time() - began_s < 4
        await store.put("b", b"x" * 300 * KIB, {})  # it has no limit
        assert trio.current_time() - began_s < 5


async def test_writes_keep_to_theirs(mock_clock) -> None:
    fake, version = filled()
    async with limited(fake, put_bytes_s=RATE) as store:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(store.put, str(number), bytes(50 * KIB), {})
        assert trio.current_time() - began_s >= 200 / 100 - 0.1 - 0.01
        await store.read("a", 0, 300 * KIB, version)


async def test_bulk_requests_share_it_and_waiting_is_no_failure(mock_clock) -> None:
    fake, version = filled()
    order: list[str] = []
    async with limited(fake, timeout_s=2.0, get_bytes_s=RATE) as store:
        began_s = trio.current_time()
        ended = trio.Event()

        def submit(name: str, later: bool) -> None:
            def done(result, error) -> None:
                assert error is None
                order.append(name)
                if len(order) == 12:
                    ended.set()

            store.submit("get", lambda driver: driver.read("a", 0, 100 * KIB, version), done, 100 * KIB, later=later)

        for number in range(10):
            submit(f"load {number}", later=True)
        await trio.sleep(1.5)
        assert store.stuck_s() == 0
        for number in range(2):
            submit(f"read {number}", later=False)
        with trio.fail_after(60):
            await ended.wait()
        assert trio.current_time() - began_s >= 10.5  # five times the deadline of a request
        assert order.index("read 0") <= 4
        assert order.index("read 1") <= 6


async def test_a_request_that_is_sent_has_its_deadline(mock_clock) -> None:
    fake, version = filled()
    async with limited(fake, timeout_s=2.0, get_bytes_s=RATE) as store:
        fake.hold("get")
        try:
            with pytest.raises(DeadlinePassed):
                await store.attempt("get", lambda driver: driver.read("a", 0, 10, version), 10)
        finally:
            fake.release()


async def test_what_is_tried_again_is_paid_by_the_next(mock_clock) -> None:
    fake, version = filled()
    async with limited(fake, get_bytes_s=RATE) as store:
        fake.fail_next(1)
        began_s = trio.current_time()
        await store.read("a", 0, 200 * KIB, version)
        await store.read("a", 0, 10, version)
        assert trio.current_time() - began_s >= 400 / 100 - 0.2


async def test_giving_up_while_held_back(mock_clock) -> None:
    fake, version = filled()
    async with limited(fake, get_bytes_s=RATE) as store:
        await store.read("a", 0, 300 * KIB, version)
        with trio.move_on_after(0.5) as scope:
            await store.read("a", 0, 10, version)
        assert scope.cancelled_caught
        assert store.counters.statistics().in_flight == 0
        assert bytes(await store.read("a", 0, 3, version)) == bytes(3)


# -- of paths


def follow(store: Store, *rules: PathRule) -> None:
    store.follow_rules(PathPolicies(rules, PathPolicy(WriteMode.CACHE_THROUGH, "cache")), lambda key: key.rstrip("/"))


async def test_paths_of_a_rule_share_its_limit_and_others_have_none(mock_clock) -> None:
    fake = FakeStore()
    async with limited(fake) as store:
        follow(store, PathRule("slow/**", bandwidth_limit_bytes_s=RATE, upload_bandwidth_limit_bytes_s=RATE))
        began_s = trio.current_time()
        await store.put("fast", bytes(300 * KIB), {})
        assert trio.current_time() - began_s < 1
        versions = [(await store.put(f"slow/{n}", bytes(100 * KIB), {})).version for n in range(3)]
        # The last one went when those before it were paid for, less what the limit lets go at once.
        assert trio.current_time() - began_s >= 200 / 100 - 0.1 - 0.01
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, version in enumerate(versions):
                nursery.start_soon(store.read, f"slow/{number}", 0, 100 * KIB, version)
        assert 200 / 100 - 0.1 - 0.01 <= trio.current_time() - began_s < 4


async def test_the_limits_of_path_and_store_both_hold(mock_clock) -> None:
    fake = FakeStore()
    async with limited(fake, put_bytes_s=2 * RATE) as store:
        follow(store, PathRule("slow", upload_bandwidth_limit_bytes_s=RATE))
        began_s = trio.current_time()
        for name in ("a", "b", "c"):
            await store.put(name, bytes(200 * KIB), {})
        assert 2 - 0.1 - 0.01 <= trio.current_time() - began_s < 3
        await trio.sleep(10)
        began_s = trio.current_time()
        for _ in range(3):
            await store.put("slow", bytes(100 * KIB), {})
        assert 2 - 0.1 - 0.01 <= trio.current_time() - began_s < 3


async def test_a_turn_is_not_on_the_deadline_and_those_of_programs_come_first(mock_clock) -> None:
    fake = FakeStore()
    order: list[str] = []
    async with limited(fake, timeout_s=2.0) as store:
        follow(store, PathRule("**", bandwidth_limit_bytes_s=RATE))

        async def take(name: str, *, background: bool) -> None:
            await store.turn("get", name, 100 * KIB, background=background)
            order.append(name)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(partial(take, f"load {number}", background=True))
            await trio.sleep(3.5)
            assert store.held_back("get") == 4
            assert not store.try_turn("get", "another", 1)
            assert store.try_turn("put", "another", 1)
            assert store.stuck_s() == 0
            for number in range(2):
                nursery.start_soon(partial(take, f"read {number}", background=False))
        first, second = (number for number, name in enumerate(order) if name.startswith("read"))
        assert first <= 5
        assert second <= 7
        version = (await store.put("a", bytes(100 * KIB), {})).version
        fake.fail_next(1)
        await store.read("a", 0, 100 * KIB, version)  # after a turn that took most of the deadline, and tried twice
        began_s = trio.current_time()
        await store.turn("get", "a", 1)
        assert trio.current_time() - began_s >= 200 / 100 - 0.2


async def test_rules_that_change_hold_for_those_who_wait(mock_clock) -> None:
    fake = FakeStore()
    async with limited(fake) as store:
        follow(store, PathRule("a", bandwidth_limit_bytes_s=RATE), PathRule("b", bandwidth_limit_bytes_s=RATE))
        ended: dict[str, float] = {}
        began_s = trio.current_time()

        async def take(name: str) -> None:
            for _ in range(2):
                await store.turn("get", name, 1000 * KIB)
            ended[name] = trio.current_time() - began_s

        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(take, name)
            await trio.sleep(1)
            assert store.held_back("get") == 2
            follow(store, PathRule("a", bandwidth_limit_bytes_s=5 * RATE), PathRule("c", bandwidth_limit_bytes_s=RATE))
            nursery.start_soon(take, "c")
        assert ended["b"] < 1.5
        assert 2 <= ended["a"] < 4  # a second at the old rate, the rest at five times that
        assert ended["c"] >= 10
        follow(store)
        assert store.try_turn("get", "c", 1)
