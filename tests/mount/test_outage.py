"""A store that goes away under a mount, and comes back: who waits, for how long, and what still works."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from luxfuse.control.client import ControlClient
from luxfuse.fuse.session import MAX_BACKGROUND
from luxfuse.understore.submissions import PROBE_KEY
from tests.mount.conftest import new_bucket
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.front import certificate_authority, front
from tests.support.mounted import AWAY, PATIENCE_S, Mount, Mounts, content, digest, open_paths, put, wait_for
from tests.support.relay import relay
from tests.support.resolving import HOST, resolver

DATA = content("outage", 100_000)
LARGE = b"l" * (16 << 20)
"""So large that its reads come to the daemon as long as it is not in the cache."""
TTLS = ("--metadata-ttl", "200ms", "--negative-ttl", "0s")
REMOVED = [f"r{i}" for i in range(8)]

WAYS = {
    "hangs": lambda proxy: proxy.set(hold=True),
    "refuses": lambda proxy: proxy.outage(True),
    "fails": lambda proxy: proxy.set(error_probability=1.0),
}


def no_probe(request: Request) -> bool:
    return not request.path.endswith(PROBE_KEY)


def come_back(mount: Mount, proxy: FaultProxy) -> None:
    proxy.recover()
    wait_for("it is found again", lambda: mount.status()["understore"]["state"] == "ok")


def wait_until_away(mount: Mount) -> None:
    wait_for("it is away", lambda: mount.status()["understore"]["outages"] > 0)


@pytest.fixture
def mount(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> Mount:
    fill({f"d/{name}": DATA for name in ("cached", "remote", "other", *REMOVED)})
    made = mounting(f"s3://{bucket}", *TTLS, endpoint_url=proxy.endpoint)
    assert made.read("d/cached") == digest(DATA)
    assert sorted(made.do("list", f"{made.path}/d")) == ["cached", "other", *REMOVED, "remote"]
    return made


@pytest.mark.parametrize("way", WAYS)
def test_an_outage_is_waited_for_once(mount: Mount, proxy: FaultProxy, way: str, s3: FastS3, bucket: str) -> None:
    WAYS[way](proxy)
    with mount.impatient(1):
        waiting = {name: mount.reader() for name in ("d/remote", "d/other")}
        for name, reader in waiting.items():
            reader.send("file", f"{mount.path}/{name}")
        wait_until_away(mount)
        for reader in waiting.values():
            with pytest.raises(OSError, match="Input/output error"):
                reader.take()
    proxy.reset_counts()
    refused = mount.status()["understore"]["refused"]
    removers = [mount.reader() for _ in REMOVED]
    for remover, name in zip(removers, REMOVED, strict=True):
        remover.send("os.unlink", f"{mount.path}/d/{name}")
    assert sorted(mount.do("list", f"{mount.path}/d")) == ["cached", "other", *REMOVED, "remote"]
    assert mount.read("d/cached") == digest(DATA)
    assert mount.do("stat", f"{mount.path}/d/remote")["size"] == len(DATA)
    for remover in removers:
        with pytest.raises(OSError, match="Input/output error"):
            remover.take()
    assert mount.error("file", f"{mount.path}/d/remote") == "EIO"
    assert not [r for r in proxy.requests if no_probe(r)]
    status = mount.status()
    assert status["understore"]["refused"] >= refused + len(REMOVED)
    assert status["names"]["stale_served"] > 0
    assert (status["understore"]["state"], status["state"], status["fuse"]["errors"]) == ("unreachable", "degraded", 0)
    assert any("since" in reason for reason in status["degraded_reasons"])
    come_back(mount, proxy)
    assert mount.read("d/remote") == digest(DATA)
    for name in REMOVED:
        assert mount.error("os.unlink", f"{mount.path}/d/{name}") is None
    assert not (s3.root / bucket / "d" / REMOVED[0]).exists()
    wait_for("it says so", lambda: mount.status()["state"] == "serving")
    assert mount.log().count("cannot be reached: ") == mount.log().count("answers again, after ") == 1
    assert mount.status()["understore"]["outages"] == 1


def goes_and_comes_back(
    mount: Mount, name: str, cause: str, break_it: Callable[[], object], mend: Callable[[], object],
    patience: contextlib.AbstractContextManager[None],
) -> None:  # fmt: skip
    outages = mount.status()["understore"]["outages"]
    break_it()
    with patience:
        assert mount.error("file", f"{mount.path}/d/{name}") == "EIO"
        wait_for("it is away", lambda: mount.status()["understore"]["outages"] > outages)
    assert mount.read("d/cached") == digest(DATA)
    told = re.findall(r"cannot be reached: (.*?); what is cached", mount.log())[outages:]
    assert cause in " ".join(told)
    probes = mount.status()["understore"]["probes"]
    wait_for("it is probed", lambda: mount.status()["understore"]["probes"] > probes)
    assert mount.status()["understore"]["state"] == "unreachable"
    mend()
    wait_for("it is found again though nobody asks", lambda: mount.status()["understore"]["state"] == "ok")
    assert mount.read(f"d/{name}") == digest(DATA)


def test_tls_that_fails_is_an_outage(mounting: Mounts, s3: FastS3, bucket: str, fill, tmp_path: Path) -> None:
    """Another certificate is served under a live mount, and then none: both end, and what is in between is told."""
    fill({f"d/{name}": DATA for name in ("cached", "remote", "other")})
    right, wrong = (certificate_authority(tmp_path, name) for name in ("right", "wrong"))
    with (
        front(s3.endpoint, certificate=right.server) as url,
        front(s3.endpoint, certificate=wrong.server) as stranger,
        relay(url) as way,
    ):
        mount = mounting(
            f"s3://{bucket}", "--storage-option", f"verify={right.bundle}", endpoint_url=way.url, expected_logs=[AWAY]
        )  # fmt: skip
        assert mount.read("d/cached") == digest(DATA)
        for name, leads_to, cause in (("remote", stranger, "certificate is not trusted"), ("other", None, "connection")):
            break_it, mend = partial(way.lead_to, leads_to), partial(way.lead_to, url)
            goes_and_comes_back(mount, name, cause, break_it, mend, mount.impatient(4))
        assert mount.unmount().returncode == 0


def test_a_name_that_stops_resolving_is_an_outage(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, tmp_path: Path
) -> None:
    fill({f"d/{name}": DATA for name in ("cached", "remote")})
    resolving = resolver(tmp_path)
    resolving.switch.touch()
    mount = mounting(
        f"s3://{bucket}", endpoint_url=f"http://{HOST}:{proxy.port}", forked=False, environment=resolving.environment,
        options={"request_timeout": "8s"}, expected_logs=[AWAY],
    )  # fmt: skip
    assert mount.read("d/cached") == digest(DATA)

    def stop() -> None:
        resolving.switch.unlink()
        proxy.outage(True)  # what is connected needs no name
        proxy.outage(False)

    cause = "the endpoint's name does not resolve"
    goes_and_comes_back(mount, "remote", cause, stop, resolving.switch.touch, contextlib.nullcontext())


def live_store(s3: FastS3) -> str:
    """Fill another bucket; returns its source."""
    bucket = new_bucket(s3)
    for number in range(20):
        put(s3, bucket, f"f{number}", DATA)
    return f"s3://{bucket}"


def test_a_dead_store_does_not_hold_up_a_live_one(mount: Mount, proxy: FaultProxy, s3: FastS3) -> None:
    live = live_store(s3)
    client = ControlClient(mount.directory() / "control.sock", deadline_s=PATIENCE_S)
    client.attach(live, "live", {"endpoint_url": s3.endpoint})
    proxy.set(hold=True)
    waiting = [mount.reader() for _ in range(10)]
    for number, reader in enumerate(waiting):
        reader.send("file", f"{mount.path}/d/{['remote', 'other', *REMOVED][number]}")
    wait_for("they wait", lambda: all(reader.waits_for_fuse() for reader in waiting))
    for number in range(20):
        assert mount.read(f"live/f{number}") == digest(DATA)
    with mount.impatient():
        wait_until_away(mount)
    for reader in waiting:
        with pytest.raises(OSError, match="Input/output error"):
            reader.take()
    for number in range(20):
        mount.do("create", f"{mount.path}/live/g{number}")
    assert {each["path"]: each["state"] for each in mount.status()["volumes"]} == {"": "degraded", "live": "serving"}
    come_back(mount, proxy)


@pytest.fixture
def patient(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> Mount:
    """What waits for its store waits until that answers: nothing that is seen meanwhile depends on a deadline."""
    fill({f"{name}/cached": DATA for name in ("d", "e")} | {"d/removed": DATA, "d/large": LARGE})
    made = mounting(
        f"s3://{bucket}",
        *TTLS,
        endpoint_url=proxy.endpoint,
        options={"request_timeout": "1h", "whole_file_threshold": "1MiB"},
    )
    for name in ("d", "e"):
        made.do("list", f"{made.path}/{name}")
        assert made.read(f"{name}/cached") == digest(DATA)
    return made


def test_a_removal_that_waits_holds_up_its_own_directory_alone(patient: Mount, proxy: FaultProxy) -> None:
    """There it is the kernel that has others wait, and for names only: the directory is being changed."""
    opened, remover, lister = (patient.reader() for _ in range(3))
    opened("open", "f", f"{patient.path}/d/cached")
    proxy.set(hold=True)
    remover.send("os.unlink", f"{patient.path}/d/removed")
    wait_for("it is asked for", lambda: any(request.method in ("DELETE", "POST") for request in proxy.requests))
    lister.send("list", f"{patient.path}/d")
    assert sorted(patient.do("list", f"{patient.path}")) == ["d", "e"]
    assert patient.do("list", f"{patient.path}/e") == ["cached"]
    assert patient.read("e/cached") == digest(DATA)
    assert opened("all", "f") == digest(DATA)
    assert not remover.answered()
    assert not lister.answered()
    proxy.clear()
    remover.take()
    assert sorted(lister.take()) == ["cached", "large"]


READS = """
import os, sys, threading
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
sys.stdin.readline()
def read(number):
    assert os.pread(file, 4096, (8 << 20) + 4096 * number) == b"l" * 4096
