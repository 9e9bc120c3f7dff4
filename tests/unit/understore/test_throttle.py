"""Limits on bytes a second, as a store keeps them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import DeadlinePassed
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore

KIB = 1 << 10
RATE = 100 * KIB


@pytest.fixture
def mock_clock() -> MockClock:
    # Threads answer in real time, so the clock jumps only after a moment in which nothing happened.
    return MockClock(autojump_threshold=0.05)


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
        assert store.statistics().in_flight == 0
        assert bytes(await store.read("a", 0, 3, version)) == bytes(3)
