"""The goals of the default eviction policy, on traces smaller than those of ``python -m tests.bench.policies``."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat

import pytest
import xxhash

from luxfuse.core.eviction import Cached, Lrfu, Lru, Standing
from luxfuse.core.tinylfu import TinyLfu
from tests.bench import policy_traces as traces
from tests.bench.policy_simulation import Random, hit_ratio, optimal_hit_ratio
from tests.bench.policy_traces import PAGE, Trace

OBJECTS = 600
FRACTIONS = (0.1, 0.3, 0.5, 0.9)


def bytes_of(trace: Trace, fraction: float) -> int:
    return int(trace.total_bytes * fraction)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("trace", [
    traces.shuffled(traces.equal_sizes(OBJECTS), 8, seed=3), traces.sequential(traces.equal_sizes(OBJECTS), 8),
], ids=["shuffled", "sequential"])  # fmt: skip
def test_epochs_hit_what_the_cache_holds(trace: Trace, fraction: float) -> None:
    capacity_bytes = bytes_of(trace, fraction)
    found = hit_ratio(TinyLfu(), trace, capacity_bytes)
    assert 0.95 * fraction <= found <= optimal_hit_ratio(trace, capacity_bytes)
    assert hit_ratio(Lru(), trace, capacity_bytes) < 0.75 * found


@pytest.mark.parametrize("fraction", [0.3, 0.6])
@pytest.mark.parametrize("in_order", [True, False])
def test_epochs_of_mixed_sizes_hit_what_the_cache_holds(in_order: bool, fraction: float) -> None:
    sizes = traces.mixed_sizes(1500, seed=3)
    trace = traces.sequential(sizes, 5) if in_order else traces.shuffled(sizes, 5, seed=3)
    assert hit_ratio(TinyLfu(), trace, bytes_of(trace, fraction)) >= 0.95 * fraction


def test_files_that_are_opened_several_times_in_a_row_make_no_difference() -> None:
    once = traces.shuffled(traces.equal_sizes(OBJECTS), 8, seed=3)
    thrice = Trace(
        list(chain.from_iterable(repeat(number, 3) for number in once.reads)),
        once.sizes,
        bytes(chain.from_iterable((flag, 0, 0) for flag in once.counted)),
    )
    assert hit_ratio(TinyLfu(), thrice, bytes_of(once, 0.5)) >= 0.95 * 0.5


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_another_data_set_takes_the_cache_over(fraction: float) -> None:
    trace = traces.another_data_set(OBJECTS, 6, seed=3)
    assert hit_ratio(TinyLfu(), trace, bytes_of(trace, fraction / 2)) >= 0.95 * fraction


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_popular_objects_are_found_as_well_as_by_the_others(fraction: float, mixed: bool) -> None:
    sizes = traces.mixed_sizes(OBJECTS, seed=3) if mixed else traces.equal_sizes(OBJECTS)
    trace = traces.zipf(sizes, 20 * OBJECTS, seed=3)
    capacity_bytes = bytes_of(trace, fraction)
    best = max(hit_ratio(policy, trace, capacity_bytes) for policy in (Lru(), Lrfu(), Random()))
    assert hit_ratio(TinyLfu(), trace, capacity_bytes) >= 0.97 * best


@pytest.mark.parametrize("beside", [0, 4])
def test_the_hot_set_survives_a_scan_of_five_times_the_cache(beside: int) -> None:
    trace = traces.scan(hot=160, scanned=1000, seed=3, beside=beside)
    assert hit_ratio(TinyLfu(), trace, 200 * PAGE) >= 0.95
    assert hit_ratio(Lru(), trace, 200 * PAGE) < 0.3


class CountOnly:
    """An order that can be asked only what costs nothing."""

    count = 0

    def bytes_in(self, segment: int) -> int:
        return PAGE * self.count

    def ascending(self, segment: int) -> Iterator[Cached]:
        raise AssertionError("an insertion or a use must not read the order")


def test_an_object_costs_less_than_64_bytes_of_memory() -> None:
    """Worst just after the sketch has grown. Ids come and go, as those of a store do."""
    order, policy = CountOnly(), TinyLfu()
    tracemalloc.start()
    try:
        for number in range((1 << 14) + 1):
            oid = xxhash.xxh3_128_digest(number.to_bytes(8))
            standing = policy.on_insert(oid, PAGE, order, used=True)
            policy.on_use(oid, Standing(standing.segment, standing.rank // 2))
            order.count += 1
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 64 * order.count
