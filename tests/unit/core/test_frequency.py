from __future__ import annotations

import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core import frequency
from luxfuse.core.frequency import BYTES_PER_ENTRY, MAX_COUNT, MIN_ENTRIES, FrequencySketch

SAMPLE = 1 << 20


def ids(count: int, first: int = 0) -> list[bytes]:
    return [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(first, first + count)]


def sketch_of(uses: dict[bytes, int], objects: int = 100, sample: int = SAMPLE) -> FrequencySketch:
    sketch = FrequencySketch()
    sketch.fit(objects, sample)
    for oid, count in uses.items():
        for _ in range(count):
            sketch.add(oid)
    return sketch


@given(st.lists(st.integers(0, 20), max_size=60))
def test_an_estimate_is_never_too_low(counts: list[int]) -> None:
    uses = dict(zip(ids(len(counts)), counts, strict=True))
    sketch = sketch_of(uses)
    assert all(sketch.estimate(oid) >= min(count, MAX_COUNT) for oid, count in uses.items())


def test_it_is_nearly_always_right_with_as_many_ids_as_entries() -> None:
    rng = random.Random(1)
    uses = {oid: rng.randrange(1, 8) for oid in ids(MIN_ENTRIES)}
    sketch = sketch_of(uses)
    wrong = sum(sketch.estimate(oid) != count for oid, count in uses.items())
    assert wrong <= MIN_ENTRIES // 100
    assert sum(sketch.estimate(oid) > 0 for oid in ids(MIN_ENTRIES, first=MIN_ENTRIES)) <= MIN_ENTRIES // 100


def test_ten_times_as_many_ids_as_entries_are_still_told_from_unknown_ones() -> None:
    """A cache that holds a tenth of the data."""
    sketch = sketch_of(dict.fromkeys(ids(10 * MIN_ENTRIES), 3))
    overestimated = sum(sketch.estimate(oid) > 3 for oid in ids(10 * MIN_ENTRIES))
    assert overestimated < MIN_ENTRIES
    unknown = ids(1000, first=10 * MIN_ENTRIES)
    assert sum(sketch.estimate(oid) > 2 for oid in unknown) < 300


def test_growing_forgets_nothing() -> None:
    uses = {oid: 1 + place % 5 for place, oid in enumerate(ids(200))}
    sketch = sketch_of(uses)
    before = {oid: sketch.estimate(oid) for oid in uses}
    sketch.fit(5 * MIN_ENTRIES, SAMPLE)
    assert sketch.entries == 8 * MIN_ENTRIES
    assert {oid: sketch.estimate(oid) for oid in uses} == before


def test_all_counters_are_halved_after_the_sample() -> None:
    few, many, *others = ids(200)
    sketch = sketch_of({few: 3, many: 10}, sample=113)
    for oid in others[:99]:
        sketch.add(oid)
    assert (sketch.estimate(few), sketch.estimate(many)) == (3, 10)
    sketch.add(others[99])
    assert (sketch.estimate(few), sketch.estimate(many)) == (1, 5)


def test_a_halving_under_way_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep byte by byte, or all at once: all counts are the same at all times, also of what is used meanwhile."""
    slow, fast = FrequencySketch(), FrequencySketch()
    known = ids(400)
    for place in range(1700):
        oid = known[place * 7 % 400]
        for sketch, sweep_bytes in ((slow, 8), (fast, 1 << 30)):
            monkeypatch.setattr(frequency, "SWEEP_BYTES", sweep_bytes)
            sketch.fit(100, 1600)
            sketch.add(oid)
        if place == 1650:
            assert slow.state() != fast.state()
        if place % 10 == 0:
            assert [slow.estimate(oid) for oid in known] == [fast.estimate(oid) for oid in known]
    slow.fit(MIN_ENTRIES + 1, 1600)
    fast.fit(MIN_ENTRIES + 1, 1600)
    assert [slow.estimate(oid) for oid in known] == [fast.estimate(oid) for oid in known]


def test_an_object_costs_less_than_64_bytes_and_the_sketch_has_an_upper_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "MAX_ENTRIES", 1 << 12)
    sketch = FrequencySketch()
    for objects in (MIN_ENTRIES + 1, 1 << 12, 1 << 14):
        sketch.fit(objects, SAMPLE)
        assert len(sketch.state()) <= min(64 * objects, (1 << 12) * BYTES_PER_ENTRY + 64)
    assert sketch.entries == 1 << 12


def test_a_state_is_loaded_again() -> None:
    uses = {oid: 1 + place % 5 for place, oid in enumerate(ids(700))}
    sketch = sketch_of(uses, objects=700)
    loaded = FrequencySketch.load(sketch.state())
    assert loaded is not None
    assert loaded.state() == sketch.state()
    assert [loaded.estimate(oid) for oid in uses] == [sketch.estimate(oid) for oid in uses]


@pytest.mark.parametrize("damage", [
    lambda state: b"", lambda state: state[:-1], lambda state: state + b"\0", lambda state: b"\xff" + state[1:],
    lambda state: state[:4] + b"\xff\xff\xff\xff" + state[8:], lambda state: state[:4] + b"\0\0\0\0" + state[8:],
])  # fmt: skip
def test_another_version_or_size_is_not_loaded(damage) -> None:
    assert FrequencySketch.load(damage(FrequencySketch().state())) is None
