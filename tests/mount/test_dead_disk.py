"""The cache disk dies under a mount: nothing is read from it any more, the daemon and all that it does not need go on."""

from __future__ import annotations

import errno
import functools
from pathlib import Path

import pytest

from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.mounted import MIB, Mount, Mounts, content, digest, wait_for

LOGS = ("cache directory", "cannot be read; its files are not used", "Input/output error", "Bad message")
"""ext4 gives EBADMSG for names, once its journal has ended."""


@functools.cache
def all_files() -> dict[str, bytes]:
    small = {f"file{i}": content(("dead", i), 100_000 + i) for i in range(6)}
    return small | {"large": content("dead large", 12 * MIB), "cold": content("dead cold", 3 * MIB)}


WARM = [name for name in all_files() if name != "cold"]


def warm(mount: Mount) -> None:
    for name in WARM:
        assert mount.read(name) == digest(all_files()[name])
    wait_for("they are whole", lambda: all(mount.do("getxattr", f"{mount.path}/{n}", "user.luxfuse.state") == "cached"
                                           for n in WARM))  # fmt: skip
    for name in WARM:  # handed over
        assert mount.read(name) == digest(all_files()[name])


def is_dead(mount: Mount) -> bool:
    return "cannot be read; its files are not used" in mount.log()


def check_all(mount: Mount) -> None:
    for name, data in all_files().items():
        assert mount.read(name) == digest(data), name


@pytest.mark.parametrize("passthrough", ["true", "false"], ids=["passthrough", "data plane"])
def test_nobody_asks_the_daemon(disk: Disk, mounting: Mounts, s3: FastS3, bucket: str, fill, passthrough: str) -> None:
    fill(all_files())
    mount = mounting(
        f"s3://{bucket}", "--free-space-ratio", "0", endpoint_url=s3.endpoint, cache_dir=disk.path / "cache",
        options={"passthrough": passthrough}, expected_logs=LOGS,
    )  # fmt: skip
    warm(mount)
    reader = mount.reader()
    for name in ("file0", "large"):
        reader("open", name, f"{mount.path}/{name}")
        assert reader("all", name) == digest(all_files()[name])
    disk.die()
    wait_for("a probe finds out", lambda: is_dead(mount))
    for _ in range(2):
        check_all(mount)
    status = mount.status()
    assert status["state"] == "degraded"
    assert any("cache directory" in reason for reason in status["degraded_reasons"])
    assert status["fuse"]["errors"] == 0
    # The kernel reads an open file until it is closed. What the data plane cannot read, the daemon does.
    for name in ("file0", "large"):
        if status["passthrough"]:
            assert reader.error("all", name) == "EIO"
        else:
            assert reader("all", name) == digest(all_files()[name])
        reader("close", name)
    check_all(mount)
    assert mount.unmount().returncode == 0
    assert "level=critical" not in mount.log()


def test_opens_fail_until_that_is_noticed_and_no_longer(
    disk: Disk, mounting: Mounts, s3: FastS3, bucket: str, fill
) -> None:
    fill(all_files())
    mount = mounting(
        f"s3://{bucket}", "--free-space-ratio", "0", endpoint_url=s3.endpoint, cache_dir=disk.path / "cache",
        expected_logs=LOGS,
    )  # fmt: skip
    warm(mount)
    disk.die()
    errors = {mount.error("file", f"{mount.path}/{name}") for name in all_files()}
    assert errors <= {None, "EIO"}
    wait_for("it is noticed", lambda: is_dead(mount))
    check_all(mount)


def test_what_cannot_be_staged_is_refused_at_once(disk: Disk, mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    fill(all_files())
    mount = mounting(
        f"s3://{bucket}", "--free-space-ratio", "0", endpoint_url=s3.endpoint, cache_dir=disk.path / "cache",
        options={"write-mode": "async-through"}, expected_logs=LOGS,
    )  # fmt: skip
    warm(mount)
    write = "import os,sys;fd=os.open(sys.argv[1], os.O_CREAT|os.O_RDWR);os.write(fd,b'x'*65536);os.close(fd)"
    disk.die()
    wait_for("it is noticed", lambda: is_dead(mount))
    for name in ("new", "file1"):
        done = mount.run([mount.python, "-c", write, f"{mount.path}/{name}"])
        assert done.returncode != 0
        assert f"[Errno {errno.EIO}]" in done.stderr
    assert mount.read("file1") == digest(all_files()["file1"])
    assert mount.error("file", f"{mount.path}/new") == "ENOENT"
    check_all(mount)


def test_the_disk_of_the_state_directory(
    disk: Disk, mounting: Mounts, s3: FastS3, bucket: str, fill, tmp_path: Path
) -> None:
    """Nothing can be promised; what is cached is read, and commands say what they cannot see."""
    fill({"cached": b"cached", "other": b"other"})
    mount = mounting.make(
        f"s3://{bucket}", "--log-file", str(tmp_path / "log"), endpoint_url=s3.endpoint,
        options={"write-mode": "async-through"}, environment={"LUXFUSE_STATE_DIR": str(disk.path / "state")},
    )  # fmt: skip
    mount.state = disk.path / "state"
    mount.mount()
    assert mount.read("cached") == digest(b"cached")
    write = "import os,sys;fd=os.open(sys.argv[1], os.O_CREAT|os.O_RDWR);os.write(fd,b'x'*65536);os.close(fd)"
    disk.die()
    for name in ("new", "cached"):
        done = mount.run([mount.python, "-c", write, f"{mount.path}/{name}"])
        assert f"[Errno {errno.EIO}]" in done.stderr
    assert mount.read("other") == digest(b"other")
    assert any("journal cannot be written" in reason for reason in mount.status()["degraded_reasons"])
    mount.close_readers()
    done = mount.cli("unmount", mount.path)
    assert not mount.mounted
    assert "has no record of its daemon" in done.stderr
    disk.detach()


def test_another_tier_takes_over(disk: Disk, mounting: Mounts, s3: FastS3, bucket: str, fill, tmp_path: Path) -> None:
    fill(all_files())
    mount = mounting(
        f"s3://{bucket}", "--free-space-ratio", "0", "--cache-dir", f"{tmp_path}/other,tier=hdd", endpoint_url=s3.endpoint,
        cache_dir=f"{disk.path}/cache,tier=ssd", expected_logs=LOGS,
    )  # fmt: skip
    warm(mount)
    assert mount.status()["tiers"][0]["used_bytes"] > 12 * MIB
    reader = mount.reader()
    reader("open", "file0", f"{mount.path}/file0")
    disk.die()
    wait_for("a probe finds out", lambda: is_dead(mount))
    check_all(mount)
    wait_for("it is cached again", lambda: mount.do("getxattr", f"{mount.path}/large", "user.luxfuse.tier") == "hdd")
    for name in all_files():
        cached = functools.partial(mount.do, "getxattr", f"{mount.path}/{name}", "user.luxfuse.state")
        wait_for("so is the rest", lambda cached=cached: cached() == "cached")
    mount.await_answers()
    gets = mount.gets()
    for _ in range(2):
        check_all(mount)
    assert mount.gets() == gets
    assert mount.status()["reads"]["passthrough_opens"] > 0
