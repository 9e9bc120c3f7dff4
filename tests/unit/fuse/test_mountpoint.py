"""The mount table, resolving paths, refusals before mounting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint
from luxfuse.fuse.mountpoint import MountInfo, find_mount, is_inside, parse_mountinfo, resolve

TABLE = r"""
25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
90 25 0:45 / /mnt/a\040b rw,nosuid master:3 propagate_from:2 - fuse.luxfuse s3://bucket/x\040y rw,user_id=0
91 25 0:46 / /mnt/a\040b ro - tmpfs none rw
92 25 0:47 / /mnt/\134n rw - fuse.sshfs host: rw

nonsense
93 25 0:47 / /x rw
"""


def test_parse_mountinfo() -> None:
    mounts = parse_mountinfo(TABLE)
    assert [mount.mountpoint for mount in mounts] == ["/", "/mnt/a b", "/mnt/a b", "/mnt/\\n"]
    assert mounts[1] == MountInfo(
        "/mnt/a b", "fuse.luxfuse", "s3://bucket/x y", "0:45", ("rw", "nosuid", "rw", "user_id=0")
    )
    assert [mount.is_fuse for mount in mounts] == [False, True, False, True]


def test_the_topmost_mount_is_found() -> None:
    mounts = parse_mountinfo(TABLE)
    found = find_mount("/mnt/a b", mounts)
    assert found is not None
    assert found.fstype == "tmpfs"
    assert find_mount("/mnt", mounts) is None


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_escaped_mountpoints_come_back(name: str) -> None:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in name)
    (mount,) = parse_mountinfo(f"1 1 0:1 / /{escaped} rw - fuse x rw".replace("\r", "r")) or [None]
    if not set(name) & set("\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"):
        assert mount is not None
        assert mount.mountpoint == f"/{name}"


def test_resolve_follows_links_like_realpath(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "absolute").symlink_to(tmp_path / "link/deep")
    for text in ("link/deep", "absolute/..", "absolute/x/../y", "link/./deep//z", "missing/a"):
        path = tmp_path / text
        assert resolve(f"{tmp_path}/{text}") == os.path.realpath(path)
    assert resolve("/") == "/"


def test_resolve_does_not_look_below_a_fuse_mount(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/link").symlink_to("/etc")
    fuse = MountInfo(f"{tmp_path}/mnt", "fuse.luxfuse", "s3://b", "0:45", ())
    assert resolve(f"{tmp_path}/mnt/link", [fuse]) == f"{tmp_path}/mnt/link"
    assert resolve(f"{tmp_path}/mnt/link/../a", [fuse]) == f"{tmp_path}/mnt/a"
    assert resolve(f"{tmp_path}/mnt/link", []) == "/etc"


def test_resolve_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("a/b") == f"{os.path.realpath(tmp_path)}/a/b"


def test_resolve_gives_up_on_a_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="symbolic links"):
        resolve(tmp_path / "loop")


def test_is_inside() -> None:
    assert is_inside("/a/b", "/a")
    assert is_inside("/a", "/a")
    assert is_inside("/a", "/")
    assert not is_inside("/ab", "/a")


def test_check_accepts_an_empty_directory(tmp_path: Path) -> None:
    mountpoint.check(str(tmp_path))


def test_check_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cases = {
        "missing": "does not exist; create it with",
        "file": "is not a directory",
        ".": "is not empty",
    }
    for name, text in cases.items():
        with pytest.raises(MountError, match=text) as caught:
            mountpoint.check(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("fstype", "text"), [("fuse.luxfuse", "luxfuse unmount"), ("tmpfs", "is mounted there")])
def test_check_refuses_a_mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str, text: str) -> None:
    mount = MountInfo(os.path.realpath(tmp_path), fstype, "s", "0:9", ())
    monkeypatch.setattr(mountpoint, "read_mounts", lambda: [mount])
    with pytest.raises(MountError, match=text):
        mountpoint.check(str(tmp_path))


def test_unmount_of_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="is not mounted"):
        mountpoint.unmount(str(tmp_path))


def test_a_busy_mount_names_its_users(tmp_path: Path, requires_root: None) -> None:
    where = os.path.realpath(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "none", where], check=True)
    reader = subprocess.Popen(["sleep", "30"], cwd=where)
    try:
        with pytest.raises(MountError, match=rf"busy: in use by sleep \(pid {reader.pid}\)"):
            mountpoint.unmount(where)
        mountpoint.unmount(where, lazy=True)
        assert find_mount(where) is None
    finally:
        reader.kill()
        reader.wait()
        if find_mount(where):
            mountpoint.unmount(where, lazy=True)


def test_mount_and_abort_a_device(tmp_path: Path, requires_root: None, requires_fuse: None) -> None:
    where = os.path.realpath(tmp_path)
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = ["rootmode=40000", "user_id=0", "group_id=0"]
        mountpoint.mount_device(fd, where, "s3://a b,c", options, mountpoint.MS_NOSUID | mountpoint.MS_NODEV)
        mount = find_mount(where)
        assert mount is not None
        assert (mount.fstype, mount.source) == ("fuse.luxfuse", "s3://a b,c")
        assert {"nosuid", "nodev"} <= set(mount.options)
        assert resolve(f"{where}/never/answered") == f"{where}/never/answered"
        with pytest.raises(MountError, match="luxfuse unmount"):
            mountpoint.check(where)
        mountpoint.unmount(where, force=True)
        assert find_mount(where) is None
    finally:
        os.close(fd)
        if find_mount(where):
            mountpoint.unmount(where, lazy=True)


def test_mount_device_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="cannot be mounted"):
        mountpoint.mount_device(0, str(tmp_path), "x", ["nonsense"], 0)


SENDS_A_DEVICE = """
import os, socket
with socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])) as comm, open("/dev/null") as device:
    socket.send_fds(comm, [b"x"], [device.fileno()])
"""


@pytest.fixture
def fusermount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a Python program in the place of fusermount3."""

    def take(program: str) -> None:
        directory = tmp_path / "bin"
        directory.mkdir()
        (directory / "fusermount3").write_text(f"#!{sys.executable}\n{program}")
        (directory / "fusermount3").chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    return take


def test_no_program_inherits_the_device_of_fusermount3(fusermount: Callable[[str], None], tmp_path: Path) -> None:
    fusermount(SENDS_A_DEVICE)
    device = mountpoint.fusermount_device(str(tmp_path), "s3://b", [])
    assert os.readlink(f"/proc/self/fd/{device}") == "/dev/null"
    assert not os.get_inheritable(device)
    os.close(device)


def test_a_fusermount3_that_sends_no_device(fusermount: Callable[[str], None], tmp_path: Path) -> None:
    fusermount("")
    with pytest.raises(MountError, match="cannot be mounted: fusermount3 sent no device"):
        mountpoint.fusermount_device(str(tmp_path), "s3://b", [])


def test_a_fusermount3_that_hangs_leaves_no_mount(
    fusermount: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires_root: None
) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    fusermount(
        "import subprocess, sys, time\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[-1]], check=True)\n"
        "open(sys.argv[-1] + '/../made', 'w').close()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(mountpoint, "FSTYPE", "tmpfs")
    monkeypatch.setattr(mountpoint, "_FUSERMOUNT_TIMEOUT_S", 2)
    with pytest.raises(MountError, match="cannot be mounted: fusermount3 does not answer") as caught:
        mountpoint.fusermount_device(str(where), "s3://b", [])
    assert "--force" not in str(caught.value)
    assert (tmp_path / "made").exists()
    assert find_mount(str(where)) is None
