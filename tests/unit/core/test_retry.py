"""The backoff schedule is bounded, jittered over the whole interval, and stops at the deadline."""

from __future__ import annotations

import random
from itertools import islice

from luxfuse.core.retry import backoff_delays, next_delay


class Highest:
    def random(self) -> float:
        return 1.0


def test_ceiling_doubles_up_to_the_cap():
    assert list(islice(backoff_delays(Highest(), base_s=1, cap_s=5), 5)) == [1, 2, 4, 5, 5]


def test_full_jitter_covers_the_interval_from_zero():
    first = [next(backoff_delays(random.Random(seed), base_s=1)) for seed in range(500)]
    assert min(first) < 0.05
    assert max(first) > 0.95
    assert 0.4 < sum(first) / len(first) < 0.6


def test_same_seed_same_schedule():
    assert list(islice(backoff_delays(random.Random(7)), 9)) == list(islice(backoff_delays(random.Random(7)), 9))


def test_no_delay_past_the_deadline():
    assert next_delay(iter([1.0]), now_s=10, deadline_s=12) == 1.0
    assert next_delay(iter([2.0]), now_s=10, deadline_s=12) is None
