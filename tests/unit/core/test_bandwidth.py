from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.bandwidth import BURST_S, BandwidthQueue

MIB = 1 << 20


def drain(queue: BandwidthQueue[str], now_s: float = 0.0) -> list[tuple[float, str]]:
    """Return who goes when, if the clock is looked at whenever it is time."""
    gone = []
    while (wait_s := queue.wait_s()) is not None:
        now_s += wait_s + 1e-9
        gone += [(now_s, item) for item in queue.take(now_s)]
    return gone


@given(st.lists(st.integers(1, 8 * MIB), min_size=1, max_size=40), st.integers(MIB // 4, 100 * MIB))
def test_the_rate_is_kept(sizes: list[int], rate: int) -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(rate, 0.0)
    for number, size in enumerate(sizes):
        queue.put(size, str(number))
    gone = drain(queue)
    assert [item for _, item in gone] == [str(number) for number in range(len(sizes))]
    for number, (now_s, _) in enumerate(gone):
        sent_before = sum(sizes[:number])
        assert sent_before <= rate * (now_s + BURST_S) + 1
        # Nobody waits longer than the rate asks for.
        assert now_s <= max(0.0, sent_before / rate - BURST_S) + 1e-6


def test_what_was_not_used_is_not_saved_up() -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(MIB, 0.0)
    assert queue.take(1000.0) == []
    for number in range(10):
        queue.put(MIB, str(number))
    assert len(queue.take(1000.0)) == 1
    assert queue.wait_s() == pytest.approx(1 - BURST_S)


def test_few_in_the_foreground_do_not_wait_for_many_in_the_background() -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(MIB, 0.0)
    for number in range(100):
        queue.put(MIB, f"load {number}", background=True)
    queue.take(5.0)
    queue.put(MIB, "read 1")
    queue.put(MIB, "read 2")
    order = [item for _, item in drain(queue, 5.0)]
    assert order.index("read 1") <= 1
    assert order.index("read 2") <= 3


def test_both_classes_get_as_many_bytes_whatever_their_sizes() -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(MIB, 0.0)
    for _ in range(50):
        queue.put(4 * MIB, "read")
    for _ in range(400):
        queue.put(MIB, "load", background=True)
    gone = [item for now_s, item in drain(queue) if now_s < 100]
    assert gone.count("read") * 4 == pytest.approx(gone.count("load"), abs=5)


def test_what_did_not_wait_is_paid_by_those_who_do() -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(MIB, 0.0)
    queue.charge(2 * MIB)
    queue.put(1, "a")
    assert queue.take(1.0) == []
    assert queue.take(2.0) == ["a"]


def test_who_does_not_queue_does_not_overtake_those_who_do() -> None:
    queue: BandwidthQueue[str] = BandwidthQueue(MIB, 0.0)
    assert queue.try_take(2 * MIB, 0.0)
    assert not queue.try_take(1, 1.0)
    assert queue.try_take(1, 2.0)
    queue.put(MIB, "a")
    assert not queue.try_take(1, 2.0)
    assert queue.take(2.0) == ["a"]
    assert not queue.try_take(1, 2.5)
    assert queue.try_take(1, 3.0)
