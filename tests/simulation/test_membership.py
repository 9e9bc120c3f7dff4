"""The membership protocol in clusters, in virtual time: what all come to believe, and how soon."""

from __future__ import annotations

import pytest

from luxfuse.core.members import MemberState
from tests.simulation.cluster import Cluster
from tests.simulation.network import Link


@pytest.mark.parametrize("count", [3, 30])
def test_all_come_to_know_each_other(count: int) -> None:
    cluster = Cluster(count, seed=1)
    assert cluster.network.run(30, cluster.agree), cluster.disagreement()


@pytest.mark.parametrize("count", [3, 30])
def test_a_node_that_crashed_is_declared_dead_by_all(count: int) -> None:
    cluster = Cluster(count, seed=2, link=Link(loss=0.05))
    cluster.settle()
    victim = cluster.hosts[1]
    cluster.network.crash(victim)
    assert cluster.network.run(60, lambda: cluster.all_believe(victim, [MemberState.DEAD])), cluster.disagreement()
