"""The driver for Kubernetes: every call that it offers, by gRPC, twice over, after its death, and with wrong arguments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio (luxfuse[csi])")

from tests.mount.test_credentials import Gate  # noqa: E402
from tests.support.csi import MODE, SERVICES, Node, capability  # noqa: E402
from tests.support.fast_s3 import FastS3  # noqa: E402
from tests.support.front import front  # noqa: E402
from tests.support.mounted import PATIENCE_S, is_running, parent_of, wait_for  # noqa: E402

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAONE", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-volume"}
INLINE = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team-a"}


@pytest.fixture(scope="module")
def started() -> Iterator[Node]:
    """A node whose mounter and driver run."""
    node = Node()
    try:
        node.start_mounter()
        node.start_driver()
        yield node
    finally:
        node.close()


@pytest.fixture
def node(started: Node) -> Iterator[Node]:
    """Nothing is mounted after the test, and no secret is in any log; a driver is there again."""
    yield started
    if started.driver is None or started.driver.poll() is not None:
        started.start_driver()
    assert started.mounted() == []
    assert [*started.memory.iterdir(), *(started.directory / "targets").iterdir()] == []
    assert list(started.pods.glob("*/*")) == []
    assert not [value for value in SECRETS.values() if value in started.logs()]


@pytest.fixture
def volume(s3: FastS3, bucket: str, fill: Callable[..., None]) -> dict[str, Any]:
    """What a kubelet says of a persistent volume."""
    fill({"a": b"a", "b": b"b"})
    context = {"source": f"s3://{bucket}", "endpoint_url": s3.endpoint, "metadata_ttl": "0s", "negative_ttl": "0s"}
    return {"volume_id": f"volume-{bucket}", "volume_context": context, "secrets": SECRETS,
            "volume_capability": capability("write-mode=async-through", "storage_option=region=eu-west-1")}  # fmt: skip


def run(command: str) -> str:
    """Do something on a mount, in a process of its own."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.stdout + done.stderr


def tells_what_it_is(node: Node) -> None:
    """What the driver answers without arguments; asked twice."""
    for _ in range(2):
        info = node.call("GetPluginInfo")
        assert (info.name, bool(info.vendor_version)) == ("csi.luxfuse.io", True)
        assert list(node.call("GetPluginCapabilities").capabilities) == []
        assert node.call("Probe").ready.value is True
        assert node.call("NodeGetInfo").node_id == "node-1"
        offered = {each.rpc.type for each in node.call("NodeGetCapabilities").capabilities}
        assert offered == {2, 4, 5, 6}, "stats, condition, several writers on a node, group: no staging, no growing"


def test_identity_and_what_is_offered(node: Node) -> None:
    tells_what_it_is(node)
    for name in ("NodeStageVolume", "NodeUnstageVolume", "NodeExpandVolume", "CreateVolume"):
        assert node.refused(name)[0] == "UNIMPLEMENTED"
    assert oct(node.endpoint.stat().st_mode & 0o777) == "0o700"
    second = subprocess.run(
        [*node.driver.args], capture_output=True, text=True, timeout=PATIENCE_S, env=node.environment, check=False
    )
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "another driver is running with this directory" in second.stderr


