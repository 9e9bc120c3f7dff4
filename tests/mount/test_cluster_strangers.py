"""Nodes on networks of their own that are started again one by one, have another key, or lie to the others.

What is not defended: a node that has the key and sends wrong pages with the checksums of these is believed. Checksums
find what is damaged on the way, on a disk or in memory, not what a node that has the key makes up.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_bucket
from tests.support import network
from tests.support.cluster_mounts import address, join_flags, make_key, name, nodes, see_each_other
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import PATIENCE_S, REPOSITORY, Mount, Mounts, content, digest, put, wait_for
from tests.support.network import Host, Network

PORT = 7950
NODES = 3
WAYS = ("slow", "mismatching", "endless-head", "endless-body")
COUNTS = {"stranger": 4, **{how: 1 if how == "slow" else 6 for how in WAYS}, **{f"again{n}": 40 for n in range(NODES)}}


def files(prefix: str) -> dict[str, bytes]:
    """What is in the bucket for one test, so that nobody has read it before."""
    return {f"{prefix}-{n}": content((prefix, n), 300_000 + n) for n in range(COUNTS[prefix])}


class Cluster:
    """Three nodes, of which two join through the first, and that through the second one; and two hosts more."""

    def __init__(self, net: Network, proxy: FaultProxy, s3: FastS3, mounts: Mounts, key: Path) -> None:
        self.proxy, self.mounts, self.key = proxy, mounts, key
        self.bucket = new_bucket(s3)
        for prefix in COUNTS:
            for each, data in files(prefix).items():
                put(s3, self.bucket, each, data)
        self.others = net.hosts[NODES:]
        self.members: list[Mount] = []
        for host, seed in zip(net.hosts[:NODES], (1, 0, 0), strict=True):
            self.members.append(self.mount(host, key, f"{net.hosts[seed].address}:{PORT}"))
        see_each_other(self.members)

    def mount(self, host: Host, key: Path, seed: str) -> Mount:
        """Mount on a host."""
        flags = join_flags(key, [seed], listen=f"{host.address}:{PORT}")
        made = self.mounts.make(f"s3://{self.bucket}", *flags, endpoint_url=self.proxy.endpoint)
        made.enter(host.path)
        made.expected_logs = self.mounts.expected_logs.copy()
        return made.mount()


@contextlib.contextmanager
def running(s3: FastS3, directory: Path) -> Iterator[Cluster]:
    if reason := network.missing():
        pytest.skip(reason)
    mounts = Mounts()
    mounts.expected_logs += [r"rejected, the last from", r"are not what their checksums say"]
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Network(NODES + 2))
        proxy = stack.enter_context(FaultProxy(s3.endpoint, host=net.server))
        stack.callback(mounts.close)
        yield Cluster(net, proxy, s3, mounts, make_key(directory / "key"))


@pytest.fixture(scope="module")
def cluster(s3: FastS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For tests that leave it as it was: no node is mounted again."""
    with running(s3, tmp_path_factory.mktemp("key")) as cluster:
        yield cluster


@pytest.fixture
def fresh(s3: FastS3, tmp_path: Path) -> Iterator[Cluster]:
    """For one test."""
    with running(s3, tmp_path) as cluster:
        yield cluster


def test_a_node_with_another_key_stays_alone_and_reads(cluster: Cluster) -> None:
    data = files("stranger")
    other_key = make_key(cluster.key.with_name("other"))
    stranger = cluster.mount(cluster.others[0], other_key, address(cluster.members[0]))
    for each, text in data.items():
        assert stranger.read(each) == cluster.members[0].read(each) == digest(text)
    wait_for("it has tried to join", lambda: "TLS failed" in stranger.log())
    assert nodes(stranger) == {}
    assert all(name(stranger) not in nodes(mount) for mount in cluster.members)
    stranger.close()


@contextlib.contextmanager
def hostile(cluster: Cluster, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node that lies, which all others believe to be alive."""
    host, seen_by = cluster.others[1], cluster.members
    (source,) = seen_by[0].status()["node"]["sources"]
    arguments = [cluster.key, host.address, address(seen_by[0]), source, how]
    process = subprocess.Popen(
        [*host.prefix, sys.executable, "-m", "tests.support.hostile_node", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], PATIENCE_S)[0]
        called = process.stdout.readline().decode().strip()
        wait_for("all see it", lambda: {nodes(mount).get(called) for mount in seen_by} == {"alive"})
        yield process
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
        wait_for("it left", lambda: "alive" not in {nodes(mount).get(called) for mount in seen_by})
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("how", WAYS)
def test_what_a_lying_node_sends_is_not_believed_and_not_waited_for(cluster: Cluster, how: str) -> None:
    data = files(how)
    before = [mount.status()["cluster"]["corrupt"] for mount in cluster.members]
    with hostile(cluster, how) as process:
        for each, text in data.items():
            for mount in cluster.members:
                assert mount.read(each) == digest(text)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 0)[0], "nobody asked it"
        found = [mount.status()["cluster"]["corrupt"] for mount in cluster.members] != before
        assert found == (how in ("mismatching", "endless-body"))


def test_all_are_mounted_again_one_by_one_while_the_others_read(fresh: Cluster) -> None:
    for number, mount in enumerate(fresh.members):
        data = files(f"again{number}")
        readers = [(other.reader(), other) for other in fresh.members if other is not mount]
        for reader, other in readers:
            reader.send("file_order", str(other.path), list(data))
        mount.remount()
        for reader, _ in readers:
            assert reader.take() == [digest(text) for text in data.values()]
        see_each_other(fresh.members)
        assert mount.read(next(iter(data))) == digest(data[next(iter(data))])
