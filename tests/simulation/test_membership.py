"""The membership protocol in clusters, in virtual time: what all come to believe, how soon, and at what cost.

A crash is known to all within

    3 + min(2 n - 3, 16) + 4 max(1, log10 n)   periods

in a cluster of n: one until the next probe begins and one until it is judged, until three nodes have probed it each for
itself (the last probe of a round and the first of the next are at most 2 n - 3 apart; in larger clusters one node in each
period does so on average, so that more than 16 are needed once in 60,000 crashes), the shortest suspicion, and one
until the last one has heard. Half of that is usual.
"""

from __future__ import annotations

import math

import pytest

from luxfuse.core.members import MemberState
from luxfuse.core.swim.swim import Swim, SwimConfig
from tests.simulation.cluster import INCARNATION, Cluster, address, info, name_of
from tests.simulation.network import Host, Link

ROUGH = Link(loss=0.05, delay_s=0.001, jitter_s=0.01, duplication=0.02)
"""Datagrams that are lost, doubled, and overtake each other."""


def detection_s(count: int) -> float:
    return 3 + min(2 * count - 3, 16) + SwimConfig().suspicion_s(count)


@pytest.mark.parametrize("count", [3, 30])
def test_all_come_to_know_each_other_by_one_seed(count: int) -> None:
    for seed in range(3):
        cluster = Cluster(count, seed, ROUGH)
        assert cluster.network.run(15, cluster.agree), cluster.disagreement()


@pytest.mark.parametrize(("count", "seeds"), [(3, 40), (30, 12), (300, 1)])
def test_a_crash_is_known_to_all_within_the_bound(count: int, seeds: int) -> None:
    for seed in range(seeds):
        cluster = Cluster(count, seed, ROUGH, acquainted=True)
        cluster.network.run(4 + cluster.network.rng.random())
        victim = cluster.hosts[seed % count]
        cluster.network.crash(victim)
        known = cluster.network.run(detection_s(count), lambda c=cluster, v=victim: c.all_believe(v, [MemberState.DEAD]))
        assert known, (seed, cluster.disagreement())
        assert {name for _, _, name in cluster.deaths} == {name_of(victim)}


def test_several_crashes_at_once_are_known_too() -> None:
    cluster = Cluster(30, 5, ROUGH, acquainted=True)
    cluster.network.run(5)
    for victim in cluster.hosts[10:20]:
        cluster.network.crash(victim)
    # A third of the probes, and of the helpers, is wasted on them.
    assert cluster.network.run(2 * detection_s(30), cluster.agree), cluster.disagreement()


def no_false_death(count: int, seconds: float) -> Cluster:
    cluster = Cluster(count, 11, ROUGH, acquainted=True)
    cluster.network.run(seconds)
    assert not cluster.deaths
    assert sum(host.machine.statistics().suspicions for host in cluster.hosts) > 0  # some were near it
    return cluster


@pytest.mark.parametrize("count", [10, pytest.param(30, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.slow)])
def test_nobody_is_declared_dead_in_an_hour_of_five_percent_loss(count: int) -> None:
    no_false_death(count, 3600)


@pytest.mark.parametrize("seconds", [40, pytest.param(120, marks=pytest.mark.slow)])
def test_nobody_is_declared_dead_in_a_large_cluster(seconds: float) -> None:
    no_false_death(300, seconds)


@pytest.mark.parametrize(("count", "seconds"), [(3, 60), (30, 20), (30, 300), (100, 90)])
def test_both_sides_of_a_partition_find_each_other_again(count: int, seconds: float) -> None:
    cluster = Cluster(count, 3, ROUGH, acquainted=True)
    cluster.network.run(5)
    middle = count // 2
    cluster.network.split([cluster.hosts[:middle], cluster.hosts[middle:]])
    cluster.network.run(seconds)
    cluster.network.heal()
    assert cluster.network.run(90, cluster.agree), cluster.disagreement()
    # Who lives on the own side is not buried by what the other side believed.
    healed_s = 5 + seconds
    sides = {name_of(host): host in cluster.hosts[:middle] for host in cluster.hosts}
    assert not [death for death in cluster.deaths if death[0] > healed_s and sides[death[1]] == sides[death[2]]]


