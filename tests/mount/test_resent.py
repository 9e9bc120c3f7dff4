"""The daemon is killed within a change, and its successor is sent the request again: the change is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.mount.test_crash import MORE, NEW, OLD, bucket_files, do
from tests.mount.test_keeper import DIED
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount, Mounts, put, wait_for

CALLS = """
import ctypes, stat
def renameat2(old, new, flags):
    if ctypes.CDLL(None, use_errno=True).renameat2(-100, old.encode(), -100, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
def whiteout(old, new, flags=4):
    renameat2(old, new, flags)
    left = os.lstat(old)
    assert stat.S_ISCHR(left.st_mode) and left.st_rdev == 0
def fallocate(fd, mode, offset, length):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
def read(name):
    return open(name, "rb").read()
"""
OPEN_AND_MOVED = """
fd = os.open("w3", os.O_CREAT | os.O_WRONLY)
os.write(fd, read("u"))
whiteout("w3", "w3-moved")
os.close(fd)
"""
BEFORE = {"w1": OLD, "w2": NEW, "wd/x": MORE, "n": NEW, "o": OLD, "u": OLD, "u.rclonelink": b"target"}
WRITTEN_AND_MOVED = """
fd = os.open("o", os.O_WRONLY)
os.write(fd, b"x" * 6000)
os.rename("o", "o-moved")
assert not os.path.exists("o") and os.stat("o-moved").st_size == 6000
os.close(fd)
"""
OVER_WHAT_IS_OPEN = """
fd = os.open("t", os.O_CREAT | os.O_WRONLY)
os.write(fd, b"t" * 5000)
over = os.open("s", os.O_CREAT | os.O_WRONLY)
os.write(over, read("u-moved"))
os.close(over)
os.rename("s", "t")
assert os.write(fd, b"more") == 4 and os.fstat(fd).st_size == 5004
os.close(fd)
assert not os.path.exists("s") and read("t") == read("u-moved")
"""
RENAMES = [
    ("move.named", 'whiteout("w1", "w1-moved")'),
    ("move.deleted", 'whiteout("w2", "w1-moved", 4)'),
    ("move-dirty.committed", OPEN_AND_MOVED),
    ("move-dirty.named", WRITTEN_AND_MOVED),
    ("move-directory.names-committed", 'whiteout("wd", "wd-moved", 5); assert os.listdir("wd-moved") == ["x"]'),
    ("move.deleted", 'renameat2("n", "n-moved", 1)'),
    ("move.deleted", 'os.rename("u", "u-moved"); assert os.readlink("u") == "target"'),  # which "u" has hidden
    ("orphan.noted", OVER_WHAT_IS_OPEN),
]
RENAMED = {
    "w1-moved": NEW,
    "w3-moved": OLD,
    "wd-moved/x": MORE,
    "n-moved": NEW,
    "o-moved": b"x" * 6000,
    "u-moved": OLD,
    "t": OLD,
    "u.rclonelink": b"target",
}
REMOVALS = [
    ("async-through", ("remove.local", "remove.noted", "remove.committed")),
    ("cache-through", ("remove.stored", "remove.local")),
]
LINK_OF_WHAT_IS_OPEN = """
fd = os.open("open-{0}", os.O_CREAT | os.O_WRONLY)
os.write(fd, read("a"))
os.link("open-{0}", "{0}")
os.close(fd)
assert read("{0}") == read("a") and os.stat("{0}").st_nlink == 1
"""
MADE_ANEW = """
os.unlink("k")
fd = os.open("k", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
os.write(fd, b"1")
os.close(fd)
assert read("k") == b"1"
"""
MADE = [
    ("make.named", MADE_ANEW),
    ("make.noted", 'os.mkfifo("fifo"); assert stat.S_ISFIFO(os.stat("fifo").st_mode)'),
    ("promise.committed", 'os.mknod("node", 0o600 | stat.S_IFREG); assert os.stat("node").st_size == 0'),
    ("link.copied", 'os.link("a", "a1"); assert read("a1") == read("a")'),
    ("link.named", 'os.link("a", "a2"); assert read("a2") == read("a")'),
    ("link.filled", LINK_OF_WHAT_IS_OPEN.format("o1")),
    ("link.promised", LINK_OF_WHAT_IS_OPEN.format("o2")),
]
LINKED = {"k": b"1", "a": OLD, "a1": OLD, "a2": OLD, "open-o1": OLD, "open-o2": OLD, "o1": OLD, "o2": OLD}
BLOCKS = """
fd = os.open("log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
for block in (b"1" * 2048, b"2" * 2048, b"3" * 2048):
    assert os.write(fd, block) == 2048
assert os.fstat(fd).st_size == 6144
"""
CONTENTS = [
    ("write.made", BLOCKS),
    ("attributes.made", 'fd = os.open("log", os.O_RDWR); os.ftruncate(fd, 5000); assert os.fstat(fd).st_size == 5000'),
    ("fallocate.made", 'fd = os.open("log", os.O_RDWR); fallocate(fd, 3, 1000, 2000); os.write(fd, b"0")'),
    ("fallocate.made", 'fd = os.open("log", os.O_RDWR); fallocate(fd, 0, 5000, 1000); assert os.fstat(fd).st_size == 6000'),
    ("attributes.made", 'os.truncate("a", 100); assert os.stat("a").st_size == 100'),
]
LOG = b"0" + b"1" * 999 + bytes(2000) + b"2" * 1096 + b"3" * 904 + bytes(1000)


def make(mount: Mount, once: Path, changes: Sequence[tuple[str, str]]) -> None:
    """Make changes one by one, each with the daemon killed at a step of it."""
    for number, (step, program) in enumerate(changes, 1):
        pid = mount.pid
        once.write_text(step)
        assert do(mount, CALLS + program), (step, program)
        assert not once.exists(), f"the daemon died at {step} of {program}"
        wait_for("a successor", lambda: mount.serves_as_successor_of(pid))  # noqa: B023 (it is called here)
        assert mount.status()["restarts"] == number


@pytest.fixture
def dying(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> Callable[..., Mount]:
    """Make a mount whose daemon dies at the step that a file says."""

    def mounted(**options: str) -> Mount:
        return mounting(
            f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
            options={"write_mode": "async-through", "hardlinks": "copy", **options},
            environment={DIE_AT: "", DIE_ONCE: str(tmp_path / "once")},
        )  # fmt: skip

    return mounted


def test_renames(dying: Callable[..., Mount], mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """That of a whiteout moved this over what it had just moved; the object was lost."""
    mounting.expected_logs.append("a file and a directory \\(or symlink\\) of one name")
    for key, data in BEFORE.items():
        put(s3, bucket, key, data)
    mount = dying()
    assert do(mount, CALLS + 'assert all(map(read, ("w1", "w2", "wd/x", "n", "o", "u")))')
    make(mount, tmp_path / "once", RENAMES)
    shown = {key.partition("/")[0] for key in RENAMED} - {"u.rclonelink"} | {"w1", "w2", "w3", "wd", "u"}
    assert set(mount.do("list", str(mount.path))) == shown
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == RENAMED


@pytest.mark.parametrize(("mode", "steps"), REMOVALS)
def test_removals(
    dying: Callable[..., Mount], mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, mode: str, steps: Sequence[str]
) -> None:
    """What shows when the name is gone was removed, too."""
    mounting.expected_logs.append("a file and a directory \\(or symlink\\) of one name")
    hidden = {f"{step}.rclonelink": b"target" for step in steps}
    for key, data in (dict.fromkeys(steps, OLD) | hidden).items():
        put(s3, bucket, key, data)
    mount = dying(write_mode=mode)
    assert do(mount, CALLS + f"assert all(stat.S_ISREG(os.lstat(name).st_mode) for name in {steps})")
    make(mount, tmp_path / "once", [(step, f"os.unlink({step!r})") for step in steps])
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == hidden


def test_what_is_made(dying: Callable[..., Mount], mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    mounting.expected_logs.append("'o1' was being written when the last run ended")  # of which nothing was promised yet
    for key in ("a", "k"):
        put(s3, bucket, key, OLD)
    mount = dying()
    assert do(mount, 'assert os.listdir(".")')
    make(mount, tmp_path / "once", MADE)
    assert mount.do("list", str(mount.path)) == sorted([*LINKED, "fifo", "node"])
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == LINKED
    assert (s3.bucket_path(bucket) / "node").read_bytes() == b""


def test_contents_in_copying_mode(dying: Callable[..., Mount], s3: FastS3, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "a", OLD)
    mount = dying(passthrough="off", dataplane="off")
    make(mount, tmp_path / "once", CONTENTS)
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {"a": OLD[:100], "log": LOG}
