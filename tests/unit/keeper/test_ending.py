"""Which daemons that say they are stuck are ended, in plain values."""

from __future__ import annotations

import pytest

from luxfuse.keeper.ending import LATE_S, MOST, WITHIN_S, Ending, Endings


def test_so_many_an_hour_and_then_no_more_until_it_is_over() -> None:
    endings = Endings()
    for daemon in range(MOST):
        assert endings.judge(daemon + 1, 60.0 * daemon, 60.0 * daemon) is Ending.END
    later_s = 60.0 * MOST
    assert [endings.judge(9, later_s + n, later_s + n) for n in range(3)] == [Ending.LEAVE, Ending.NOTHING, Ending.NOTHING]
    assert endings.judge(9, WITHIN_S, WITHIN_S) is Ending.END, "the first one is an hour ago"
    assert endings.judge(10, WITHIN_S, WITHIN_S) is Ending.LEAVE


def test_one_is_ended_once() -> None:
    endings = Endings()
    assert [endings.judge(7, 1.0, 1.0 + n) for n in range(3)] == [Ending.END, Ending.NOTHING, Ending.NOTHING]
    assert endings.judge(8, 5.0, 5.0) is Ending.END


@pytest.mark.parametrize("said_s", [-LATE_S, 1.0])
def test_what_was_said_at_another_time_is_not_believed(said_s: float) -> None:
    assert Endings().judge(1, said_s, 0.0) is Ending.NOTHING