def test_wrong_arguments_are_refused_by_name(node: Node, volume: dict[str, Any]) -> None:
    right = {**volume, "target_path": node.target("wrong")}
    context, secrets = volume["volume_context"], volume["secrets"]
    block = type(capability())(block={}, access_mode=MODE(mode=MODE.MULTI_NODE_MULTI_WRITER))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"volume_id": ""}, "volume_id: is missing"),
        ({"volume_id": "v" * 200}, "volume_id: is longer"),
        ({"target_path": ""}, "target_path: is missing"),
        ({"target_path": "relative"}, "no absolute path"),
        ({"target_path": "/pods/nul\0/mount"}, "no absolute path"),
        ({"volume_capability": None}, "volume_capability: is missing"),
        ({"volume_capability": block}, "no block device"),
        ({"volume_capability": capability(mode=MODE.UNKNOWN)}, "access_mode is missing"),
        ({"volume_capability": capability(mode=99)}, "access_mode is none of those"),
        ({"volume_capability": capability(fs_type="ext4")}, "fs_type 'ext4'"),
        ({"volume_capability": capability("cach_size=1GiB")}, "did you mean cache_size"),
        ({"volume_capability": capability("cache_size=much")}, "cache_size: "),
        ({"volume_capability": capability("metadata_ttl=1s")}, "metadata_ttl: is given twice"),
        ({"volume_capability": capability("cache_dir=/etc")}, "cache_dir: cannot be said by a volume"),
        ({"volume_capability": capability("log_file=/etc/cron.d/x")}, "log_file: cannot be said by a volume"),
        ({"volume_capability": capability("cluster_key_file=/x")}, "cluster_key_file: cannot be said"),
        ({"volume_capability": capability("join=file:/etc/passwd")}, "join: a volume cannot name a file"),
        ({"volume_capability": capability("storage_option=profile=x")}, "storage option profile: is none of"),
        ({"volume_capability": capability("storage_option=secret=x")}, "storage option secret: belongs into a secret"),
        ({"volume_context": {}}, "source: is missing"),
        ({"volume_context": {**context, "source": "s3://nul\0"}}, "source: "),
        ({"volume_context": {"source": "file:///etc"}}, "source: a volume can be of"),
        ({"volume_context": {"source": "/etc"}}, "source: a volume can be of"),
        ({"volume_context": {"source": "sftp://me:pw@host/x"}}, "source: has a password"),
        ({"volume_context": {**context, "sorce": "x"}}, "'sorce': there is no such setting"),
        ({"volume_context": {**context, "rack": "r" * 5000}}, "longer than 4096 bytes"),
        ({"secrets": {}}, "endpoint_url: needs a secret"),
        ({"secrets": {**secrets, "AWS_CONFIG_FILE": "s3cr3t-of-the-volume"}}, "'AWS_CONFIG_FILE' is no key"),
        ({"secrets": {"service_account.json": '{"type": "external_account"}'}}, "service_account.json is no JSON with"),
    ]  # fmt: skip
    for change, text in wrong:
        code, said = node.refused("NodePublishVolume", **{**right, **change})
        assert code == "INVALID_ARGUMENT", (change, said)
        assert text in said, (change, said)
        assert not [value for value in secrets.values() if value in said]
    for name, path in (("NodeUnpublishVolume", "target_path"), ("NodeGetVolumeStats", "volume_path")):
        assert node.refused(name, **{path: "/x"}) == ("INVALID_ARGUMENT", "volume_id: is missing")
        assert node.refused(name, volume_id="v") == ("INVALID_ARGUMENT", f"{path}: is missing")
    for path in ("relative", "/nul\0"):
        code, said = node.refused("NodeUnpublishVolume", volume_id="v", target_path=path)
        assert (code, said) == ("INVALID_ARGUMENT", "target_path: is no absolute path")
    assert node.refused("NodeGetVolumeStats", volume_id="v", volume_path="/nul\0")[0] == "INVALID_ARGUMENT"
    for path in ("/nowhere", "relative"):
        assert node.refused("NodeGetVolumeStats", volume_id="v", volume_path=path)[0] == "NOT_FOUND"
    for _ in range(2):
        node.unpublish("unknown", "wrong")
    node.call("NodeUnpublishVolume", volume_id="unknown", target_path="/nowhere/at/all")
    # A mount that is none of ours is left alone.
    assert node.refused("NodeUnpublishVolume", volume_id="v", target_path="/proc")[0] == "INTERNAL"
    assert node.refused("NodePublishVolume", **{**right, "target_path": "/proc"})[0] == "FAILED_PRECONDITION"
    # What only the mount itself finds out: nothing is left of it.
    code, said = node.refused("NodePublishVolume", **{**right, "volume_capability": capability("attributes=listing")})
    assert (code, bool(said)) == ("INVALID_ARGUMENT", True), said