def test_a_partition_longer_than_the_dead_are_remembered_ends_by_the_seeds() -> None:
    cluster = Cluster(6, 3, config=SwimConfig(forget_s=120))
    cluster.settle()
    cluster.network.split([cluster.hosts[:3], cluster.hosts[3:]])
    cluster.network.run(400)
    assert all(len(host.machine.members()) == 2 for host in cluster.hosts)
    cluster.network.heal()
    assert cluster.network.run(90, cluster.agree), cluster.disagreement()


@pytest.mark.parametrize("seed", range(6))
def test_a_process_that_was_stopped_for_a_while_declares_nobody_dead(seed: int) -> None:
    cluster = Cluster(10, seed, ROUGH, acquainted=True)
    cluster.network.run(5)
    sleeper = cluster.hosts[4]
    cluster.network.pause(sleeper, 30)
    cluster.network.run(29)
    assert cluster.all_believe(sleeper, [MemberState.DEAD])
    assert cluster.network.run(30, cluster.agree), cluster.disagreement()
    cluster.network.run(60)
    assert {name for _, _, name in cluster.deaths} == {name_of(sleeper)}
    assert sleeper.machine.statistics().late == 1


def test_a_slow_process_makes_no_others_dead() -> None:
    cluster = Cluster(10, 1, acquainted=True)
    slow = cluster.hosts[0]
    for number in range(150):
        cluster.network.at(2 + 2 * number, cluster.network.pause, slow, 1.4)
    cluster.network.run(310)
    assert {name for _, _, name in cluster.deaths} <= {name_of(slow)}
    assert not [by for _, by, _ in cluster.deaths if by == name_of(slow)]
    assert cluster.network.run(30, cluster.agree), cluster.disagreement()


def test_a_node_that_one_cannot_reach_is_reached_by_others() -> None:
    cluster = Cluster(10, 1, acquainted=True)
    cluster.network.links[address(1), address(2)] = Link(up=False)
    cluster.network.run(300)
    assert not cluster.deaths
    assert cluster.agree()


def test_a_node_that_hears_nothing_is_declared_dead_and_comes_back() -> None:
    cluster = Cluster(10, 1, acquainted=True)
    deaf = cluster.hosts[3]
    for host in cluster.hosts:
        cluster.network.links[host.address, deaf.address] = Link(up=False)
    cluster.network.run(60)
    assert cluster.all_believe(deaf, [MemberState.DEAD])
    cluster.network.links.clear()
    assert cluster.network.run(60, cluster.agree), cluster.disagreement()


# Lives.


def member_everywhere(cluster: Cluster, subject: Host) -> bool:
    """Whether all others believe the subject to live as it is now."""
    own = subject.machine.statistics().incarnation
    members = [host.machine.member(name_of(subject)) for host in cluster.hosts if host is not subject]
    return all(m is not None and (m.state, m.incarnation) == (MemberState.ALIVE, own) for m in members)


def test_a_node_that_restarts_at_once_is_the_same_node() -> None:
    cluster = Cluster(10, 2, ROUGH, acquainted=True)
    cluster.network.run(5)
    host = cluster.hosts[5]
    cluster.restart(host)
    assert host.machine.statistics().incarnation == INCARNATION + 5
    assert cluster.network.run(15, lambda: cluster.agree() and member_everywhere(cluster, host)), cluster.disagreement()
    assert not cluster.deaths


@pytest.mark.parametrize("away_s", [0.1, 40.0])
def test_a_node_whose_clock_went_back_while_it_was_away_learns_its_incarnation(away_s: float) -> None:
    cluster = Cluster(10, 2, ROUGH, acquainted=True)
    cluster.network.run(5)
    host = cluster.hosts[5]
    cluster.network.crash(host)
    cluster.network.run(away_s)
    cluster.network.restart(host, lambda now_s: cluster.swim(5, now_s, incarnation=17))
    host.call(lambda swim, now_s: swim.join([address(1)], now_s))
    assert cluster.network.run(30, lambda: cluster.agree() and member_everywhere(cluster, host)), cluster.disagreement()
    assert host.machine.statistics().incarnation > INCARNATION


