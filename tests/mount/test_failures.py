"""A store that misbehaves and a daemon that is killed: right bytes or an honest errno, never an empty or missing file."""

from __future__ import annotations

import functools
import shutil
import time
from typing import Any

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import MIB, Mount, Mounts, content, digest, is_running, wait_for

SMALL = content("failures small", 3 * MIB + 1)


@functools.cache
def large_data() -> bytes:
    return content("failures large", 24 * MIB)


@pytest.fixture
def mount(mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Any) -> Mount:
    fill({"small": SMALL, "large": large_data(), "cached": SMALL, "dir/file": b"x", "tiny": b"tiny"})
    made = mounting(f"s3://{bucket}", "--negative-ttl", "0s", endpoint_url=proxy.endpoint)
    assert made.read("cached") == digest(SMALL)
    assert sorted(made.do("list", str(made.path))) == ["cached", "dir", "large", "small", "tiny"]
    return made


def index_changed_ns(mount: Mount) -> int:
    """When the index was written to last."""
    return max(path.stat().st_mtime_ns for path in mount.state.glob("index/*/data.mdb"))


def object_gets(request: Request) -> bool:
    return request.method == "GET" and "list-type" not in request.query


FAULTS: dict[str, dict[str, Any]] = {
    "reset": {"reset_probability": 0.35},
    "truncate": {"truncate_probability": 0.35},
    "503": {"error_probability": 0.35},
    "429": {"error_probability": 0.35, "error_status": 429, "retry_after_s": 1},
    "500": {"error_probability": 0.35, "error_status": 500},
}


def test_passing_faults_do_not_show(mount: Mount, proxy: FaultProxy, fill: Any) -> None:
    data = {"small": SMALL, "large": large_data(), "tiny": b"tiny"}
    for fault, what in FAULTS.items():
        fill({f"{fault}/{name}": each for name, each in data.items()})
        proxy.reset_counts()
        proxy.set(**what)
        if fault.isdigit():
            proxy.next("error", 2, status=int(fault))
        else:
            proxy.next("reset" if fault == "reset" else "truncate", 2)
        for name, each in data.items():
            assert mount.read(f"{fault}/{name}") == digest(each), fault
        assert mount.do("list", f"{mount.path}/{fault}") == sorted(data), fault
        assert sum(proxy.injected().values()) >= 2, fault
        proxy.clear()
        for name, each in data.items():
            assert mount.read(f"{fault}/{name}") == digest(each), fault
    assert mount.status()["understore"]["retries"] > 0
    assert mount.status()["cache"]["checksum_failures"] == 0


def test_a_lasting_fault_is_an_error_and_passes(mount: Mount, proxy: FaultProxy, fill: Any) -> None:
    for fault in ("error", "reset", "stall", "truncate"):
        data = {f"{fault}/small": SMALL, f"{fault}/large": large_data()}
        fill(data)
        for name in data:  # which asks for their attributes, too
            mount.do("stat", f"{mount.path}/{name}")
        proxy.only(object_gets)
        proxy.set(**{f"{fault}_probability": 1.0})
        readers = [mount.reader() for _ in data]
        with mount.impatient():
            for reader, name in zip(readers, data, strict=True):
                reader.send("file", f"{mount.path}/{name}")
            for reader in readers:
                with pytest.raises(OSError, match=r"Input/output error"):
                    reader.take()
        assert mount.do("stat", f"{mount.path}/{fault}/small")["size"] == len(SMALL), fault
        assert mount.read("cached") == digest(SMALL), fault
        proxy.clear()
        wait_for("reads go on", lambda: mount.error("file", f"{mount.path}/{fault}/small") is None)  # noqa: B023
        wait_for("it is found again", lambda: mount.status()["understore"]["state"] == "ok")
        for name, each in data.items():
            assert mount.read(name) == digest(each), fault
        wait_for("it says so", lambda: mount.status()["state"] == "serving")


def test_an_answer_of_another_version_is_refused(mount: Mount, proxy: FaultProxy) -> None:
    proxy.only(object_gets)
    proxy.set(wrong_etag='"another"')
    for name in ("small", "large", "tiny"):
        assert mount.error("file", f"{mount.path}/{name}") in ("ESTALE", "EIO"), name
    assert mount.read("cached") == digest(SMALL)
    proxy.clear()
    for name, data in (("small", SMALL), ("large", large_data()), ("tiny", b"tiny")):
        assert mount.read(name) == digest(data)