def test_one_mount_for_a_volume(node: Node, s3: FastS3, volume: dict[str, Any], bucket: str) -> None:
    one, two, three = (node.target(name) for name in ("one", "two", "three"))
    for _ in range(2):
        node.call("NodePublishVolume", target_path=one, **volume)
        node.call("NodePublishVolume", target_path=two, readonly=True, **volume)
    [record] = node.records()
    daemon = json.loads(record.read_text())["pid"]
    assert run(f"cat {one}/a; cat {two}/a; printf new > {one}/new; cat {two}/new") == "aanew"
    assert "Read-only file system" in run(f"touch {two}/x")
    assert "Read-only" not in run(f"touch {one}/x")
    # What daemon and commands are called with, and what lies on the disk, has no secrets.
    mounted = (node.pods, node.directory / "mnt")
    ours = [path for path in node.base.rglob("*") if path.is_file() and not any(map(path.is_relative_to, mounted))]
    on_disk = b""
    for path in ours:
        with contextlib.suppress(FileNotFoundError):  # a staging file that is in the store now
            on_disk += path.read_bytes()
    command_lines = b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (daemon, node.mounter.pid, node.driver.pid)
    )
    assert not [value for value in SECRETS.values() if value.encode() in on_disk + command_lines]
    assert {oct(path.stat().st_mode & 0o777) for path in node.memory.rglob("*") if path.is_file()} == {"0o600"}
    # Other arguments for the same target, and other settings for the same volume.
    assert node.refused("NodePublishVolume", target_path=one, readonly=True, **volume)[0] == "ALREADY_EXISTS"
    other = {**volume, "volume_capability": capability("write_mode=cache-through")}
    code, said = node.refused("NodePublishVolume", target_path=three, **other)
    assert (code, "write_mode: is mounted otherwise on this node" in said) == ("FAILED_PRECONDITION", True), said
    alone = {**volume, "volume_capability": capability(*volume["volume_capability"].mount.mount_flags,
                                                       mode=MODE.SINGLE_NODE_SINGLE_WRITER)}  # fmt: skip
    assert node.refused("NodePublishVolume", target_path=three, **alone)[0] == "FAILED_PRECONDITION"
    assert not Path(three).exists()
    for _ in range(2):
        stats = node.call("NodeGetVolumeStats", volume_id=volume["volume_id"], volume_path=one)
        assert [usage.unit for usage in stats.usage] == [1, 2]
        assert (stats.volume_condition.abnormal, stats.volume_condition.message) == (False, "serving")
    assert node.refused("NodeGetVolumeStats", volume_id="other", volume_path=one)[0] == "NOT_FOUND"
    assert node.refused("NodeUnpublishVolume", volume_id="other", target_path=one)[0] == "NOT_FOUND"
    for _ in range(2):
        node.unpublish(volume["volume_id"], "two")
    assert is_running(daemon)
    assert run(f"cat {one}/a") == "a"
    for _ in range(2):
        node.unpublish(volume["volume_id"], "one")
    assert not is_running(daemon)
    assert (s3.bucket_path(bucket) / "new").read_bytes() == b"new", "it was written back first"


@pytest.mark.remounts
def test_the_driver_is_killed_at_any_step(node: Node, volume: dict[str, Any]) -> None:
    published = {"target_path": node.target("killed"), "readonly": True, **volume}
    unpublished = {"target_path": published["target_path"], "volume_id": volume["volume_id"]}
    node.end(node.driver)
    for step in ("noted", "mounted", "shown"):
        node.start_driver(LUXFUSE_DIE_AT=f"csi: {step}")
        assert node.refused("NodePublishVolume", **published)[0] == "UNAVAILABLE"
    node.start_driver(LUXFUSE_DIE_AT="csi: hidden")
    for _ in range(2):
        node.call("NodePublishVolume", **published)
    assert "Read-only file system" in run(f"touch {published['target_path']}/x || true")
    assert node.refused("NodeUnpublishVolume", **unpublished)[0] == "UNAVAILABLE"
    node.start_driver(LUXFUSE_DIE_AT="csi: unmounted")
    assert node.refused("NodeUnpublishVolume", **unpublished)[0] == "UNAVAILABLE"
    node.start_driver(LUXFUSE_DIE_AT="csi: mounted")
    for _ in range(2):
        node.call("NodeUnpublishVolume", **unpublished)
    assert node.mounted() == []
    # Nobody asks for it again, since its pod is gone: the next driver takes the mount away.
    assert node.refused("NodePublishVolume", **published)[0] == "UNAVAILABLE"
    assert len(node.mounted()) == 1
    os.rmdir(node.pods / "killed")
    node.start_driver()
    wait_for("nothing is mounted", lambda: node.mounted() == [] and list(node.memory.iterdir()) == [])


