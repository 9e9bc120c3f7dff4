"""Long runs of one node (`tests.simulation.one_node`), runs with threads, and whether its checker notices a loss.

The record is that of storms (`tests.storm.record`): what a call acknowledged is there after the next restart, and what
failed is as it was or as it would have become. In the end, when nothing fails any more, the bucket has what was read.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.simulation.one_node import EXPECTED_LOGS, LONG, Program, play_all, play_one
from tests.support.harness import mounted
from tests.support.seeds import seeds

SEEDS = 150
"""Without threads; each takes 50 to 70 ms of processor time."""
SEEDS_WITH_THREADS = 8
"""Each takes about five times as long."""
SECONDS = 600.0

pytestmark = pytest.mark.expected_logs(*EXPECTED_LOGS)


def test_nothing_acknowledged_is_lost() -> None:
    play_all(seeds(SEEDS), LONG)


def test_nothing_acknowledged_is_lost_by_threads() -> None:
    """What runs in threads really does; so a seed is not the same each time."""
    for seed in seeds(SEEDS_WITH_THREADS):
        play_one(seed, threads=True)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_acknowledged_is_lost_for_long() -> None:
    seed, runs, give_up_at = random.randrange(1 << 32), 0, time.monotonic() + SECONDS
    while time.monotonic() < give_up_at:
        play_one(seed + runs)
        runs += 1
    print(f"{runs} seeds")


async def test_the_checker_takes_nothing_for_known_that_a_lost_answer_may_bring(tmp_path: Path) -> None:
    """The copy of a rename has replaced a file, though the rename fails: that shows when the store is asked again."""
    program = Program(1)
    names = iter("abab")
    program.choose = lambda: next(names)  # type: ignore[method-assign]
    async with mounted(tmp_path, program.driver, write_mode="cache-through") as m:
        program.begin(m)
        await program.look()
        await program.step(program.write)
        await program.step(program.write)
        program.driver.lose_answer_next("copy")
        await program.step(program.rename)
        assert program.failed == 1
        await program.look()
        m.clock.advance(100)
        await program.look()
        assert program.record.content("b") is None
        program.unsettled = set()
        await program.look()
        assert program.record.content("b") == program.record.content("a") == program.driver.objects["a"][0]


def test_the_checker_notices_what_is_lost() -> None:
    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
        many_lose()


def many_lose() -> None:
    """Play until what was lost is noticed."""
    for seed in range(100):
        play_one(seed, losing=True)
