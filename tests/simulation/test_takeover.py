"""One uploader for each dirty file: writers and holders die, are cut off and come back at any moment."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio._core._run as trio_run
import trio.testing

from luxfuse.core.takeover import FOLLOW_S, TAKEOVER_S
from tests.simulation.replicas import Cluster, Node, check_foreign, check_kept, check_order

pytestmark = pytest.mark.expected_logs("cannot be uploaded yet", "is not uploaded: ", "and is there again")
KEYS = ("a", "b", "dir/c")


def run(seed: int, scenario: Callable[[Cluster, trio.Nursery], Awaitable[None]], *, nodes: int, copies: int) -> Cluster:
    """Run a scenario in virtual time."""
    clusters = []
    path = Path(tempfile.mkdtemp(prefix="takeover-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    async def main() -> None:
        cluster = Cluster(seed, path, nodes=nodes, copies=copies)
        clusters.append(cluster)
        async with trio.open_nursery() as nursery:
            for node in cluster.nodes:
                nursery.start_soon(node.live)
            await trio.sleep(1)
            await scenario(cluster, nursery)
            nursery.cancel_scope.cancel()

    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseException:
        print(f"seed {seed}")
        raise
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = False
        shutil.rmtree(path)
    return clusters[0]


async def settle(cluster: Cluster) -> None:
    """End all faults, and give whoever is there the time to finish."""
    cluster.faults = False
    cluster.heal()
    await trio.sleep(TAKEOVER_S + len(cluster.nodes) * FOLLOW_S + 400)


def program(node: Node, call: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Let a program on a node do something; it dies with the node."""
    if node.nursery is not None:
        node.nursery.start_soon(call, *arguments)


async def write_some(cluster: Cluster, node: Node, round_: int) -> None:
    """A few changes on a node, which often cannot reach the store meanwhile."""
    rng, mine = cluster.rng, node.name[-1]
    if rng.random() < 0.7:
        cluster.sever(node.name, "store")
    for step in range(rng.randrange(1, 5)):
        key, what = f"{rng.choice(KEYS)}-{mine}", rng.random()
        if what < 0.75:
            program(node, node.write, key, f"{mine} at {round_}.{step}".encode())
        elif what < 0.85:
            program(node, node.rename, key, f"{key}-{round_}.{step}")
        else:
            program(node, node.remove, key)
        await trio.sleep(rng.choice((0.01, 0.1, 1)))


async def strike(cluster: Cluster, node: Node) -> None:
    """Something happens to a node, and perhaps to another one."""
    rng = cluster.rng
    fate = rng.random()
    if fate < 0.45:
        node.kill()
    elif fate < 0.75:
        for other in cluster.nodes:
            if other is not node and rng.random() < 0.8:
                cluster.sever(node.name, other.name)
    if rng.random() < 0.3:
        key = f"{rng.choice(KEYS)}-{node.name[-1]}"
        cluster.place(key, f"another program at {trio.current_time():.1f}".encode(), {}, "")
    if rng.random() < 0.4:
        rng.choice(cluster.nodes).kill()
    await trio.sleep(rng.choice((0.3, 5, 40, TAKEOVER_S + 7, TAKEOVER_S + 12, 150)))


async def storm(cluster: Cluster, nursery: trio.Nursery) -> None:
    """Everything at random; in the end all come back and finish."""
    rng = cluster.rng
    for round_ in range(12):
        node = rng.choice(cluster.nodes)
        await write_some(cluster, node, round_)
        await strike(cluster, node)
        if rng.random() < 0.6:
            cluster.heal()
        for dead in cluster.nodes:
            if not dead.up and rng.random() < 0.5:
                nursery.start_soon(dead.live)
        await trio.sleep(rng.choice((0.1, 1, 10)))
    for dead in cluster.nodes:
        if not dead.up:
            nursery.start_soon(dead.live)
    await settle(cluster)
    check(cluster)


def check(cluster: Cluster) -> None:
    """All that must hold, once everybody had time."""
    check_order(cluster)
    check_kept(cluster)
    check_foreign(cluster)
    left = [record.key for node in cluster.nodes for record in node.journal.files.values() if node.up]
    assert not left, f"{left} are in no store"
    holders = [node.replication.holder for node in cluster.nodes if node.up]
    held = [h for holder in holders for h in holder.files.holdings.values() if h.content]
    assert not held, f"replicas are left over: {held}"


def takeovers(cluster: Cluster) -> int:
    """How many objects were brought up by others than their writers."""
    return sum(1 for put in cluster.puts if put.write is not None and put.by != put.write.file.writer)


def test_nothing_is_lost_or_doubled_in_storms():
    taken = 0
    for seed in range(3):
        taken += takeovers(run(seed, storm, nodes=4, copies=2))
    assert taken > 2, "holders had hardly anything to do"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_nothing_is_lost_or_doubled_in_many_storms(seed: int):
    run(seed, storm, nodes=4 + seed % 3, copies=1 + seed % 3)