@pytest.mark.remounts
def test_a_mount_outlives_its_driver_and_new_secrets(
    node: Node, s3: FastS3, volume: dict[str, Any], fill: Callable[..., None]
) -> None:
    gate, target = Gate(), node.target("secrets")
    with front(s3.endpoint, gate) as url:
        volume["volume_context"]["endpoint_url"] = url
        volume["volume_context"] |= {**INLINE, "storage_options": "anon=off\n allow_http=on"}
        node.call("NodePublishVolume", target_path=target, **volume)
        with open(f"{target}/a", "rb") as file:
            node.end(node.driver, signal.SIGKILL)
            assert file.read() == b"a"
            assert run(f"cat {target}/b") == "b"
        node.start_driver()
        tells_what_it_is(node)
        for _ in range(2):
            stats = node.call("NodeGetVolumeStats", volume_id=volume["volume_id"], volume_path=target)
            assert (stats.volume_condition.abnormal, stats.volume_condition.message) == (False, "serving")
        gate.key = "AKIATWO"
        fill({"c": b"c"})
        renewed = {**volume, "secrets": {**SECRETS, "AWS_ACCESS_KEY_ID": "AKIATWO"}}
        for _ in range(2):
            node.call("NodePublishVolume", target_path=target, **renewed)
        assert run(f"cat {target}/c") == "c"
        code, said = node.refused("NodePublishVolume", target_path=target,
                                  **{**volume, "secrets": {**SECRETS, "AWS_ACCESS_KEY_ID": "AKIATHREE"}})  # fmt: skip
        assert (code, "AKIA" in said) == ("FAILED_PRECONDITION", False), said
        assert run(f"cat {target}/a") == "a"
        for _ in range(2):
            node.unpublish(volume["volume_id"], "secrets")


def test_inline_volumes_that_are_alike_share_a_mount(node: Node, volume: dict[str, Any]) -> None:
    volume["volume_capability"] = capability(mode=MODE.SINGLE_NODE_WRITER, volume_mount_group="1234")
    other = {"csi.storage.k8s.io/pod.namespace": "team-b"}
    for number, more in enumerate(({}, {}, other)):
        pod = {**volume, "volume_id": f"csi-{number}", "volume_context": {**volume["volume_context"], **INLINE, **more}}
        node.call("NodePublishVolume", target_path=node.target(f"inline-{number}"), **pod)
    assert len(node.records()) == 2
    assert run(f"cat {node.target('inline-1')}/a; stat -c ' %g %a' {node.target('inline-0')}/b") == "a 1234 664\n"
    states = [record.parent for record in node.records()]
    attached = {"path": "x", "source": "s3://other", "options": {}, "number": 1}
    (states[0] / "attached.json").write_text(json.dumps({"format": 1, "attached": [attached]}))
    for number in range(3):
        assert len(node.records()) == (2 if number < 2 else 1)
        node.unpublish(f"csi-{number}", f"inline-{number}")
    # Nothing stays of them but where there is what is nowhere else.
    assert [state for state in states if state.exists()] == states[:1]