def test_forbidden_is_not_missing(mount: Mount, proxy: FaultProxy) -> None:
    proxy.set(error_probability=1.0, error_status=403)
    assert mount.error("file", f"{mount.path}/tiny") == "EACCES"
    assert mount.error("stat", f"{mount.path}/unknown") == "EACCES"
    assert mount.read("cached") == digest(SMALL)
    proxy.clear()
    assert mount.read("tiny") == digest(b"tiny")


def test_outage(mount: Mount, proxy: FaultProxy) -> None:
    assert mount.read("large") == digest(large_data())
    proxy.outage(True)
    reader = mount.reader()
    with mount.impatient():
        reader.send("file", f"{mount.path}/small")
        assert mount.error("stat", f"{mount.path}/unknown") == "EIO"
        with pytest.raises(OSError, match=r"Input/output error"):
            reader.take()
        for name, data in (("cached", SMALL), ("large", large_data())):
            assert mount.read(name) == digest(data)
        assert mount.do("stat", f"{mount.path}/small")["size"] == len(SMALL)
        assert sorted(mount.do("list", str(mount.path))) == ["cached", "dir", "large", "small", "tiny"]
        assert mount.error("list", f"{mount.path}/dir") == "EIO"  # never listed before
        status = mount.status()
        assert status["state"] == "degraded"
        assert any("under-store" in reason for reason in status["degraded_reasons"])
    proxy.outage(False)
    wait_for("recovery", lambda: mount.error("file", f"{mount.path}/small") is None)
    assert mount.read("small") == digest(SMALL)
    wait_for("an honest answer", lambda: mount.error("stat", f"{mount.path}/unknown") == "ENOENT")
    assert mount.do("list", f"{mount.path}/dir") == ["file"]
    wait_for("it says so", lambda: mount.status()["state"] == "serving")


