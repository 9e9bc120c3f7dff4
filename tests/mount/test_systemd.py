"""A mount as a service: what systemd is told, and that it goes on though all its processes are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from luxfuse.keeper.systemd import HELD
from tests.mount.test_crash import bucket_files
from tests.mount.test_keeper import Program
from tests.support import real_systemd
from tests.support.fake_systemd import FakeSystemd
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, REPOSITORY, Mount, Mounts, digest, is_running, put, wait_for

STORED = ["luxfuse-device", "luxfuse-estate", HELD, HELD, "luxfuse-settings"]
"""The locks of a cache directory and a journal are held besides."""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    with closing(FakeSystemd(tmp_path)) as fake:
        yield fake


def service(mount: Mount) -> list[str | Path]:
    """The command of a mount as a service."""
    return [mount.python, "-P", "-m", "luxfuse.cli.main", "mount", mount.source, mount.path, *mount.flags, "--foreground"]


def stored(systemd: FakeSystemd) -> list[str]:
    """What it keeps, by name, but for what is held."""
    return [HELD if name.startswith(HELD) else name for name in sorted(systemd.store)]


def kill_all(main: subprocess.Popen[bytes], daemon: int) -> None:
    """As systemd does with KillMode=mixed once the main process is dead."""
    main.kill()
    main.wait(PATIENCE_S)
    os.kill(daemon, signal.SIGKILL)
    wait_for("the daemon is dead", lambda: not is_running(daemon))


def test_a_service_goes_on_though_all_its_processes_are_killed(
    systemd: FakeSystemd, mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting.make(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint)
    command = service(mount)
    with (tmp_path / "err").open("wb") as err:
        main = systemd.start(command, mount.environment, err)
        try:
            systemd.hear("READY=1")
            assert f"STATUS=serving {mount.source} at {mount.path}" in systemd.told
            assert stored(systemd) == STORED
            program = Program(
                mount,
                "f = os.open('a', os.O_RDONLY); w = os.open('w', os.O_CREAT | os.O_WRONLY); os.write(w, b'a' * 1000)",
                "assert os.pread(f, 100, 0) == b'content'; os.write(w, b'b' * 1000); os.mkdir('made')",
                "os.close(w)",
            )
            program.step()
            kill_all(main, mount.pid)
            program.begin()
            main = systemd.start([*command, "--read-only"], mount.environment, err)
            systemd.hear("READY=1")
            program.await_step()
            assert mount.status()["keeper_pid"] == main.pid
            systemd.hear("WATCHDOG=1")
            main.send_signal(signal.SIGHUP)
            systemd.hear("RELOADING=1")
            systemd.hear("READY=1")
            program.step()
            program.end()
            main.send_signal(signal.SIGTERM)
            assert main.wait(PATIENCE_S) == 0
            systemd.hear_the_rest()
            assert "STOPPING=1" in systemd.told
            assert systemd.store == {}
        finally:
            main.kill()
            main.wait(PATIENCE_S)
    assert "going on where the process before this one ended" in (tmp_path / "err").read_text()
    assert not mount.mounted
    found = bucket_files(s3.bucket_path(bucket))
    assert found["w"] == b"a" * 1000 + b"b" * 1000


def test_what_is_kept_of_a_mount_that_is_gone_is_given_back(
    systemd: FakeSystemd, mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """Somebody has unmounted it while no process was there: it is mounted anew."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
    command = service(mount)
    with (tmp_path / "err").open("wb") as err:
        main = systemd.start(command, mount.environment, err)
        try:
            systemd.hear("READY=1")
            kill_all(main, mount.pid)
            subprocess.run(["umount", "-l", "-f", mount.path], check=True, timeout=PATIENCE_S)
            main = systemd.start(command, mount.environment, err)
            systemd.hear("READY=1")
            assert stored(systemd) == STORED
            assert mount.read("a") == digest(b"content")
            mount.close_readers()
            main.send_signal(signal.SIGTERM)
            assert main.wait(PATIENCE_S) == 0
        finally:
            main.kill()
            main.wait(PATIENCE_S)
    assert "going on" not in (tmp_path / "err").read_text()


