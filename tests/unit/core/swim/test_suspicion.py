"""How long a suspect is given."""

from __future__ import annotations

import pytest

from luxfuse.core.swim.config import SwimConfig
from luxfuse.core.swim.suspicion import Health, Suspicion

CONFIG = SwimConfig()


def test_the_time_shrinks_with_each_who_confirms() -> None:
    suspicion = Suspicion("a", 100, CONFIG, 1000)
    deadlines = [suspicion.deadline_s]
    for by in ("a", "b", "b", "c", "d"):
        suspicion.confirm(by)
        deadlines.append(suspicion.deadline_s)
    assert deadlines[0] == deadlines[1] == pytest.approx(1000 + 8 * CONFIG.patience)
    assert deadlines[1] > deadlines[2] == deadlines[3] > deadlines[4] == deadlines[5] == pytest.approx(1008)


def test_only_a_new_accuser_is_news_and_only_as_many_as_are_needed() -> None:
    suspicion = Suspicion("a", 100, CONFIG, 0)
    assert [suspicion.confirm(by) for by in ("a", "b", "b", "c", "d")] == [False, True, False, True, False]


def test_nobody_is_waited_for_in_a_cluster_without_enough_others() -> None:
    assert Suspicion("a", 3, CONFIG, 0).deadline_s == pytest.approx(4)
    assert Suspicion("a", 4, CONFIG, 0).deadline_s == pytest.approx(24)


def test_a_node_that_is_called_dead_has_the_shortest_time() -> None:
    suspicion = Suspicion("a", 100, CONFIG, 0)
    suspicion.hurry()
    assert suspicion.deadline_s == pytest.approx(8)


def test_time_in_which_we_were_deaf_is_given_back() -> None:
    suspicion = Suspicion("a", 3, CONFIG, 0)
    suspicion.postpone(30)
    assert suspicion.deadline_s == pytest.approx(34)


def test_health_has_bounds() -> None:
    health = Health(8)
    health.change(-3)
    assert (health.score, health.factor) == (0, 1)
    health.change(100)
    assert (health.score, health.factor) == (7, 8)


def test_the_larger_the_cluster_the_more_often_news_is_sent() -> None:
    assert [CONFIG.transmissions(nodes) for nodes in (1, 3, 30, 300, 4096)] == [3, 5, 11, 18, 25]
    assert [CONFIG.exchange_s(nodes) for nodes in (1, 32, 64, 300)] == [30, 30, 60, 150]
