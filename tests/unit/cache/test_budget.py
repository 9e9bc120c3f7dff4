from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from luxfuse.cache.budget import ByteBudget, RecentPages


@pytest.mark.parametrize("seed", range(5))
async def test_no_more_than_the_limit_is_held_also_when_waiters_give_up(seed: int, autojump_clock) -> None:
    rng = random.Random(seed)
    budget = ByteBudget(100)
    held = [0]
    most = [0]

    async def use(claim: int, patience_s: float, duration_s: float) -> None:
        with trio.move_on_after(patience_s):
            async with budget.hold(claim):
                held[0] += claim
                most[0] = max(most[0], held[0])
                assert held[0] == budget.held_bytes or held[0] < budget.held_bytes  # admitted, not yet running
                try:
                    await trio.sleep(duration_s)
                finally:
                    held[0] -= claim
            if rng.random() < 0.3 and budget.try_hold(claim):
                budget.give_back(claim)

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(use, rng.randrange(1, 100), rng.random() * 5, rng.random() * 0.2)
    assert 50 < most[0] <= 100
    assert budget.idle


async def test_a_claim_above_the_limit_goes_alone() -> None:
    budget = ByteBudget(10)
    async with trio.open_nursery() as nursery:
        small_entered = trio.Event()

        async def small() -> None:
            async with budget.hold(1):
                small_entered.set()

        async with budget.hold(50):
            nursery.start_soon(small)
            await wait_all_tasks_blocked()
            assert not small_entered.is_set()
            assert not budget.idle
        await small_entered.wait()


async def test_first_come_first_served() -> None:
    budget = ByteBudget(10)
    order: list[int] = []
    async with trio.open_nursery() as nursery:

        async def use(number: int, claim: int) -> None:
            async with budget.hold(claim):
                order.append(number)

        async with budget.hold(10):
            for number, claim in enumerate([10, 8, 9, 3]):
                nursery.start_soon(use, number, claim)
                await wait_all_tasks_blocked()
            assert not budget.try_hold(1)
    assert order == [0, 1, 2, 3]


async def test_a_large_waiter_that_gives_up_lets_the_next_ones_in() -> None:
    budget = ByteBudget(10)
    entered = trio.Event()
    async with trio.open_nursery() as nursery, budget.hold(5):
        scope = trio.CancelScope()

        async def large() -> None:
            with scope:
                async with budget.hold(10):
                    pytest.fail("it does not fit")

        async def small() -> None:
            async with budget.hold(5):
                entered.set()

        nursery.start_soon(large)
        await wait_all_tasks_blocked()
        nursery.start_soon(small)
        await wait_all_tasks_blocked()
        assert not entered.is_set()
        scope.cancel()
        await entered.wait()
    assert budget.idle


@given(st.lists(st.tuples(st.sampled_from(["put", "get", "discard"]), st.integers(0, 6), st.integers(0, 40)), max_size=80))
def test_recent_pages_are_an_lru_bounded_by_bytes(operations: list) -> None:
    recent = RecentPages(100)
    model: OrderedDict[int, bytes] = OrderedDict()
    for action, page, size in operations:
        if action == "put":
            data = bytes(size)
            recent.put(b"o", page, data)
            model.pop(page, None)
            model[page] = data
            while sum(map(len, model.values())) > 100:
                model.popitem(last=False)
        elif action == "get":
            assert recent.get(b"o", page) == model.get(page)
            if page in model:
                model.move_to_end(page)
        else:
            recent.discard(b"o", page)
            model.pop(page, None)
        assert recent.held_bytes == sum(map(len, model.values())) <= 100


def test_a_page_of_a_run_counts_with_all_that_it_keeps_alive() -> None:
    recent = RecentPages(100)

    def put_run(oid: bytes, size: int) -> None:
        run = memoryview(bytes(size)).cast("B")
        for page in range(4):
            recent.put(oid, page, run[page * 10 : page * 10 + 10])

    put_run(b"a", 40)
    assert recent.held_bytes == 40
    for page in range(3):
        recent.discard(b"a", page)
        assert recent.held_bytes == 40
    put_run(b"b", 40)
    assert recent.held_bytes == 80
    put_run(b"c", 40)
    assert recent.held_bytes == 80, "the last page of the first run kept it"
    assert recent.get(b"a", 3) is None
    assert all(recent.get(b"b", page) is not None for page in range(4))
    for page in range(2):
        recent.put(b"b", page, bytes(10))  # takes the place of the run's
    assert recent.held_bytes == 100
    for oid in (b"b", b"c"):
        for page in range(4):
            recent.discard(oid, page)
    assert recent.held_bytes == 0
    assert not recent._parts
    recent.put(b"d", 0, memoryview(bytearray(101))[:1])
    assert recent.held_bytes == 0
