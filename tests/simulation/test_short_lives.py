"""Many short runs of one node (`tests.simulation.one_node`): a few steps, a kill or a power cut, and what is there then."""

from __future__ import annotations

import pytest

from tests.simulation.one_node import EXPECTED_LOGS, SHORT, play_all
from tests.support.seeds import seeds

SEEDS = 2000
"""Each takes 25 to 30 ms of processor time."""

pytestmark = pytest.mark.expected_logs(*EXPECTED_LOGS)


def test_nothing_acknowledged_is_lost() -> None:
    play_all(seeds(SEEDS), SHORT)
