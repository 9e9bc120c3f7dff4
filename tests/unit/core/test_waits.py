"""When closes of small files are worth a hint."""

from __future__ import annotations

from luxfuse.core.waits import MANY, REMEMBERED, SMALL_BYTES, SmallCloses


def test_many_small_closes_that_wait_long_are_told_of_once() -> None:
    closes = SmallCloses()
    told = [closes.note(n * 0.3, 0.3, 1000) for n in range(200)]
    assert told.count(True) == 1
    assert told.index(True) == MANY - 1
    assert closes.hint is not None
    assert "async-through" in closes.hint


def test_what_is_not_worth_it() -> None:
    for pause_s, waited_s, size in ((0.3, 0.3, SMALL_BYTES + 1), (0.01, 0.005, 1000), (5.0, 4.0, 1000)):
        closes = SmallCloses()
        assert not any(closes.note(n * pause_s, waited_s, size) for n in range(3 * REMEMBERED)), (pause_s, waited_s)
        assert closes.hint is None
