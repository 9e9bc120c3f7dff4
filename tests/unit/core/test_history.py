"""What a mount did over time, and which files were busy."""

from __future__ import annotations

from typing import Any

import pytest

from luxfuse.core import busiest
from luxfuse.core.busiest import Busiest
from luxfuse.core.history import LEVELS, SERIES, Ring
from tests.unit.control.samples import sample_status


def status(**changes: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = dict(sample_status())
    return {name: {**value, **changes[name]} if name in changes else value for name, value in document.items()}


def test_rates_are_of_the_time_that_passed() -> None:
    ring = Ring(2.0, 10)
    ring.feed(100.0, 1000.0, status(reads={"understore_bytes": 1000}))
    assert ring.document()["times"] == ()
    ring.feed(101.0, 1001.0, status(reads={"understore_bytes": 9000}))
    assert ring.document()["times"] == ()
    ring.feed(104.0, 1004.0, status(reads={"understore_bytes": 9000}, dirty={"bytes": 77}))
    document: Any = ring.document()
    assert document["times"] == (1004.0,)
    assert document["series"]["understore"] == (2000.0,)
    assert document["series"]["dirty_bytes"] == (77.0,)
    assert set(document["series"]) == set(SERIES)
    assert set(LEVELS) <= set(SERIES)


def test_what_is_cached_is_told_by_tier() -> None:
    ring = Ring(2.0, 10)
    tiers = [{"name": name, "used_bytes": used} for name, used in (("ssd", 5), ("hdd", 7), ("ssd", 6))]
    for second in (0.0, 2.0):
        ring.feed(second, second, {**status(), "tiers": tiers})
    series: Any = ring.document()["series"]
    assert {name: series[name] for name in series if name.startswith("cached_")} == {
        "cached_mem": (0.0,), "cached_ssd": (11.0,), "cached_hdd": (7.0,)
    }  # fmt: skip


def test_percentiles_are_of_what_came_since() -> None:
    ring = Ring(2.0, 10)
    for second in (0.0, 2.0):
        ring.feed(second, second, status())
    document: Any = ring.document()
    assert document["series"]["store_p99"] == (0.0,)


def test_a_ring_is_bounded_and_another_daemon_counts_anew() -> None:
    ring = Ring(2.0, 3)
    for number in range(10):
        ring.feed(2.0 * number, 2.0 * number, status(reads={"ssd_bytes": 100 * number}))
    document: Any = ring.document()
    assert document["times"] == (14.0, 16.0, 18.0)
    assert document["series"]["ssd"] == (50.0, 50.0, 50.0)
    ring.feed(20.0, 20.0, {**status(), "pid": 43})
    assert len(ring.document()["times"]) == 3  # type: ignore[arg-type]


def test_the_busiest_files_of_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Busiest()
    counts.add(1, 1, 0)
    counts.add(2, 0, 1 << 20)
    counts.add(1, 2, 0)
    assert counts.top(5) == [(2, (0, 1 << 20)), (1, (3, 0))]
    counts.turn()
    counts.add(1, 100, 0)
    assert counts.top(1) == [(1, (103, 0))]
    counts.turn()
    counts.turn()
    assert counts.top(5) == []
    monkeypatch.setattr(busiest, "MOST", 4)
    for inode in range(100):
        counts.add(inode, inode, 0)
    assert [inode for inode, _ in counts.top(3)] == [99, 98, 97]
    assert len(counts.top(1000)) <= 8
