from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.eviction import choose_victims

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
