"""Mounting and unmounting by the command line: what succeeds, how it fails, what is left behind, who may look."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from luxfuse import __version__
from luxfuse.cli import main as command_line
from luxfuse.control.client import _UnixConnection
from luxfuse.fuse import mountpoint as mounts
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, PATIENCE_S, Mount, Mounts, content, digest, is_running, wait_for
from tests.support.odd_input import ORDERS, bodies, fuzz
from tests.support.resolving import HOST, resolver

WHOLE = content("mounting", MIB + 5)


@functools.cache
def large_data() -> bytes:
    return content("mounting large", 20 * MIB)


@pytest.fixture
def one(mounting: Mounts, s3: FastS3, bucket: str, fill) -> Mount:
    """A bucket with one file, mounted."""
    fill({"file": WHOLE})
    return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)


def assert_fails(mount: Mount, *words: str, flags: tuple[str, ...] = ()) -> str:
    """Mounting fails with one line that holds the words, and leaves nothing mounted or running."""
    done = mount.try_mount(*flags)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("luxfuse: ")
    for word in words:
        assert word in done.stderr
    mount.expected_logs.append("")  # what the log says of a mount that never was is not looked at
    return done.stderr


class TestFailures:
    def test_no_such_bucket(self, mounting: Mounts, moto_url: str) -> None:
        mount = mounting.make("s3://no-such-bucket", endpoint_url=moto_url)
        assert_fails(mount, "s3://no-such-bucket", "bucket")
        assert not mount.mounted

    def test_credentials_refused(self, mounting: Mounts, proxy: FaultProxy, bucket: str) -> None:
        proxy.set(error_probability=1.0, error_status=403)
        assert_fails(mounting.make(f"s3://{bucket}", endpoint_url=proxy.endpoint), bucket, "403", "credentials")

    def test_no_credentials(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true",
                   "HOME": "/nonexistent"}  # fmt: skip
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint, environment=nothing)
        assert_fails(mount, "credentials")

    def test_unreachable_endpoints(self, mounting: Mounts, s3: FastS3, tmp_path: Path) -> None:
        """One refuses connections, one never answers, one has no address, one speaks no HTTPS: each is told."""
        environment = resolver(tmp_path).environment
        with socket.socket() as refusing, socket.socket() as silent, ThreadPoolExecutor() as pool:
            refusing.bind(("127.0.0.1", 0))  # bound, but not listening
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            causes = {
                f"http://127.0.0.1:{refusing.getsockname()[1]}": "the endpoint refuses connections",
                f"http://127.0.0.1:{silent.getsockname()[1]}": r"(did not answer|timed out|no answer) ",
                f"http://{HOST}:9": "the endpoint's name does not resolve",
                s3.endpoint.replace("http:", "https:"): "the server speaks no HTTPS: write http:// in the endpoint URL",
            }
            mounts_ = [mounting.make("s3://bucket", endpoint_url=url, environment=environment) for url in causes]
            for cause, error in zip(causes.values(), pool.map(assert_fails, mounts_, ["s3://bucket"] * 4), strict=True):
                assert re.search(cause, error), error

    def test_unknown_scheme(self, mounting: Mounts) -> None:
        assert_fails(mounting.make("nonsense://somewhere"), "nonsense")

    def test_missing_local_source(self, mounting: Mounts) -> None:
        assert_fails(mounting.make("file:///no/such/directory"), "/no/such/directory")

    def test_mountpoint_missing(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        mount.path.rmdir()
        assert_fails(mount, str(mount.path), "mkdir")

    def test_mountpoint_not_empty(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        (mount.path / "something").touch()
        assert_fails(mount, str(mount.path), "not empty")

    def test_mountpoint_is_a_file(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        mount.path.rmdir()
        mount.path.touch()
        assert_fails(mount, str(mount.path), "not a directory")

    def test_mountpoint_busy(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        subprocess.run(["mount", "-t", "tmpfs", "other", mount.path], check=True)
        try:
            assert_fails(mount, str(mount.path), "busy")
        finally:
            subprocess.run(["umount", mount.path], check=True)

    def test_already_ours(self, one: Mount) -> None:
        done = one.try_mount(forked=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "already" in done.stderr
        assert one.read("file") == digest(WHOLE)

    def test_two_at_once(self, mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
        """One is mounted, and the other says so, and takes nothing away."""
        fill({"file": WHOLE})
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(lambda _: mount.try_mount(), range(2)))
        (refused,) = (done for done in outcomes if done.returncode)
        assert re.search("already|is about to mount there", refused.stderr)
        assert mount.read("file") == digest(WHOLE)
        assert mount.unmount().returncode == 0

    def test_cache_directory_is_a_file(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        mount.cache.touch()
        assert_fails(mount, str(mount.cache), "--cache-dir")

    def test_cache_directory_cannot_be_written(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        mount.cache.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "cache", mount.cache], check=True)
        try:
            assert_fails(mount, str(mount.cache), "--cache-dir")
        finally:
            subprocess.run(["umount", mount.cache], check=True)

    def test_state_directory_is_a_file(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        mount.state.touch()
        assert_fails(mount, str(mount.state))

    def test_a_failed_mount_can_be_tried_again(self, mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
        fill({"file": WHOLE})
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        (mount.path / "something").touch()
        assert mount.try_mount().returncode == 1
        (mount.path / "something").unlink()
        assert mount.mount().read("file") == digest(WHOLE)

    def test_unmounting_what_is_not_mounted(self, mounting: Mounts) -> None:
        mount = mounting.make("s3://bucket")
        done = mount.unmount()
        assert done.returncode == 1
        assert done.stderr == f"luxfuse: {mount.path} is not a luxfuse mount; see: luxfuse list\n"

    def test_status_of_what_is_not_mounted(self, mounting: Mounts) -> None:
        mount = mounting.make("s3://bucket")
        done = mount.cli("status", mount.path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1


class TestUnmounting:
    def test_is_clean(self, one: Mount) -> None:
        assert one.read("file") == digest(WHOLE)
        pid = one.pid
        done = one.unmount()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not one.mounted
        assert not is_running(pid)
        assert list(one.path.iterdir()) == []
        assert one.cli("list", "--json").stdout.strip() == "[]"

    def test_sigterm_is_clean(self, one: Mount) -> None:
        assert one.read("file") == digest(WHOLE)
        one.close_readers()
        one.kill_daemon(signal.SIGTERM)
        assert not one.mounted
        one.mount()
        assert one.read("file") == digest(WHOLE)
        status = one.status()
        assert status["cache"]["verified_bytes"] == 0
        assert status["understore"]["gets"] == 0
        assert status["reads"]["passthrough_opens"] == 1

    def test_sigterm_while_busy_detaches(self, one: Mount) -> None:
        reader = one.reader()
        reader("open", "it", f"{one.path}/file")
        pid = one.pid
        one.kill_daemon(signal.SIGTERM, wait=False)
        wait_for("the mount is out of the tree", lambda: not one.mounted)
        wait_for("the daemon has ended", lambda: not is_running(pid))

    def test_busy(self, one: Mount) -> None:
        reader = one.reader()
        reader("open", "it", f"{one.path}/file")
        done = one.cli("unmount", one.path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "busy" in done.stderr
        assert f"pid {reader.pid}" in done.stderr
        assert one.status()["state"] == "serving"
        assert reader("all", "it") == digest(WHOLE)
        reader("close", "it")
        assert one.cli("unmount", one.path).returncode == 0

    def test_lazy_lets_open_files_live_on(self, one: Mount) -> None:
        reader = one.reader()
        reader("open", "it", f"{one.path}/file")
        pid = one.pid
        assert one.cli("unmount", "--lazy", one.path).returncode == 0
        assert not one.mounted
        assert reader("all", "it") == digest(WHOLE)
        reader("close", "it")
        wait_for("the daemon has ended", lambda: not is_running(pid))

    @pytest.mark.parametrize("how", ["--force", "--lazy"])
    def test_never_waits_for_a_hung_store(self, mounting: Mounts, proxy: FaultProxy, bucket: str, fill, how: str) -> None:
        fill({"large": large_data()})
        # To wait for the store would take longer than the command may.
        options = {"request_timeout": "10m"}
        mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options=options, expected_logs=["."])
        proxy.only(lambda request: "large" in request.path)
        proxy.set(stall_probability=1.0)
        pid = mount.pid
        readers = [mount.reader() for _ in range(2)]
        for reader in readers:
            reader.send("file", f"{mount.path}/large")
        wait_for("a request has stalled", lambda: proxy.injected()["stall"])
        wait_for("both are in the mount", lambda: all(reader.waits_for_fuse() for reader in readers))
        done = mount.cli("unmount", how, mount.path)
        assert done.returncode == 0, done.stderr
        assert not mount.mounted
        if how == "--force":
            wait_for("the daemon has ended", lambda: not is_running(pid))
            for reader in readers:
                with pytest.raises(OSError, match=r"."):
                    reader.take()
        else:
            proxy.clear()
            for reader in readers:
                assert reader.take() == digest(large_data())
            mount.close_readers()
            wait_for("the daemon has ended", lambda: not is_running(pid))

    def test_plain_umount(self, one: Mount) -> None:
        pid = one.pid
        one.run(["umount", one.path], check=True)
        wait_for("the daemon has ended", lambda: not is_running(pid))
        assert one.cli("list", "--json").stdout.strip() == "[]"
        assert one.mount().read("file") == digest(WHOLE)

    def test_in_the_foreground(self, mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
        fill({"file": WHOLE})
        mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
        command = [mount.python, "-P", "-m", "luxfuse.cli.main", "mount", mount.source, mount.path, *mount.flags]
        with subprocess.Popen(
            [*command, "--foreground"], env=mount.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        ) as process:
            try:
                wait_for("it is mounted", lambda: mount.mounted)
                assert mount.read("file") == digest(WHOLE)
                mount.close_readers()
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        assert process.returncode == 0, err
        assert b"serving" in err
        assert b"level=error" not in err
        assert out == b""
        assert not mount.mounted


class TestSecondMount:
    def test_of_one_source_has_a_cache_of_its_own(self, mounting: Mounts, one: Mount) -> None:
        endpoint = one.flags[one.flags.index("--endpoint-url") + 1]
        second = mounting(one.source, endpoint_url=endpoint, cache_dir=one.cache)
        for mount in (one, second):
            assert mount.read("file") == digest(WHOLE)
            assert mount.gets() == 2 or mount.gets() == 1
        slots = sorted(p.name for p in one.cache.iterdir())
        assert len(slots) == 2
        assert slots[1] == f"{slots[0]}.1"
        second.unmount()
        assert one.read("file") == digest(WHOLE)
        second.mount()
        assert second.read("file") == digest(WHOLE)
        assert second.gets() == 0


class TestObservation:
    def test_list(self, one: Mount) -> None:
        (row,) = json.loads(one.cli("list", "--json", check=True).stdout)
        assert row["mountpoint"] == str(one.path)
        assert row["source"] == one.source
        assert row["pid"] == one.pid
        assert row["state"] == "running"
        assert str(one.path) in one.cli("list", check=True).stdout

    def test_status(self, one: Mount) -> None:
        one.read("file")
        one.read("file")
        document = json.loads(one.cli("status", one.path, "--json", check=True).stdout)
        assert document["mountpoint"] == str(one.path)
        assert document["source"] == one.source
        assert document["pid"] == one.pid
        assert document["version"] == __version__
        assert document["state"] == "serving"
        assert document["passthrough"] is True
        assert document["uptime_s"] > 0
        assert 10 * MIB < document["memory_bytes"] < 300 * MIB
        (tier,) = document["tiers"]
        assert tier["name"] == "ssd"
        assert tier["path"] == str(one.cache)
        assert tier["capacity_bytes"] is None
        assert len(WHOLE) <= tier["used_bytes"] <= len(WHOLE) + 4096
        assert tier["state"] == "serving"
        reads = document["reads"]
        assert set(reads) >= {"memory_bytes", "ssd_bytes", "hdd_bytes", "peer_bytes", "understore_bytes"}
        assert reads["passthrough_opens"] == 2
        assert reads["copied_opens"] == 0
        assert reads["understore_bytes"] == len(WHOLE)
        store = document["understore"]
        assert set(store) >= {"gets", "heads", "lists", "puts", "deletes", "errors", "retries"}
        assert 1 <= store["gets"] <= 2
        assert store["errors"] == store["retries"] == store["puts"] == store["deletes"] == 0
        assert document["dirty"] == {
            "files": 0, "bytes": 0, "oldest_s": 0.0, "open_files": 0, "deletes": 0, "failing": 0, "error": None,
            "renames": 0, "local_only": 0, "failures": 0, "conflicts": 0,
        }  # fmt: skip
        assert document["recovered"]["files"] == 0
        assert document["recovered"]["path"].startswith(f"{one.state}/recovered/")
        assert document["peers"] == []
        assert "serving" in one.cli("status", one.path, check=True).stdout
        everywhere = json.loads(one.cli("status", "--json", check=True).stdout)
        assert [each["pid"] for each in everywhere] == [one.pid]

    def test_capacity_is_told(self, mounting: Mounts, s3: FastS3, bucket: str) -> None:
        mount = mounting(f"s3://{bucket}", "--cache-size", "64MiB", endpoint_url=s3.endpoint)
        assert mount.status()["tiers"][0]["capacity_bytes"] == 64 * MIB

    def test_metrics(self, one: Mount) -> None:
        one.read("file")
        text = one.cli("metrics", one.path, check=True).stdout
        samples = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
        assert all(name.startswith("luxfuse_") for name in samples)
        assert samples["luxfuse_reads_understore_bytes_total"].value == len(WHOLE)
        assert samples["luxfuse_reads_passthrough_opens_total"].value == 1
        assert samples["luxfuse_understore_gets_total"].value == one.gets()
        assert samples["luxfuse_passthrough"].value == 1
        assert samples["luxfuse_mount_info"].labels["source"] == one.source
        states = {s.labels["state"]: s.value for f in text_string_to_metric_families(text) for s in f.samples
                  if s.name == "luxfuse_state"}  # fmt: skip
        assert states == {"serving": 1, "degraded": 0, "draining": 0}

    def test_kernel_is_tuned(self, one: Mount) -> None:
        mount = mounts.find_mount(str(one.path))
        assert mount is not None
        assert {"rw", "nosuid", "nodev"} <= set(mount.options)
        assert mount.fstype == "fuse.luxfuse"
        assert mount.source == one.source
        read_ahead = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
        assert int(read_ahead.read_text()) >= 1024
        limit = Path("/sys/fs/fuse/connections", mount.device.partition(":")[2], "max_background")
        if limit.exists():
            assert int(limit.read_text()) >= 64


class TestPrivacy:
    def test_modes(self, one: Mount) -> None:
        one.read("file")
        for directory in (one.state, one.directory(), next((one.state / "index").iterdir()), next(one.cache.iterdir())):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
        assert stat.S_IMODE((one.directory() / "control.sock").stat().st_mode) == 0o600
        (cached,) = one.cache_files()
        assert stat.S_IMODE(cached.stat().st_mode) == 0o600
        assert stat.S_IMODE((one.directory() / "daemon.log").stat().st_mode) == 0o600

    @pytest.fixture
    def secrets(self) -> list[str]:
        return ["LUXTESTACCESS0123456789", "luxtestsecret-abcdefghijklmnopqrstuvwxyz", "luxtesttoken-0123456789ab"]

    @pytest.mark.parametrize("place", ["environment", "configuration"])
    def test_no_secret_shows(
        self, mounting: Mounts, proxy: FaultProxy, bucket: str, fill, secrets: list[str], place: str, tmp_path: Path
    ) -> None:
        fill({"file": WHOLE, "other": WHOLE})
        key, secret, token = secrets
        flags: tuple[str, ...] = ()
        environment = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
        if place == "configuration":
            file = tmp_path / "settings.toml"
            file.write_text(f'[storage_options]\nkey = "{key}"\nsecret = "{secret}"\ntoken = "{token}"\n')
            flags = ("--config", str(file))
            environment = {}
        mount = mounting.make(
            f"s3://{bucket}", *flags, endpoint_url=proxy.endpoint, environment=environment,
            options={"log_level": "debug"}, expected_logs=["."],
        )  # fmt: skip
        assert mount.try_mount(forked=False).returncode == 0
        shown = [Path("/proc", str(mount.pid), "cmdline").read_text(), mount.log()]
        mount.remount()
        assert mount.read("file") == digest(WHOLE)
        proxy.set(error_probability=1.0, error_status=403)
        assert mount.error("file", f"{mount.path}/other") == "EACCES"
        proxy.set(error_probability=1.0, error_status=500)
        with mount.impatient():
            assert mount.error("file", f"{mount.path}/other") == "EIO"
            shown += [mount.cli("refresh", mount.path).stderr]
        shown += [mount.cli("status", mount.path, "--json").stdout, mount.cli("metrics", mount.path).stdout, mount.log()]
        mount.unmount()
        proxy.set(error_probability=1.0, error_status=403)
        shown.append(mount.try_mount().stderr)
        for path in [*mount.state.rglob("*"), *mount.cache.rglob("*")]:
            if path.is_file():
                shown.append(path.read_bytes().decode("latin-1"))
        for text in shown:
            for each in secrets:
                assert each not in text


@pytest.fixture
def moto_bucket(moto_url: str) -> Iterator[str]:
    name = f"keys-{os.getpid()}-{time.time_ns()}"
    client = boto3.client(
        "s3", endpoint_url=moto_url, aws_access_key_id="test", aws_secret_access_key="test-secret", region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}),
    )  # fmt: skip
    client.create_bucket(Bucket=name)
    yield name
    client.close()


def test_mounts_a_bucket_of_moto(mounting: Mounts, moto_url: str, moto_bucket: str) -> None:
    mount = mounting(f"s3://{moto_bucket}", endpoint_url=moto_url)
    assert mount.do("list", str(mount.path)) == []
    assert mount.status()["driver"] == "obstore"


class TestUnforeseenPaths:
    """One clear line, whatever a path holds, and nothing in the daemon's log."""

    COMMANDS = (
        ("pin",), ("unpin",), ("ttl", "1h"), ("locate",), ("refresh",), ("load",), ("load", "--background"), ("free",),
        ("persist",), ("detach",), ("status",), ("check",), ("metrics",), ("reload",), ("unmount",),
    )  # fmt: skip

    @pytest.fixture
    def ask(self, one: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        """Runs commands in this process, which is faster; returns exit code, output and errors."""
        monkeypatch.setenv("LUXFUSE_STATE_DIR", str(one.state))

        def run(*arguments: object) -> tuple[int, str, str]:
            capsys.readouterr()
            code = command_line.guard(lambda: command_line.run([str(argument) for argument in arguments]))
            return code, *capsys.readouterr()

        return run

    def test_names_that_are_not_there_and_odd_ones(self, one: Mount, ask) -> None:
        for name, (command, *more) in itertools.product(("caf\udce9", "not there"), self.COMMANDS):
            options = [word for word in more if word.startswith("-")]
            if name.isascii() and (command == "free" or "--background" in options):
                continue  # nothing there is nothing to do; what a load finds is told by its progress
            code, _, errors = ask(command, *options, one.path / name, *[word for word in more if not word.startswith("-")])
            assert code == 1, (command, errors)
            assert errors.startswith("luxfuse: ")
            assert errors.count("\n") == 1, (command, errors)
        odd = one.path / "a\nb\x1b[31m\u2028c"
        odd.write_bytes(b"x")
        for command in ("pin", "unpin", "locate", "refresh", "load", "persist", "free"):
            code, out, errors = ask(command, odd)
            assert (code, errors) == (0, ""), command
            assert "\x1b" not in out
        assert ask("ttl", odd, "1h") == (0, "", "")
        code, _, errors = ask("mount", one.source, one.base / "other", "--cache-dir", one.path / "cache")
        assert code == 2
        assert errors == f"luxfuse: cache_dir {one.path}/cache: lies on the luxfuse mount {one.path}; choose a local disk\n"

    @pytest.mark.parametrize("examples", [40, pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
    def test_control_requests(self, one: Mount, examples: int) -> None:
        """Whatever is asked for, however it is asked: the daemon answers in one line, and logs nothing."""

        def check(method: str, order: str, body: bytes) -> None:
            connection = _UnixConnection(one.directory() / "control.sock", 20)
            connection.request(method, f"/v1/{order}", body=body)
            with connection.getresponse() as response:
                answer = response.read()
            connection.close()
            assert response.status in (200, 400, 404, 405, 409, 502), answer
            if response.status != 200:
                assert "\n" not in json.loads(answer)["error"]
            elif order != "metrics":
                for line in answer.splitlines():
                    assert "unexpected" not in json.loads(line).get("aborted", "")

        orders = st.sampled_from([order for order in ORDERS if order != "unmount"])
        fuzz(examples, check, st.sampled_from(["POST", "POST", "GET"]), orders, bodies)
        assert one.status()["state"] == "serving"
        assert not one.unexpected_logs()


@pytest.mark.usefixtures("plain_user")
def test_what_fusermount3_says_is_shown(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    if re.search(r"^user_allow_other", Path("/etc/fuse.conf").read_text(), re.MULTILINE):
        pytest.skip("/etc/fuse.conf lets everybody in")
    mount = mounting.make(f"s3://{bucket}", "--allow-other", endpoint_url=s3.endpoint, plain_user=True)
    said = assert_fails(mount, "fusermount3 cannot mount here: ", "user_allow_other")
    assert "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf" in said


@pytest.mark.usefixtures("plain_user")
def test_what_is_closed_to_a_plain_user_is_told_in_one_line(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    mount = mounting.make(f"s3://{bucket}", "--cache-dir", f"{closed}/cache", endpoint_url=s3.endpoint, plain_user=True)
    assert_fails(mount, f"--cache-dir {closed}/cache", "Permission denied; give a directory that can be written")
    done = mount.cli(
        "doctor", f"s3://{bucket}", "--endpoint-url", s3.endpoint, "--cache-dir", f"{closed}/cache", "--read-only"
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(rf"^FAIL +cache +{closed}/cache on .*: Permission denied\n +-> make ", done.stdout, re.MULTILINE)


def test_sighup_opens_the_log_anew(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    path = mount.directory() / "daemon.log"
    path.rename(path.with_suffix(".moved"))
    os.kill(mount.pid, signal.SIGHUP)
    wait_for("there is a new one", path.exists)
    assert mount.unmount().returncode == 0
    assert "unmounted" in path.read_text()
    assert "unmounted" not in path.with_suffix(".moved").read_text()
