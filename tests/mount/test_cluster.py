"""Mounts that share their caches: daemons of their own on one machine, real sockets between them."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_fetch_once import assert_each_byte_once
from tests.mount.test_keeper import DIED
from tests.support.cluster_mounts import address, cluster_status, join_flags, make_key, name, nodes, see_each_other, start
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mount, Mounts, content, digest, wait_for
from tests.support.watching import Watching


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


@pytest.mark.parametrize("tls", ["on", "off"])
def test_nodes_that_read_together_fetch_each_byte_once(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, key: Path, tls: str
) -> None:
    objects = {"large": content("large", 22 * MIB), "medium": content("medium", 3 * MIB + 1)}
    objects |= {f"small/{n}": content(n, 40_000 + n) for n in range(30)}
    fill(objects)
    members = start(mounting, f"s3://{bucket}", 3, key, "--peer-tls", tls, endpoint_url=proxy.endpoint)
    for each, data in objects.items():
        readers = [mount.reader() for mount in members] if each == "large" else []
        for reader, mount in zip(readers, members, strict=False):
            reader.send("file", f"{mount.path}/{each}")
        for reader in readers:
            assert reader.take() == digest(data)
        if not readers:
            assert [mount.read(each) for mount in members] == [digest(data)] * 3
        if not hedges(members):
            assert_each_byte_once(proxy, each, len(data))
    total = sum(len(data) for data in objects.values())

    def received(*origins: str) -> int:
        return sum(mount.status()["reads"][origin] for mount in members for origin in origins)

    # A read is answered when the bytes are there: a moment before they are counted.
    wait_for("all is counted", lambda: received("understore_bytes", "peer_bytes") == 3 * total)
    assert total <= received("understore_bytes") <= total + hedges(members) * 4 * MIB


def hedges(members: list[Mount]) -> int:
    """How often a node was so slow, on this machine, that another one asked the store as well."""
    return sum(mount.status()["cluster"]["hedges"] for mount in members)


def test_what_is_closed_on_one_node_is_what_another_opens(mounting: Mounts, s3, bucket: str, key: Path) -> None:
    forever = {"metadata_ttl": "1h", "negative_ttl": "1h"}
    a, b = start(mounting, f"s3://{bucket}", 2, key, endpoint_url=s3.endpoint, options=forever)
    b.do("list", str(b.path))
    assert b.error("file", f"{b.path}/file") == "ENOENT"
    for version in range(5):
        data = content(version, 1000 + version)
        write(a, "file", data)
        wait_for("the other node sees it", lambda d=data: seen(b, "file") == digest(d), pause_s=0.01)
    assert "file" in b.do("list", str(b.path))
    a.do("os.rename", f"{a.path}/file", f"{a.path}/other")
    wait_for("the new name", lambda: seen(b, "other") == digest(content(4, 1004)), pause_s=0.01)
    wait_for("the old name goes", lambda: seen(b, "file") is None, pause_s=0.01)
    a.do("os.unlink", f"{a.path}/other")
    wait_for("it goes", lambda: "other" not in b.do("list", str(b.path)), pause_s=0.01)


def seen(mount: Mount, name: str) -> Any:
    """What a file is now; None if there is none."""
    try:
        return mount.read(name)
    except FileNotFoundError:
        return None


def write(mount: Mount, name: str, data: bytes) -> None:
    """Write a file and close it."""
    source = mount.base / "written"
    source.write_bytes(data)
    mount.run(["cp", source, mount.path / name], check=True)


def test_the_loss_of_a_node_is_only_a_slower_read(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, key: Path
) -> None:
    data = {f"f{n}": content(n, 2 * MIB + n) for n in range(24)}
    fill(data)
    a, b, c = start(mounting, f"s3://{bucket}", 3, key, endpoint_url=proxy.endpoint)
    names = list(data)
    for each in names[:4]:
        assert b.read(each) == digest(data[each])
    b.kill()
    for each in names:
        assert a.read(each) == digest(data[each])
    wait_for("the others know", lambda: nodes(a).get(name(b)) == nodes(c).get(name(b)) == "dead")
    for each in names:
        assert c.read(each) == digest(data[each])
    b.unmount("--force")
    b.mount()
    see_each_other([a, b, c])
    for each in names:
        assert b.read(each) == digest(data[each])


def test_a_node_that_is_unmounted_says_good_bye_and_one_with_another_key_is_nobody(
    mounting: Mounts, s3, bucket: str, fill, key: Path, tmp_path: Path
) -> None:
    data = content("x", 100_000)
    fill({"file": data} | {f"more/{n}": content(n, 5000) for n in range(40)})
    a, b = start(mounting, f"s3://{bucket}", 2, key, endpoint_url=s3.endpoint)
    with Watching(b) as watching:
        for n in range(40):  # one of a home elsewhere comes soon
            assert a.read(f"more/{n}") == b.read(f"more/{n}")
            if watching.wait_for(rf" open more/{n} .*\bfrom (\w+)")[1] == "nodes":
                break
        assert watching.found(r" open more/\d+ .*, 4.9 KiB from nodes"), watching.lines
    mounting.expected_logs += [r"another key|wrong key|TLS failed|rejected"]
    stranger = mounting(f"s3://{bucket}", *join_flags(make_key(tmp_path / "other"), [address(a)]), endpoint_url=s3.endpoint)
    assert stranger.read("file") == a.read("file") == digest(data)
    time.sleep(1.5)
    assert nodes(stranger) == {}
    assert set(nodes(a)) == {name(b)}
    host, _, port = address(a).rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"nonsense", (host, int(port)))
    wait_for("it is counted", lambda: a.status()["cluster"]["datagrams_rejected"] == 1)
    shown = cluster_status(a)
    assert shown["node"]["state"] == "alive"
    assert [peer["sources"] for peer in shown["peers"]] == [shown["node"]["sources"]]
    table = a.cli("cluster", "status", a.path, check=True).stdout
    assert address(a) in table
    assert address(b) in table
    assert b.unmount().returncode == 0
    wait_for("it left", lambda: nodes(a).get(name(b)) == "left")
    assert a.read("file") == digest(data)


def test_the_key_is_changed_while_all_is_mounted(mounting: Mounts, s3, bucket: str, fill, tmp_path: Path) -> None:
    data = {f"f{n}": content(n, 50_000) for n in range(12)}
    fill(data)
    old, new = "11" * 32, "22" * 32
    keys = [make_key(tmp_path / name, bytes.fromhex(old)) for name in ("a", "b")]
    config = tmp_path / "luxfuse.toml"
    config.write_text("")
    a = mounting(f"s3://{bucket}", *join_flags(keys[0]), "--config", str(config), endpoint_url=s3.endpoint)
    b = mounting(f"s3://{bucket}", *join_flags(keys[1], [address(a)]), endpoint_url=s3.endpoint)
    see_each_other([a, b])
    names = iter(data)
    for text in (f"{old}\n{new}\n", f"{new}\n{old}\n", f"{new}\n"):
        for mount, path in zip((a, b), keys, strict=True):
            path.write_text(text)
            assert "cluster_key_file" in mount.cli("reload", mount.path, check=True).stdout
            each = next(names)
            assert a.read(each) == b.read(each) == digest(data[each])
    keys[0].write_text(f"{new}\n{old}\n")
    config.write_text("\nmax_requests = 'many'\n")
    refused = a.cli("reload", a.path)
    assert f"--config {config}, line 2: max_requests: 'many' is not allowed; write a whole number" in refused.stderr
    config.write_text("")
    assert "cluster_key_file" in a.cli("reload", a.path, check=True).stdout  # it was not taken up with the bad file
    config.write_text("log_level = 'debug'\n")
    keys[0].write_text("nonsense\n")
    refused = a.cli("reload", a.path)
    assert refused.returncode == 1
    assert str(keys[0]) in refused.stderr
    assert "level=debug" not in a.log()
    wait_for("they see each other as before", lambda: nodes(a) == {name(b): "alive"})

    def given() -> int:
        return sum(int(mount.status()["reads"]["peer_bytes"]) for mount in (a, b))

    before = given()
    for each in names:
        assert a.read(each) == b.read(each) == digest(data[each])
    wait_for("they read from each other as before", lambda: given() > before)


def test_a_node_that_is_killed_comes_back_as_the_same_member(
    mounting: Mounts, proxy: FaultProxy, s3, bucket: str, fill, key: Path
) -> None:
    """What it has cached is read from it, and what others hold of its writes stays: it brings that to the store itself."""
    mounting.expected_logs += [DIED, "under-store"]
    data, text = {f"f{n}": content(n, 50_000 + n) for n in range(24)}, content("written", 2 * MIB)
    fill(data)
    flags = ["--write-mode", "async-through", "--durable-replicas", "1"]
    a, b = start(mounting, f"s3://{bucket}", 2, key, *flags, endpoint_url=proxy.endpoint)
    for each, cached in data.items():
        assert a.read(each) == digest(cached)
    proxy.only(lambda request: request.method in ("PUT", "POST"))
    proxy.set(error_probability=1.0)
    write(a, "written", text)
    wait_for("another node holds it", lambda: b.status()["cluster"]["replicas_held"] == 1)
    before = name(a), address(a)
    a.replaced()
    assert (name(a), address(a)) == before
    see_each_other([a, b])
    wait_for("what it has is known", lambda: b.status()["peers"][0]["entries"] == len(data))
    asked = len(proxy.requests)
    for each, cached in data.items():
        assert b.read(each) == digest(cached)
    gets = [r.path for r in proxy.requests[asked:] if r.method == "GET" and r.path.rpartition("/")[2] in data]
    assert len(gets) <= hedges([a, b])
    assert b.status()["reads"]["peer_bytes"] > 0
    assert (a.status()["dirty"]["files"], b.status()["cluster"]["replicas_held"]) == (1, 1)
    proxy.clear()
    wait_for("it is in the store", (s3.root / bucket / "written").exists)
    wait_for("it is given back", lambda: b.status()["cluster"]["replicas_held_bytes"] == 0)
    assert (s3.root / bucket / "written").read_bytes() == text
    puts = [request.path.rpartition("/")[2] for request in proxy.requests if request.method in ("PUT", "POST")]
    assert set(puts) == {"written"}
    assert len(puts) - proxy.injected()["error"] == 1
    assert a.status()["dirty"]["conflicts"] == b.status()["dirty"]["conflicts"] == 0


@pytest.mark.slow  # another node waits for a minute before it takes over
def test_a_write_outlives_its_writer_and_is_uploaded_once(
    mounting: Mounts, proxy: FaultProxy, s3, bucket: str, key: Path
) -> None:
    mounting.expected_logs += [r"under-store", r"took over|uploaded|taken over|recovered"]
    flags = ["--write-mode", "async-through", "--durable-replicas", "2"]
    members = start(mounting, f"s3://{bucket}", 3, key, *flags, endpoint_url=proxy.endpoint)
    a, b, c = members
    write(a, "before", b"1")
    wait_for("it is in the store", (s3.root / bucket / "before").exists)
    proxy.only(lambda request: request.method in ("PUT", "POST"))
    proxy.set(error_probability=1.0)
    data = {"small": content("s", 1000), "large": content("l", 3 * MIB)}
    for each, text in data.items():
        write(a, each, text)
    wait_for("two nodes hold both", lambda: [m.status()["cluster"]["replicas_held"] for m in (b, c)] == [2, 2])
    a.kill()
    proxy.clear()
    asked = len(proxy.requests)
    wait_for("one of them brings them up", lambda: all((s3.root / bucket / each).exists() for each in data))
    for each, text in data.items():
        assert (s3.root / bucket / each).read_bytes() == text
        assert b.read(each) == c.read(each) == digest(text)
    puts = [request for request in proxy.requests[asked:] if request.method == "PUT"]
    assert sorted(request.path.rpartition("/")[2] for request in puts) == sorted(data)
    a.unmount("--force")
    assert a.try_mount().returncode == 0  # it says what the last run left
    wait_for("the writer knows", lambda: a.status()["dirty"]["files"] == 0)
    for each, text in data.items():
        assert a.read(each) == digest(text)
    assert a.status()["dirty"]["conflicts"] == 0
    wait_for(
        "only what became of them is remembered",
        lambda: [mount.status()["cluster"]["replicas_held_bytes"] for mount in (b, c)] == [0, 0],
        timeout_s=150,
    )


@pytest.mark.slow  # nodes wait for half a minute after one has come
def test_what_one_node_holds_is_replicated_by_a_rule(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, key: Path
) -> None:
    data = {f"d/{n}": content(n, 200_000) for n in range(5)}
    fill(data)
    a, b, c = start(mounting, f"s3://{bucket}", 3, key, "--cooperative", "off", endpoint_url=proxy.endpoint)
    for each, text in data.items():
        assert a.read(each) == digest(text)
    refused = a.cli("replicate", a.path / "missing", "--min", "2")
    assert refused.returncode == 1
    assert "missing" in refused.stderr
    b.cli("replicate", b.path / "d", "--min", "3", check=True)
    holders = [name(mount) for mount in (b, c)]
    wait_for("all hold it", lambda: located(a, "d/0") == sorted(holders), pause_s=1)
    gets = len(proxy.requests)
    for mount in (b, c):
        for each, text in data.items():
            assert mount.read(each) == digest(text)
    assert not [request for request in proxy.requests[gets:] if request.method == "GET" and request.range]
    assert sum(mount.status()["reads"]["understore_bytes"] for mount in (a, b, c)) == 1_000_000
    c.cli("replicate", c.path / "d", "--off", check=True)


def located(mount: Mount, file: str) -> list[str]:
    """The other nodes that hold a file."""
    (found,) = json.loads(mount.cli("locate", mount.path / file, "--json", check=True).stdout)
    return sorted(node["node"] for node in found["nodes"])
