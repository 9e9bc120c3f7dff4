from __future__ import annotations

import math
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from luxfuse.core.eviction import MAIN, WINDOW, Lrfu, Lru, Policy, Standing
from luxfuse.core.policies import DEFAULT_POLICY, POLICIES
from luxfuse.core.tinylfu import MAX_MOVES, TinyLfu
from tests.bench.policy_simulation import MemoryOrder

NAMES = sorted(POLICIES)
IDS = [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(40)]
NUMBERS = st.integers(0, len(IDS) - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), NUMBERS, st.booleans()),
        st.tuples(st.just("remove"), NUMBERS, st.none()),
        st.tuples(st.just("evict"), st.integers(1, 400), st.sets(NUMBERS, max_size=30)),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=120,
)


def check_places(order: MemoryOrder) -> None:
    for segment in (WINDOW, MAIN):
        listed = list(order.ascending(segment))
        assert [cached.oid for cached in listed] == sorted(
            (oid for oid, standing in order.standings.items() if standing.segment == segment),
            key=lambda oid: (order.standings[oid].rank, oid),
        )
    assert all(standing.segment in (WINDOW, MAIN) for standing in order.standings.values())
    assert all(0 <= standing.rank < 1 << 64 for standing in order.standings.values())


def evict(policy: Policy, order: MemoryOrder, in_use: set[bytes], needed_bytes: int) -> None:
    before = {oid: order.size_of(oid) for oid in order.standings}
    choice = policy.choose(order, in_use, needed_bytes)
    moved = [oid for oid, _ in choice.moves]
    touched = choice.victims + moved
    assert len(set(touched)) == len(touched)
    assert set(touched) <= set(before)
    assert not in_use & set(choice.victims)
    freed_bytes = order.apply(choice)
    assert freed_bytes == sum(before[oid] for oid in choice.victims)
    assert freed_bytes >= needed_bytes or set(order.standings) <= in_use


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(steps=STEPS)
def test_it_frees_enough_never_what_is_in_use_and_each_object_has_one_place(name: str, steps: list) -> None:
    policy = POLICIES[name]()
    order = MemoryOrder()
    highest = 0
    for step, what, how in steps:
        if step == "read":
            oid = IDS[what]
            if oid in order.standings:
                order.place(oid, policy.on_use(oid, order.standings[oid]))
            else:
                order.place(oid, policy.on_insert(oid, 1 + what, order, used=how), 1 + what)
            highest = max(highest, order.standings[oid].rank)
        elif step == "remove" and IDS[what] in order.standings:
            order.remove(IDS[what])
        elif step == "evict":
            evict(policy, order, {IDS[number] for number in how}, what)
        elif step == "restart":
            fresh = POLICIES[name]()
            assert fresh.load(policy.state())
            assert fresh.state() == policy.state()
            fresh.resume(order, highest)
            policy = fresh
        check_places(order)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_policy_or_version_is_not_loaded(name: str) -> None:
    policy = POLICIES[name]()
    own = policy.state()
    others = [POLICIES[other]().state() for other in NAMES if other != name]
    for state in (b"", own[:-1], own + b"\0", own[:8] + b"\xff" + own[9:], *others):
        assert not policy.load(state)
        assert policy.state() == own


@pytest.mark.parametrize("after", NAMES)
@pytest.mark.parametrize("before", NAMES)
def test_a_policy_goes_on_with_the_order_of_another(before: str, after: str) -> None:
    order = MemoryOrder()
    policy = POLICIES[before]()
    for oid in IDS:
        order.place(oid, policy.on_insert(oid, 1, order, used=True), 1)
    highest = max(standing.rank for standing in order.standings.values())
    policy = POLICIES[after]()
    policy.resume(order, highest)
    for oid in IDS[:20]:
        order.place(oid, policy.on_use(oid, order.standings[oid]))
        assert order.standings[oid].rank >= highest
    evict(policy, order, set(), 20)
    assert set(order.standings) == set(IDS[:20])