def test_a_node_comes_back_at_another_address() -> None:
    cluster = Cluster(5, 2, ROUGH, acquainted=True)
    cluster.network.run(5)
    cluster.network.crash(cluster.hosts[4])

    def moved(now_s: float) -> Swim:
        there = info(4, host="10.9.0.4")
        return Swim(there, incarnation=INCARNATION + 6, config=cluster.config, rng=cluster.network.rng, now_s=now_s)

    host = cluster.network.add(("10.9.0.4", 7400), moved)
    host.call(lambda swim, now_s: swim.join([address(0)], now_s))
    cluster.network.run(30)
    for other in cluster.hosts[:4]:
        member = other.machine.member(f"{4:016x}")
        assert (member.state, member.info.host) == (MemberState.ALIVE, "10.9.0.4")
    assert len(host.machine.alive()) == 4


def test_two_nodes_of_one_name_are_told_of() -> None:
    cluster = Cluster(5, 2, acquainted=True)
    twin = cluster.network.add(
        ("10.9.0.4", 7400),
        lambda now_s: Swim(
            info(4, host="10.9.0.4"), incarnation=INCARNATION, config=cluster.config, rng=cluster.network.rng, now_s=now_s
        ),
    )
    twin.call(lambda swim, now_s: swim.join([address(0)], now_s))
    cluster.network.run(60)
    assert twin.machine.statistics().conflicts > 0
    assert twin.machine.statistics().conflict == address(4)
    assert twin.machine.statistics().incarnation < INCARNATION + 300  # they do not fight all the time


def test_a_node_that_leaves_has_left_for_all() -> None:
    for seed in range(5):
        cluster = Cluster(30, seed, ROUGH, acquainted=True)
        cluster.network.run(5)
        gone = cluster.hosts[7]
        gone.call(lambda swim, now_s: swim.leave(now_s))
        cluster.network.at(cluster.network.now_s + 0.1, cluster.network.crash, gone)
        assert cluster.network.run(3, lambda c=cluster, g=gone: c.all_believe(g, [MemberState.LEFT]))


# Broadcasts.


@pytest.mark.parametrize(("count", "broadcasts"), [(3, 200), (30, 200), (300, 6)])
def test_a_broadcast_reaches_all_once_within_a_second(count: int, broadcasts: int) -> None:
    cluster = Cluster(count, 4, ROUGH, acquainted=True)
    cluster.network.run(8)
    started_s = cluster.network.now_s
    for number in range(broadcasts):
        origin = cluster.network.rng.choice(cluster.hosts)
        payload = number.to_bytes(2, "big") * 100
        cluster.network.at(started_s + number / 10, origin.call, lambda swim, now_s, p=payload: swim.broadcast(p, now_s))
    cluster.network.run(broadcasts / 10 + 1)
    assert len(cluster.heard) == broadcasts
    for heard in cluster.heard.values():
        assert len(heard) == len(set(heard)) == count - 1


# Cost.


def cost(count: int) -> tuple[float, float]:
    """Bytes per second of each node, in datagrams and in exchanges."""
    cluster = Cluster(count, 6, acquainted=True)
    cluster.network.run(20)
    before = sum(host.sent_bytes for host in cluster.hosts), sum(host.exchanged_bytes for host in cluster.hosts)
    cluster.network.run(60)
    after = sum(host.sent_bytes for host in cluster.hosts), sum(host.exchanged_bytes for host in cluster.hosts)
    assert max(host.largest_bytes for host in cluster.hosts) <= 1200
    return (after[0] - before[0]) / count / 60, (after[1] - before[1]) / count / 60


def test_a_node_sends_as_much_in_a_large_cluster_as_in_a_small_one() -> None:
    small, large = cost(30), cost(300)
    assert max(small) < 100  # 84 bytes per second: one ping and one answer
    assert sum(large) == pytest.approx(sum(small), rel=0.05)


def test_a_run_is_repeated_by_its_seed() -> None:
    runs = []
    for _ in range(2):
        cluster = Cluster(8, 42, ROUGH)
        cluster.network.run(20)
        cluster.network.pause(cluster.hosts[2], 20)
        cluster.network.run(60)
        sent = [host.sent_bytes for host in cluster.hosts]
        runs.append((cluster.network.events, sent, cluster.deaths))
    assert runs[0] == runs[1]
    assert math.isfinite(runs[0][0])
