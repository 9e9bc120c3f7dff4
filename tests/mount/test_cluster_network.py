"""Five nodes, each on a network of its own: loss, partitions, deaths and restarts, while programs read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.mount.conftest import new_bucket
from tests.support import network
from tests.support.cluster_mounts import join_flags, make_key, name, nodes, see_each_other
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mount, Mounts, content, digest, put, wait_for
from tests.support.network import Host, Network

PORT = 7950
NODES = 5
TTL_S = 3
FILES = {f"f{n:02}": 200_000 + n for n in range(40)} | {"large": 22 * MIB}


class Cluster:
    """The nodes, and what they read."""

    def __init__(self, net: Network, proxy: FaultProxy, s3: FastS3, bucket: str, members: list[Mount]) -> None:
        self.net = net
        self.proxy = proxy
        self.s3 = s3
        self.bucket = bucket
        self.members = members
        self.data = {key: content(key, size) for key, size in FILES.items()}

    @property
    def hosts(self) -> list[Host]:
        return self.net.hosts

    def add(self, prefix: str, count: int, size: int) -> list[str]:
        """Put further objects into the bucket, for a test that needs what nobody has read yet."""
        names = [f"{prefix}-{n}" for n in range(count)]
        for each in names:
            self.data[each] = content(each, size)
            put(self.s3, self.bucket, each, self.data[each])
        for mount in self.members:
            mount.cli("refresh", mount.path, check=True)
        return names

    def read_together(self, names: list[str], members: list[Mount] | None = None) -> None:
        """Let nodes read files, each beginning with another one, and compare."""
        readers = [(mount.reader(), mount) for mount in members or self.members]
        for number, (reader, mount) in enumerate(readers):
            start = number * len(names) // len(readers)
            reader.send("file_order", str(mount.path), names[start:] + names[:start])
        for number, (reader, _) in enumerate(readers):
            start = number * len(names) // len(readers)
            assert reader.take() == [digest(self.data[each]) for each in names[start:] + names[:start]]

    def states(self, seen_by: list[Mount], of: list[Mount]) -> set[str]:
        """Return what some nodes believe of others."""
        return {nodes(mount).get(name(other), "unknown") for mount in seen_by for other in of if mount is not other}


@pytest.fixture(scope="module")
def cluster(s3: FastS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := network.missing():
        pytest.skip(reason)
    bucket = new_bucket(s3)
    for key, size in FILES.items():
        put(s3, bucket, key, content(key, size))
    key = make_key(tmp_path_factory.mktemp("key") / "key")
    seeds = key.with_name("seeds")
    mounts = Mounts()
    mounts.expected_logs.append(r"logger=luxfuse.peers.rejections")
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Network(NODES))
        seeds.write_text("\n".join(f"{host.address}:{PORT}" for host in net.hosts[:2]) + "\n")
        proxy = stack.enter_context(FaultProxy(s3.endpoint, host=net.server))
        stack.callback(mounts.close)
        members = []
        for host in net.hosts:
            flags = join_flags(key, [f"file:{seeds}"], "--metadata-ttl", f"{TTL_S}s", listen=f"0.0.0.0:{PORT}")
            mount = mounts.make(f"s3://{bucket}", *flags, endpoint_url=proxy.endpoint)
            mount.enter(host.path)
            members.append(mount.mount())
        see_each_other(members)
        yield Cluster(net, proxy, s3, bucket, members)


def test_all_find_each_other_through_a_file_and_read_each_byte_once(cluster: Cluster) -> None:
    for mount, host in zip(cluster.members, cluster.hosts, strict=True):
        assert mount.status()["node"]["address"] == f"{host.address}:{PORT}"
    cluster.read_together(list(FILES))
    total = sum(FILES.values())

    def received(*origins: str) -> int:
        return sum(mount.status()["reads"][origin] for mount in cluster.members for origin in origins)

    # A read is answered when the bytes are there: a moment before they are counted.
    wait_for("all is counted", lambda: received("understore_bytes", "peer_bytes") == NODES * total)
    hedges = sum(mount.status()["cluster"]["hedges"] for mount in cluster.members)  # of nodes slow by this machine
    assert received("understore_bytes") <= total + (8 + 4 * hedges) * MIB


def test_loss_is_no_error_and_all_stay_together(cluster: Cluster) -> None:
    """That nobody is taken for dead is held in virtual time: here a node may have got no processor for seconds."""
    for host in cluster.hosts:
        host.lose(5, cluster.net.server)
    for n in range(4):
        cluster.read_together(cluster.add(f"lossy{n}", 10, 100_000))
    wait_for("something is lost everywhere", lambda: all(host.lost() for host in cluster.hosts))
    see_each_other(cluster.members)
    for host in cluster.hosts:
        host.rules()


@pytest.mark.slow
def test_both_sides_of_a_partition_read_on_and_it_heals(cluster: Cluster) -> None:
    ours, theirs = cluster.members[:2], cluster.members[2:]
    for host in cluster.hosts[:2]:
        host.cut_off_from(cluster.hosts[2:])
    for host in cluster.hosts[2:]:
        host.cut_off_from(cluster.hosts[:2])
    cluster.read_together(cluster.add("parted", 20, 300_000))
    wait_for("both sides know", lambda: cluster.states(ours, theirs) | cluster.states(theirs, ours) == {"dead"})
    cluster.read_together(cluster.add("alone", 20, 300_000))
    write(ours[0], "between", b"1")
    wait_for("it shows after metadata-ttl", lambda: seen(theirs[0], "between") == digest(b"1"))
    for host in cluster.hosts:
        host.rules()
    see_each_other(cluster.members)
    for n in range(3):
        write(ours[0], "between", b"healed%d" % n)
        wait_for("at once", lambda n=n: seen(theirs[0], "between") == digest(b"healed%d" % n), timeout_s=1, pause_s=0.02)


@pytest.mark.remounts
def test_nodes_die_and_are_mounted_again_while_others_read(cluster: Cluster) -> None:
    """One is killed, one is mounted again in an orderly way; programs on the others notice nothing."""
    *rest, d, e = cluster.members
    names = cluster.add("rolling", 60, 400_000)
    readers = [mount.reader() for mount in rest]
    for reader, mount in zip(readers, rest, strict=True):
        reader.send("file_order", str(mount.path), names)
    d.kill()
    e.remount()
    for reader in readers:
        assert reader.take() == [digest(cluster.data[each]) for each in names]
    assert d.unmount("--force").returncode == 0
    d.mount()
    see_each_other(cluster.members)
    cluster.read_together(names)


def write(mount: Mount, file: str, data: bytes) -> None:
    source = mount.base / "written"
    source.write_bytes(data)
    mount.run(["cp", source, mount.path / file], check=True)


def seen(mount: Mount, file: str) -> object:
    try:
        return mount.read(file)
    except FileNotFoundError:
        return None
