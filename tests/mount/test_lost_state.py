"""The state directory is lost or damaged, and with it the journal: the cache directory tells what was promised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from luxfuse.fuse import mountpoint
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mount, Mounts, content, digest

LOGS = ("cannot be brought to the under-store yet", "cannot be removed yet", "was not the last to be used with the cache")

WORK = r"""
import os, sys
os.chdir(sys.argv[1])
def write(name, data, mode="wb"):
    with open(name, mode) as file:
        file.write(data)
write("tiny", b"tiny" * 50)
write("small", bytes(range(256)) * 40)
write("large", b"0123456789abcdef" * (3 << 16))
write("before", b"renamed " * 1000)
os.rename("before", "after")
os.mkdir("dir")
write("dir/inner", b"inner" * 5000)
os.chmod("dir/inner", 0o640)
os.utime("dir/inner", ns=(10**18, 10**18))
os.setxattr("dir/inner", "user.note", b"kept")
os.symlink("dir/inner", "link")
write("old", b"appended", "ab")
write("twice", b"first" * 5000)
write("twice", b"second")
os.remove("removed")
"""


@pytest.fixture
def mount(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> Mount:
    """A mount in which everything was acknowledged that `WORK` does, none of which has come to the store; then killed."""
    fill({"old": content("old", 2 * MIB), "removed": b"x", "other": b"other"})
    made = mounting(
        f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"write_mode": "async-through"},
        expected_logs=LOGS,
    )  # fmt: skip
    assert made.read("old") == digest(content("old", 2 * MIB))
    proxy.only(lambda request: request.method in ("PUT", "POST", "DELETE"))
    proxy.set(error_probability=1.0, error_status=403)
    made.run([made.python, "-c", WORK, made.path], check=True)
    made.kill()
    proxy.clear()
    mountpoint.unmount(str(made.path), lazy=True)
    made.close_readers()
    return made


def check(mount: Mount, objects: Path) -> None:
    """Everything is there under its name, and goes to the store."""
    large = b"0123456789abcdef" * (3 << 16)
    expected = {
        "tiny": b"tiny" * 50, "small": bytes(range(256)) * 40, "large": large, "after": b"renamed " * 1000,
        "dir/inner": b"inner" * 5000, "old": content("old", 2 * MIB) + b"appended", "twice": b"second", "other": b"other",
    }  # fmt: skip
    for name, data in expected.items():
        assert mount.read(name) == digest(data), name
    inner = mount.run(["stat", "-c", "%a %Y", f"{mount.path}/dir/inner"], check=True).stdout.split()
    assert inner == ["640", str(10**9)]
    assert mount.do("getxattr", f"{mount.path}/dir/inner", "user.note") == "kept"
    assert mount.run(["readlink", f"{mount.path}/link"], check=True).stdout == "dir/inner\n"
    assert mount.error("stat", f"{mount.path}/removed") == "ENOENT"
    assert mount.error("stat", f"{mount.path}/before") == "ENOENT"
    assert mount.unmount().returncode == 0
    for name, data in expected.items():
        assert (objects / name).read_bytes() == data, name
    assert not (objects / "removed").exists()
    assert not (objects / "before").exists()
    assert not list(mount.cache.glob("*/staging/0*"))
    assert not list(mount.state.glob("recovered/*/*"))


def test_a_fresh_state_directory_over_the_old_cache(mount: Mount, s3: FastS3, bucket: str) -> None:
    shutil.rmtree(mount.state)
    done = mount.try_mount()
    assert done.returncode == 0, done.stderr
    assert "9 changed files" in done.stderr
    check(mount, s3.root / bucket)


@pytest.mark.parametrize("how", ["garbled", "zeroed"])
def test_a_damaged_journal_names_what_to_do(mount: Mount, s3: FastS3, bucket: str, how: str) -> None:
    (journal,) = mount.state.glob("journal/*")
    size = (journal / "data.mdb").stat().st_size
    (journal / "data.mdb").write_bytes(bytes(size) if how == "zeroed" else content("garbled", size))
    done = mount.try_mount()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    command = re.search(r"run: (mv \S+ \S+), and mount again", done.stderr)
    assert command, done.stderr
    subprocess.run(command[1].split(), check=True)
    done = mount.try_mount()
    assert done.returncode == 0, done.stderr
    check(mount, s3.root / bucket)


def test_a_journal_that_was_cut_off_is_not_taken_for_an_empty_one(mount: Mount, s3: FastS3, bucket: str) -> None:
    (journal,) = mount.state.glob("journal/*")
    os.truncate(journal / "data.mdb", 0)
    done = mount.try_mount()
    assert done.returncode == 0, done.stderr
    check(mount, s3.root / bucket)