def test_lrfu_keeps_the_order_of_alluxios_sum() -> None:
    """Ranks against CRF = 1 + CRF' * (1/2)^(x/4), computed for every object at every tick."""
    policy, order = Lrfu(), MemoryOrder()
    sums: dict[bytes, float] = {}
    for tick in range(400):
        oid = IDS[(tick * tick + tick // 7) % 13]
        sums = {known: crf * 0.5**0.25 for known, crf in sums.items()}
        sums[oid] = sums.get(oid, 0.0) + 1.0
        known = order.standings.get(oid)
        order.place(oid, policy.on_use(oid, known) if known else policy.on_insert(oid, 1, order, used=True), 1)
        ranked = [cached.oid for cached in order.ascending(MAIN)]
        assert all(sums[low] <= sums[high] * (1 + 1e-5) for low, high in pairwise(ranked))


def test_lrfu_ranks_fit_for_a_trillion_uses_and_stay_exact() -> None:
    policy = Lrfu()
    policy.resume(MemoryOrder(), 1 << 62)
    first = policy.on_insert(IDS[0], 1, MemoryOrder(), used=True)
    again = policy.on_use(IDS[0], first)
    crf_log2 = (again.rank - (first.rank + policy._PER_TICK)) / policy._UNIT
    assert crf_log2 == pytest.approx(math.log2(1 + 0.5**0.25), abs=1e-6)


def test_lru_ranks_by_last_use() -> None:
    policy, order = Lru(), MemoryOrder()
    for number in (0, 1, 2, 0):
        known = order.standings.get(IDS[number])
        standing = policy.on_use(IDS[number], known) if known else policy.on_insert(IDS[number], 1, order, used=True)
        order.place(IDS[number], standing, 1)
    assert [cached.oid for cached in order.ascending(MAIN)] == [IDS[1], IDS[2], IDS[0]]


class Cache:
    """A default policy over objects of one byte."""

    def __init__(self, capacity: int) -> None:
        self.policy, self.order, self.capacity = TinyLfu(), MemoryOrder(), capacity

    def read(self, number: int) -> bool:
        oid = xxhash.xxh3_128_digest(number.to_bytes(8))
        if oid in self.order.standings:
            self.order.place(oid, self.policy.on_use(oid, self.order.standings[oid]))
            return True
        if self.order.count == self.capacity:
            self.order.apply(self.policy.choose(self.order, (), 1))
        self.order.place(oid, self.policy.on_insert(oid, 1, self.order, used=True), 1)
        return False


def test_the_default_is_a_policy() -> None:
    assert isinstance(POLICIES[DEFAULT_POLICY](), TinyLfu)


def test_an_empty_cache_fills_straight_into_the_main_segment() -> None:
    cache = Cache(500)
    for number in range(500):
        cache.read(number)
    assert cache.order.bytes_in(MAIN) == 500


def test_what_was_freed_by_hand_fills_again_without_contest() -> None:
    cache = Cache(500)
    for number in range(1000):
        cache.read(number)
    for cached in list(cache.order.ascending(MAIN))[:250]:
        cache.order.remove(cached.oid)
    for number in range(2000, 2240):
        cache.read(number)
    assert all(cache.read(number) for number in range(2000, 2240))
    assert cache.order.bytes_in(MAIN) > 480


def test_a_burst_of_uses_is_one_use() -> None:
    cache = Cache(500)
    for number in range(500):
        cache.read(number)
    standing = cache.order.standings[xxhash.xxh3_128_digest((499).to_bytes(8))]
    before = cache.policy.state()
    for _ in range(20):
        assert cache.read(499)
    assert cache.policy.state() == before
    assert cache.order.standings[xxhash.xxh3_128_digest((499).to_bytes(8))] == standing


def test_a_newcomer_stays_while_it_is_used() -> None:
    cache = Cache(1000)
    for number in range(1500):
        cache.read(number)
    cache.read(5000)
    assert all(cache.read(5000) for number in range(6000, 9000) if not cache.read(number))


def test_what_is_fetched_ahead_is_not_counted() -> None:
    policy, order = TinyLfu(), MemoryOrder()
    order.place(IDS[0], policy.on_insert(IDS[0], 1, order, used=False), 1)
    assert policy._sketch.estimate(IDS[0]) == 0
    order.place(IDS[1], policy.on_insert(IDS[1], 1, order, used=True), 1)
    assert policy._sketch.estimate(IDS[1]) == 1


def test_a_large_window_moves_in_bounded_rounds() -> None:
    """As when the capacity grew while it was full."""
    policy, order = TinyLfu(), MemoryOrder()
    ids = [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(5 * MAX_MOVES)]
    for rank, oid in enumerate(ids):
        order.place(oid, Standing(WINDOW, rank), 1)
    policy.resume(order, len(ids))
    rounds = 0
    while order.bytes_in(MAIN) < 4 * MAX_MOVES:
        choice = policy.choose(order, (), 1)
        assert len(choice.moves) <= MAX_MOVES
        order.apply(choice)
        rounds += 1
    assert rounds <= 6


def test_what_was_admitted_goes_too_if_the_rest_is_in_use() -> None:
    policy, order = TinyLfu(), MemoryOrder()
    ids = [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(100)]
    for rank, oid in enumerate(ids):
        order.place(oid, Standing(WINDOW, rank), 1)
    policy.resume(order, len(ids))
    evict(policy, order, set(ids[50:]), 60)
    assert set(order.standings) == set(ids[50:])


def test_who_was_beaten_in_vain_can_still_be_dropped() -> None:
    """A newcomer of two bytes beats one object, and loses against the next."""
    policy, order = TinyLfu(), MemoryOrder()
    weak, strong, newcomer = IDS[:3]
    for oid, segment, size, uses in ((weak, MAIN, 1, 0), (strong, MAIN, 1, 9), (newcomer, WINDOW, 2, 6)):
        order.place(oid, Standing(segment, 1), size)
        for _ in range(uses):
            policy._sketch.add(oid)
    policy.resume(order, 2)
    choice = policy.choose(order, (), 3)
    assert choice.victims == [newcomer, weak]
    assert not choice.moves