def test_names_outlive_their_time_in_an_outage(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    fill({"cached": SMALL, "remote": SMALL})
    mount = mounting(f"s3://{bucket}", "--metadata-ttl", "200ms", "--negative-ttl", "200ms", endpoint_url=proxy.endpoint)
    assert mount.read("cached") == digest(SMALL)
    assert sorted(mount.do("list", str(mount.path))) == ["cached", "remote"]
    proxy.outage(True)
    with mount.impatient():
        give_up_at = time.monotonic() + 2
        while time.monotonic() < give_up_at:
            assert mount.read("cached") == digest(SMALL)
            assert mount.do("stat", f"{mount.path}/remote")["size"] == len(SMALL)
            assert sorted(mount.do("list", str(mount.path))) == ["cached", "remote"]
        assert mount.error("file", f"{mount.path}/remote") == "EIO"
        assert mount.status()["names"]["stale_served"] > 0
    fill({"cached": SMALL[::-1]})
    proxy.outage(False)
    wait_for("it is back", lambda: mount.status()["understore"]["state"] == "ok")
    wait_for("the change", lambda: mount.read("cached") == digest(SMALL[::-1]))
    wait_for("it says so", lambda: mount.status()["state"] == "serving")


def test_outage_while_a_large_file_is_read(mount: Mount, proxy: FaultProxy) -> None:
    proxy.set(latency_s=0.02)
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/large")
    assert reader("pread", "it", 0, MIB) == digest(large_data()[:MIB])
    proxy.outage(True)
    # What has arrived is served, the rest is an error; it is complete after the outage.
    with mount.impatient():
        outcome = reader.error("all", "it")
    assert outcome in (None, "EIO")
    proxy.outage(False)
    wait_for("recovery", lambda: reader.error("all", "it") is None)
    assert reader("all", "it") == digest(large_data())


class TestKilled:
    def test_is_warm_again(self, mount: Mount, proxy: FaultProxy) -> None:
        assert mount.read("large") == digest(large_data())
        wait_for("large is whole", lambda: mount.do("getxattr", f"{mount.path}/large", "user.luxfuse.state") == "cached")
        for name in ("tiny", "dir/file"):  # the first commit that is seen may have begun before
            committed = index_changed_ns(mount)
            mount.read(name)
            wait_for("the index is committed", lambda known=committed: index_changed_ns(mount) > known)
        pid = mount.pid
        mount.close_readers()
        mount.kill()
        assert not is_running(pid)
        done = mount.cli("status", mount.path)
        assert done.returncode == 1
        assert "died" in done.stderr
        assert done.stderr.count("\n") == 1
        done = mount.cli("unmount", mount.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert not mount.mounted
        mount.mount()
        proxy.reset_counts()
        for name, data in (("cached", SMALL), ("large", large_data())):
            assert mount.read(name) == digest(data)
        assert not [r for r in proxy.requests if object_gets(r)]
        status = mount.status()
        assert status["cache"]["verified_bytes"] >= len(SMALL) + len(large_data())
        assert status["cache"]["checksum_failures"] == 0
        assert mount.read("small") == digest(SMALL)

    @pytest.mark.parametrize("name", ["small", "large"])
    def test_while_reading(self, mount: Mount, proxy: FaultProxy, name: str) -> None:
        proxy.only(object_gets)
        proxy.set(hold=True)
        readers = [mount.reader() for _ in range(3)]
        for reader in readers:
            reader.send("file", f"{mount.path}/{name}", 64 << 10)
        wait_for("it is being fetched", lambda: len([r for r in proxy.requests if r.path.endswith(name)]) > 1)
        mount.kill()
        for reader in readers:
            with pytest.raises(OSError, match=r"."):
                reader.take()
        mount.close_readers()
        assert mount.cli("unmount", mount.path).returncode == 0
        proxy.clear()
        mount.mount()
        whole = {"small": SMALL, "large": large_data()}[name]
        assert mount.read(name) == digest(whole)
        assert mount.read("cached") == digest(SMALL)
        assert mount.status()["cache"]["checksum_failures"] == 0

    def test_a_new_mount_takes_the_place_of_a_dead_one(self, mount: Mount) -> None:
        mount.close_readers()
        mount.kill()
        done = mount.try_mount()
        assert done.returncode == 0
        assert "has died; what it left is taken away" in done.stderr
        assert mount.read("cached") == digest(SMALL)

    def test_so_it_does_where_nobody_knows_of_it(self, mount: Mount) -> None:
        """Its state directory is gone: the kernel alone tells that it is dead, and that another one lives."""
        mount.close_readers()
        state = mount.environment["LUXFUSE_STATE_DIR"]
        mount.environment["LUXFUSE_STATE_DIR"] = f"{state}-other"
        done = mount.try_mount()
        assert done.returncode == 1
        assert "is already a luxfuse mount" in done.stderr
        mount.environment["LUXFUSE_STATE_DIR"] = state
        mount.kill()
        shutil.rmtree(state)
        done = mount.try_mount()
        assert done.returncode == 0, done.stderr
        assert "nobody serves it any more; what it left is taken away" in done.stderr
        assert mount.read("cached") == digest(SMALL)

    def test_open_passthrough_files_are_not_leaked(self, mount: Mount) -> None:
        """A reader in passthrough goes on through the daemon's death; all of it can be taken down though it is there."""
        reader = mount.reader()
        reader("open", "it", f"{mount.path}/cached")
        assert reader("all", "it") == digest(SMALL)
        reader("os.chdir", str(mount.path))
        mount.kill()
        assert reader("pread", "it", 4096, 4096) == digest(SMALL[4096:8192])
        done = mount.cli("unmount", mount.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert not mount.mounted
        assert reader("pread", "it", 4096, 4096) == digest(SMALL[4096:8192])


def test_a_busy_server_that_recovers_slowly(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    """503 from the server itself for two thirds of all requests, with many readers."""
    fill({f"file{i}": content(i, 300_000) for i in range(20)})
    with FaultProxy(s3.endpoint, seed=7) as proxy:
        mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"request_timeout": "110s"})
        mount.do("list", str(mount.path))
        proxy.set(error_probability=0.66)
        readers = [mount.reader() for _ in range(4)]
        for i, reader in enumerate(readers):
            reader.send("file_order", str(mount.path), [f"file{j}" for j in range(i, 20, 4)])
        for i, reader in enumerate(readers):
            assert reader.take() == [digest(content(j, 300_000)) for j in range(i, 20, 4)]
        mount.unmount()