def test_many_calls_at_once(node: Node, volume: dict[str, Any]) -> None:
    """Those that do not get their turn in time are sent away, and come again, as a kubelet does."""
    assert node.refused("NodePublishVolume", 0.05, target_path=node.target("many-0"), **volume)[0] == "DEADLINE_EXCEEDED"
    problems: list[Any] = []

    def call(name: str, **fields: Any) -> None:
        while True:
            try:
                node.call(name, **fields)
                return
            except grpc.RpcError as exc:
                if exc.code() != grpc.StatusCode.ABORTED:
                    problems.append((exc.code(), exc.details()))
                    return

    def all_at_once(name: str, each: Callable[[int], dict[str, Any]]) -> None:
        threads = [threading.Thread(target=call, args=(name,), kwargs=each(number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert problems == []

    targets = [node.target(f"many-{number // 2}") for number in range(8)]
    all_at_once("NodePublishVolume", lambda number: {**volume, "target_path": targets[number]})
    assert len(node.records()) == 1
    assert run("cat " + " ".join(f"{target}/a" for target in targets)) == "a" * 8
    all_at_once("NodeUnpublishVolume", lambda number: {"volume_id": volume["volume_id"], "target_path": targets[number]})


@contextlib.contextmanager
def container() -> Iterator[str]:
    """Yield what a command begins with that is run where mounts are slaves of those that are shared here."""
    command = ["unshare", "--mount", "--propagation=slave", "sh", "-c", "echo; read line || exit 0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield f"nsenter --mount --target={process.pid}"


@pytest.mark.remounts
def test_a_dead_mount_is_made_anew(node: Node, volume: dict[str, Any]) -> None:
    """As after the end of the mounter's pod: all in it is gone, mounts are dead, pods that use them are still there.

    Containers with `HostToContainer` see what is made anew, and a volume that they may only read stays so.
    """
    one, two, kept = node.target("dead-1"), node.target("dead-2"), node.target("dead-3")
    for target in (one, two, kept):
        node.call("NodePublishVolume", target_path=target, readonly=target == kept, **volume)
        run(f"mount --make-shared {target}")
    with container() as inside:
        daemon = json.loads(node.records()[0].read_text())["pid"]
        keeper = parent_of(daemon)
        for pid in (keeper, daemon):
            os.kill(pid, signal.SIGKILL)
        wait_for("both are gone", lambda: not is_running(daemon) and not is_running(keeper))
        node.end(node.mounter, signal.SIGKILL)
        for path in node.memory.iterdir():
            subprocess.run(["rm", "-r", str(path)], check=True)
        condition = node.call("NodeGetVolumeStats", volume_id=volume["volume_id"], volume_path=one).volume_condition
        assert (condition.abnormal, "has died" in condition.message) == (True, True), condition.message
        code, said = node.refused("NodePublishVolume", target_path=one, **volume)
        assert (code, "the mounter does not answer" in said) == ("UNAVAILABLE", True), said
        node.start_mounter()
        for target in (one, kept) * 2:
            node.call("NodePublishVolume", target_path=target, readonly=target == kept, **volume)
        assert run(f"cat {one}/a") == "a"
        assert run(f"{inside} cat {one}/a {kept}/a; {inside} touch {one}/b") == "aa"
        assert "Read-only file system" in run(f"{inside} touch {kept}/b 2>&1 || true")
    node.unpublish(volume["volume_id"], "dead-2")  # still the dead one
    assert run(f"cat {one}/a") == "a"
    for name in ("dead-1", "dead-3"):
        node.unpublish(volume["volume_id"], name)


WITHOUT_ARGUMENTS = {"GetPluginInfo", "GetPluginCapabilities", "Probe", "NodeGetInfo", "NodeGetCapabilities"}
NOT_OFFERED = {"NodeStageVolume", "NodeUnstageVolume", "NodeExpandVolume"}


def test_every_call_was_tried_in_every_way(started: Node, request: pytest.FixtureRequest) -> None:
    """By the tests above: twice over, twice over after the death of a driver, and with wrong arguments."""
    run_here = {item.originalname for item in request.session.items if item.path == request.path}
    if left_out := {name for name in globals() if name.startswith("test_")} - run_here:
        pytest.skip(f"tests of this file were left out: {', '.join(sorted(left_out))}")
    offered = {name for name in SERVICES if name.startswith("Node") or SERVICES[name][0].startswith("/csi.v1.Identity/")}
    offered -= NOT_OFFERED
    ways = {(name, way) for name in offered for way in ("twice", "twice after a kill", "wrong arguments")}
    assert ways - {(name, "wrong arguments") for name in WITHOUT_ARGUMENTS} - started.tried == set()
