from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.eviction import (
    EASY,
    LAST,
    MAIN,
    NEXT,
    PLAIN,
    SPARED_BOUND,
    Choice,
    Grown,
    Lrfu,
    Lru,
    Spared,
    Standing,
    choose_victims,
)
from luxfuse.core.tinylfu import TinyLfu
from tests.bench import policy_traces as traces
from tests.bench.policy_simulation import MemoryOrder, hit_ratio

objects = st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.integers(0, 100)), unique_by=lambda o: o[0])


@given(objects, st.sets(st.binary(min_size=1, max_size=2)), st.integers(0, 1000))
def test_the_oldest_that_nobody_uses_go_and_no_more_than_needed(oldest_first: list, in_use: set, needed: int) -> None:
    victims = choose_victims(oldest_first, in_use, needed)
    free = [(oid, size) for oid, size in oldest_first if oid not in in_use]
    assert victims == [oid for oid, _ in free[: len(victims)]]
    freed = sum(size for _, size in free[: len(victims)])
    assert freed >= needed or len(victims) == len(free)
    if victims:
        assert sum(size for _, size in free[: len(victims) - 1]) < needed


def test_nothing_goes_when_nothing_is_needed() -> None:
    assert choose_victims([(b"a", 1)], set(), 0) == []


def order_of(*sizes: int, segment: int = MAIN) -> MemoryOrder:
    order = MemoryOrder()
    for number, size in enumerate(sizes):
        order.place(b"%02d" % number, Standing(segment, number + 1), size)
    return order


@pytest.mark.parametrize("policy", [Lru, Lrfu, TinyLfu])
def test_objects_that_come_together_stand_as_if_they_came_one_after_the_other(policy: type) -> None:
    orders, standings = [order_of(*[10] * 40), order_of(*[10] * 40)], []
    for number, order in enumerate(orders):
        chosen = policy()
        chosen.resume(order, 40)
        # From now on there is a limit to what comes in without contest; some of it is free.
        victims = chosen.choose(order, (), 200).victims
        for oid in [*victims, *sorted(set(order.standings) - set(victims))[:5]]:
            order.remove(oid)
        grown = Grown(order)
        for new in range(60):
            oid = b"%014dnw" % new
            standing = chosen.on_insert(oid, 10, grown if number else order, used=bool(new % 2))
            standings.append(standing)
            if number:
                grown.add(standing.segment, 10)
            else:
                order.place(oid, standing, 10)
        assert (grown if number else order).count == 75
    assert standings[:60] == standings[60:]
    assert policy is not TinyLfu or len({standing.segment for standing in standings}) == 2


@pytest.mark.parametrize("policy", [Lru, Lrfu, TinyLfu])
def test_among_the_next_few_those_go_first_that_others_hold_as_well(policy: type) -> None:
    order = order_of(*[10] * 40)
    held = {b"%02d" % number for number in (3, 15, 16, 39)}
    spared = Spared(order, lambda oid: EASY if oid in held else PLAIN)
    victims = policy().choose(spared, (), 40).victims
    assert set(victims) == {b"03", b"15", b"16", b"00"}, "39 is not among the next few"
    assert spared.bytes_of(victims) == 40


@pytest.mark.parametrize("policy", [Lru, Lrfu, TinyLfu])
def test_what_others_count_on_is_left_out_and_known(policy: type) -> None:
    order = order_of(*[10] * 6)
    spared = Spared(order, lambda oid: LAST if oid < b"04" else PLAIN)
    assert sorted(policy().choose(spared, (), 60).victims) == [b"04", b"05"]
    assert spared.left_out == [(b"%02d" % number, Standing(MAIN, number + 1)) for number in range(4)]


def test_only_so_many_are_left_out() -> None:
    order = order_of(*[1] * (SPARED_BOUND + 2))
    spared = Spared(order, lambda _oid: LAST)
    assert len(list(spared.ascending(MAIN))) == 2
    assert len(spared.left_out) == SPARED_BOUND


@given(st.lists(st.integers(1, 5), max_size=60), st.data())
def test_all_come_once_and_none_from_far_away(sizes: list[int], data: st.DataObject) -> None:
    order = order_of(*sizes)
    easy = data.draw(st.sets(st.sampled_from(sorted(order.standings)))) if sizes else set()
    found = [cached.oid for cached in Spared(order, lambda oid: EASY if oid in easy else PLAIN).ascending(MAIN)]
    waiting = sorted(order.standings)
    for oid in found:
        assert oid in waiting[:NEXT]
        assert oid in easy or not easy.intersection(waiting[:NEXT])
        waiting.remove(oid)
    assert not waiting


@pytest.mark.parametrize("policy", [Lru, Lrfu, TinyLfu])
def test_where_nothing_is_held_elsewhere_nothing_changes(policy: type) -> None:
    class Through:
        """The policy on an order that spares nothing."""

        def __init__(self) -> None:
            self.policy = policy()
            self.on_insert, self.on_use = self.policy.on_insert, self.policy.on_use

        def choose(self, order: MemoryOrder, in_use: set, needed_bytes: int) -> Choice:
            return self.policy.choose(Spared(order, lambda _oid: PLAIN), in_use, needed_bytes)

    trace = traces.zipf(traces.mixed_sizes(200, seed=3), 3000, seed=3)
    capacity_bytes = trace.total_bytes // 4
    assert hit_ratio(Through(), trace, capacity_bytes) == hit_ratio(policy(), trace, capacity_bytes) > 0