threads = [threading.Thread(target=read, args=(number,)) for number in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
"""Reads so many blocks of a file at once, each with a request of its own."""


def test_more_reads_than_the_kernel_sends_at_once_hold_up_no_names_and_no_file_in_passthrough(
    patient: Mount, proxy: FaultProxy, s3: FastS3
) -> None:
    live = live_store(s3)
    client = ControlClient(patient.directory() / "control.sock", deadline_s=120)
    client.attach(live, "live", {"endpoint_url": s3.endpoint})
    command = [sys.executable, "-I", "-S", "-c", READS, f"{patient.path}/d/large", str(2 * MAX_BACKGROUND)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as reading:
        try:
            wait_for("it is open", lambda: any("large" in path for path in open_paths(reading.pid)))
            proxy.set(hold=True)
            assert reading.stdin is not None
            reading.stdin.write(b"\n")
            reading.stdin.close()
            waiting = connection(patient) / "waiting"
            wait_for("they wait", lambda: int(waiting.read_text()) >= MAX_BACKGROUND)
            assert sorted(patient.do("list", f"{patient.path}/live")) == sorted(f"f{number}" for number in range(20))
            if patient.status()["passthrough"]:
                for number in range(20):
                    assert patient.read(f"live/f{number}") == digest(DATA)
                assert patient.read("e/cached") == digest(DATA)
            for number in range(20):
                patient.do("create", f"{patient.path}/live/g{number}")
            assert sorted(patient.do("list", f"{patient.path}/d")) == ["cached", "large", "removed"]
            assert int(waiting.read_text()) >= MAX_BACKGROUND
            proxy.clear()
            assert reading.wait(PATIENCE_S) == 0
        finally:
            proxy.clear()
            reading.kill()


def connection(mount: Mount) -> Path:
    """What the kernel says of the mount."""
    return Path("/sys/fs/fuse/connections") / str(os.minor(mount.path.stat().st_dev))


def test_bytes_that_trickle_are_not_waited_for(mount: Mount, proxy: FaultProxy) -> None:
    """The store is there, since it answers; but what takes for ever is an error, and holds up nothing else."""
    proxy.set(byte_s=1.0)
    waiting = mount.reader()
    with mount.impatient(1):
        waiting.send("file", f"{mount.path}/d/remote")
        wait_for("it waits", lambda: waiting.waits_for_fuse() or waiting.answered())
        assert mount.read("d/cached") == digest(DATA)
        with pytest.raises(OSError, match="Input/output error"):
            waiting.take()
        assert mount.read("d/cached") == digest(DATA)
    come_back(mount, proxy)
    assert mount.read("d/remote") == digest(DATA)


WORK = r"""
import os, sys
os.chdir(sys.argv[1])
def write(name, flags, data):
    fd = os.open(name, flags, 0o640)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
new = os.O_CREAT | os.O_EXCL | os.O_WRONLY
write("made", new, b"made")
os.chmod("made", 0o600)
write("made", os.O_APPEND | os.O_WRONLY, b" and more")
os.mkdir("below")
write("below/deep", new, b"deep")
os.mkdir("below/empty")
os.mkdir("below/gone")
os.rmdir("below/gone")
os.symlink("made", "link")
write("cached", os.O_APPEND | os.O_WRONLY, b"!")
write("other", os.O_TRUNC | os.O_WRONLY, b"short")
os.truncate("local", 2)
os.rename("local", "renamed")
os.rename("below/deep", "moved")
write("tmp", new, b"saved as editors do")
os.rename("tmp", "remote")
for name in [f"r{i}" for i in range(8)]:
    os.unlink(name)
os.unlink("alone/x")
os.rmdir("alone")
os.unlink("kept/x")
"""


@pytest.mark.parametrize("killed", [False, True])
def test_work_goes_on_where_the_journal_promises(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, fill, killed: bool
) -> None:
    fill({f"d/{name}": DATA for name in ("cached", "remote", "other", "alone/x", "kept/x", *REMOVED)} | {"e/x": b"x"})
    mount = mounting(
        f"s3://{bucket}", *TTLS, "--attributes", "listing", endpoint_url=proxy.endpoint,
        options={"write_mode": "async-through"},
    )  # fmt: skip
    place = mount.path / "d"
    mount.run(["sh", "-c", f"printf local > {place}/local"], check=True)
    wait_for("it is in the store", lambda: mount.status()["dirty"]["files"] == 0)
    for name in ("", "d", "d/alone", "d/kept"):
        mount.do("list", f"{mount.path}/{name}")
    for name in ("cached", "other"):  # which tells their attributes, too
        assert mount.read(f"d/{name}") == digest(DATA)
    proxy.set(hold=True)
    with mount.impatient():
        assert mount.error("list", f"{mount.path}/e") == "EIO"
        wait_until_away(mount)
    mount.run([mount.python, "-c", WORK, place], check=True)
    assert mount.error("stat", f"{mount.path}/e/new") == "EIO", "it was never listed"
    assert mount.do("list", f"{place}/below") == ["empty"]
    if killed:
        mount.kill()
        mount.close_readers()
        assert mount.cli("unmount", mount.path).returncode == 0
        proxy.clear()
        assert mount.try_mount().returncode == 0
    else:
        come_back(mount, proxy)
    wait_for("all is in the store", lambda: mount.status()["dirty"]["files"] == mount.status()["dirty"]["deletes"] == 0)
    stored = s3.root / bucket / "d"
    found = {str(path.relative_to(stored)): path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    contents = {name: data for name, data in found.items() if data}
    assert contents == {
        "made": b"made and more", "moved": b"deep", "link.rclonelink": b"made", "cached": DATA + b"!", "other": b"short",
        "renamed": b"lo", "remote": b"saved as editors do",
    }  # fmt: skip
    assert mount.do("tree", str(place)) == sorted(
        ["below", "below/empty", "cached", "kept", "link", "made", "moved", "other", "remote", "renamed"]
    )
    assert mount.do("stat", f"{place}/made")["mode"] & 0o777 == 0o600


@pytest.mark.parametrize("way", ["hangs", "refuses"])
def test_what_was_mounted_before_is_mounted_without_the_store(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, fill, way: str
) -> None:
    fill({"d/cached": DATA, "d/remote": DATA})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"write_mode": "async-through"})
    assert sorted(mount.do("list", f"{mount.path}/d")) == ["cached", "remote"]
    assert mount.read("d/cached") == digest(DATA)
    mount.remount()  # so that the index has it for sure
    WAYS[way](proxy)
    with mount.impatient(1):
        mount.run(["sh", "-c", f"cd {mount.path}/d; printf brief > brief; printf promised > begun; rm remote"], check=True)
        assert sorted(mount.do("list", f"{mount.path}/d")) == ["begun", "brief", "cached"]
        mount.run(["sh", "-c", f"cd {mount.path}/d; mv begun new; rm brief; sync ."], check=True)
        mount.kill()
        mount.close_readers()
        assert mount.cli("unmount", mount.path).returncode == 0
        done = mount.try_mount()
        assert done.returncode == 0, done.stderr
        assert "mounted all the same, with what is known and cached here, until it answers" in done.stderr
    status = mount.status()
    assert (status["state"], status["understore"]["state"]) == ("degraded", "unreachable")
    assert sorted(mount.do("list", f"{mount.path}/d")) == ["cached", "new"]
    assert mount.read("d/cached") == digest(DATA)
    assert mount.read("d/new") == digest(b"promised")
    mount.run(["sh", "-c", f"printf more > {mount.path}/d/more"], check=True)
    come_back(mount, proxy)
    wait_for("all is in the store", lambda: mount.status()["dirty"]["files"] == mount.status()["dirty"]["deletes"] == 0)
    stored = s3.root / bucket / "d"
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == {
        "cached": DATA, "new": b"promised", "more": b"more",
    }  # fmt: skip
    assert mount.unmount().returncode == 0


def test_what_was_never_mounted_is_not_mounted_without_the_store(mounting: Mounts, proxy: FaultProxy, bucket: str) -> None:
    proxy.outage(True)
    mount = mounting.make(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    done = mount.try_mount()
    assert done.returncode == 1
    assert "the endpoint refuses connections" in done.stderr
    assert not list(mount.cache.glob("*/objects"))