IN_SERVICE = """
import os, sys
os.chdir("/mnt/bucket")
f = os.open("a", os.O_RDONLY)
w = os.open("w", os.O_CREAT | os.O_WRONLY)
while sys.stdin.readline():
    assert os.pread(f, 100, 0) == b"content"
    os.write(w, b"x" * 1000)
    os.mkdir("made")
    os.rmdir("made")
    print("done", flush=True)
os.close(w)
"""
UNIT = "luxfuse@mnt-bucket.service"


@pytest.mark.slow
@pytest.mark.skipif(real_systemd.missing() is not None, reason=str(real_systemd.missing()))
def test_under_systemd(s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """The unit that ships, as process 1 runs it: whichever of its processes dies or hangs, programs go on."""
    put(s3, bucket, "a", b"content")
    for name in ("etc/luxfuse", "etc/systemd/system", "bin", "cache"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(REPOSITORY / "systemd" / "luxfuse@.service", tmp_path / "etc/systemd/system")
    (tmp_path / f"etc/systemd/system/{UNIT}.d").mkdir()
    (tmp_path / f"etc/systemd/system/{UNIT}.d/test.conf").write_text("[Service]\nWatchdogSec=20\n")
    (tmp_path / "etc/luxfuse/mnt-bucket.toml").write_text(
        f'source = "s3://{bucket}"\nendpoint_url = "{s3.endpoint}"\nwrite_mode = "async-through"\n'
        f'cache_dir = ["{tmp_path}/cache"]\n'
    )
    (tmp_path / "etc/luxfuse/mnt-bucket.env").write_text(
        "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test-secret\nAWS_REGION=us-east-1\n"
    )
    luxfuse = tmp_path / "bin" / "luxfuse"
    luxfuse.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m luxfuse.cli.main "$@"\n')
    luxfuse.chmod(0o755)
    with real_systemd.machine(tmp_path) as machine:
        machine.run("mkdir", "-p", "/mnt/bucket")
        machine.run("systemctl", "start", UNIT)
        program = subprocess.Popen(
            machine.command([sys.executable, "-I", "-S", "-c", IN_SERVICE]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None

        def step(what: str) -> None:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "done\n", f"{what}\n{machine.log()}"

        def status() -> dict[str, object]:
            found: dict[str, object] = json.loads(machine.run("luxfuse", "status", "--json", "/mnt/bucket"))
            return found

        def restarts() -> int:
            return int(machine.property(UNIT, "NRestarts"))

        try:
            step("begun")
            first = status()
            assert (first["passthrough"], first["keeper"]) == (True, True), first["passthrough_reason"]
            assert machine.property(UNIT, "NFileDescriptorStore") == "5"
            assert "serving s3://" in machine.property(UNIT, "StatusText")
            machine.run("kill", "-KILL", first["pid"])
            step("the daemon is killed")
            assert (restarts(), status()["restarts"]) == (0, 1)
            machine.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", UNIT)
            wait_for("the service is started again", lambda: restarts() == 1)
            step("the keeper is killed")
            machine.run("kill", "-STOP", status()["pid"])
            wait_for("the watchdog notices that the daemon does nothing", lambda: restarts() == 2)
            step("the daemon was stopped")
            machine.run("systemctl", "reload", UNIT)
            main = machine.property(UNIT, "MainPID")
            machine.run("luxfuse", "upgrade", "/mnt/bucket")
            step("it is upgraded")
            assert (machine.property(UNIT, "MainPID"), restarts()) == (main, 2)
            program.stdin.close()
            assert program.wait(PATIENCE_S) == 0
            machine.run("systemctl", "stop", UNIT)
            assert machine.property(UNIT, "Result") == "success", machine.log()
            assert machine.property(UNIT, "NFileDescriptorStore") == "0"
            assert "/mnt/bucket" not in machine.run("cat", "/proc/mounts")
        finally:
            program.kill()
            program.stdin.close()
            program.wait(PATIENCE_S)
            program.stdout.close()
    assert bucket_files(s3.bucket_path(bucket)) == {"a": b"content", "w": b"x" * 5000}
