from __future__ import annotations

import pytest

from luxfuse.core import memory
from luxfuse.core.memory import MIB, default_limit, least_of, shares


@pytest.mark.parametrize(("machine", "limit"), [(1 << 30, 256), (4 << 30, 1024), (8 << 30, 2048), (1 << 40, 2048)])
def test_a_quarter_of_the_machine_and_no_more_than_what_is_of_use(machine: int, limit: int) -> None:
    assert default_limit(machine) == limit * MIB


@pytest.mark.parametrize("limit", [192, 256, 300, 512, 1024, 2048, 1 << 20])
def test_all_shares_together_stay_inside_the_limit_with_a_part_to_spare(limit: int) -> None:
    parts = shares(limit * MIB)
    assert memory.LEAST_DIRTY <= parts.most_dirty <= memory.MOST_DIRTY
    dirty = parts.most_dirty * memory.DIRTY_BYTES if parts.most_dirty > memory.LEAST_DIRTY else 0  # the least may exceed it
    used = parts.flights_bytes + parts.kept_bytes + parts.uploads_bytes + dirty
    spare = (limit * MIB - memory.BASE_BYTES) // memory.SHARES
    assert memory.BASE_BYTES + used <= limit * MIB - min(spare, memory.LEAST_BYTES)
    assert min(parts.flights_bytes, parts.kept_bytes, parts.uploads_bytes) >= memory.LEAST_BYTES


def test_there_is_a_least_that_it_works_with() -> None:
    assert shares(32 * MIB) == memory.Shares(16 * MIB, 16 * MIB, 16 * MIB, 10_000)


def test_as_many_files_may_wait_for_the_store_as_there_is_memory_for() -> None:
    assert [shares(limit << 20).most_dirty for limit in (256, 1024, 2048, 8192)] == [10_000, 55_050, 219_545, 300_000]


def test_the_least_limit_of_the_control_groups_counts() -> None:
    assert least_of([], 100) == 100
    assert least_of(["max\n", "70\n", "80\n", ""], 100) == 70
    assert least_of(["9223372036854771712\n"], 100) == 100
