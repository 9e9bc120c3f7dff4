"""FIFOs, sockets and device nodes; programs that run."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.posix.calls import fails_with, make, names, opened, read, unless_refused, write_all
from tests.posix.places import Place
from tests.posix.processes import LIMIT_S, PLAIN_UID, Process, as_other, as_user


def _write_line(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        write_all(fd, b"through the fifo")


def test_a_fifo_carries_bytes_between_processes(place: Place) -> None:
    os.mkfifo(place / "fifo", 0o600)
    assert stat.S_ISFIFO(os.stat(place / "fifo").st_mode)
    writer = Process(_write_line, place / "fifo")
    assert read(place / "fifo") == b"through the fifo"
    writer.result()
    assert os.stat(place / "fifo").st_size == 0
    assert names(place) == ["fifo"]


def test_a_fifo_that_nobody_reads(place: Place) -> None:
    os.mkfifo(place / "fifo")
    with fails_with(errno.ENXIO):
        os.open(place / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with opened(place / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader:
        with opened(place / "fifo", os.O_WRONLY | os.O_NONBLOCK) as writer:
            os.write(writer, b"x")
        assert os.read(reader, 10) == b"x"


def test_a_fifo_renamed_and_removed_while_open(place: Place) -> None:
    os.mkfifo(place / "fifo")
    with opened(place / "fifo", os.O_RDWR) as fd:
        os.rename(place / "fifo", place / "renamed")
        with opened(place / "renamed", os.O_WRONLY) as writer:
            os.write(writer, b"x")
        os.unlink(place / "renamed")
        assert os.read(fd, 10) == b"x"
    assert names(place) == []


def test_a_fifo_takes_the_place_of_a_file(place: Place) -> None:
    """What it replaced is gone for good: under the same name, something else can be made."""
    make(place / "file", b"old")
    os.mkfifo(place / "fifo")
    os.rename(place / "fifo", place / "file")
    assert stat.S_ISFIFO(os.stat(place / "file").st_mode)
    os.unlink(place / "file")
    with fails_with(errno.ENOENT):
        os.stat(place / "file")
    assert names(place) == []
    os.mkdir(place / "file")
    assert names(place) == ["file"]


def test_mode_and_owner_of_a_fifo(place: Place) -> None:
    os.umask(0o027)
    as_user(PLAIN_UID, os.mkfifo, place / "fifo", 0o666)
    st = os.stat(place / "fifo")
    assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (PLAIN_UID, 0o640)
    with fails_with(errno.EACCES):
        as_other(os.open, place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.chmod(place / "fifo", 0o604)
    assert stat.S_IMODE(os.stat(place / "fifo").st_mode) == 0o604
    assert stat.S_ISFIFO(os.stat(place / "fifo").st_mode)


def test_mkfifo_of_what_exists(place: Place) -> None:
    make(place / "file")
    for name in ("file", "."):
        with fails_with(errno.EEXIST):
            os.mkfifo(f"{place}/{name}")
    with fails_with(errno.ENOENT):
        os.mkfifo(place / "missing/fifo")


def test_mknod_of_a_plain_file(place: Place) -> None:
    os.mknod(place / "file", stat.S_IFREG | 0o640)
    as_other(os.mknod, place / "other")
    for name in ("file", "other"):
        assert stat.S_ISREG(os.stat(place / name).st_mode)
        assert read(place / name) == b""
    with opened(place / "file", os.O_WRONLY) as fd:
        write_all(fd, b"content")
    assert read(place / "file") == b"content"
    with fails_with(errno.EEXIST):
        os.mknod(place / "file", stat.S_IFREG | 0o640)


def test_mknod_of_what_it_does_not_make(place: Place) -> None:
    with fails_with(errno.EPERM, errno.EINVAL):
        os.mknod(place / "directory", stat.S_IFDIR | 0o755)
    with fails_with(errno.EPERM, errno.EINVAL):
        os.mknod(place / "link", stat.S_IFLNK | 0o777)
    assert names(place) == []


@pytest.mark.parametrize("how", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket(place: Place, how: int) -> None:
    os.chdir(place)  # the address of a socket has room for 107 bytes
    with socket.socket(socket.AF_UNIX, how) as server, socket.socket(socket.AF_UNIX, how) as client:
        server.bind("socket")
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
        if how != socket.SOCK_DGRAM:
            server.listen()
        client.connect("socket")
        client.send(b"hello")
        receiver = server if how == socket.SOCK_DGRAM else server.accept()[0]
        assert receiver.recv(10) == b"hello"
        with fails_with(errno.EADDRINUSE), socket.socket(socket.AF_UNIX, how) as another:
            another.bind("socket")
    assert names(place) == ["socket"]


def test_a_socket_renamed(place: Place) -> None:
    os.chdir(place)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        os.rename("socket", "renamed")
        client.connect("renamed")
        with fails_with(errno.ENOENT), socket.socket(socket.AF_UNIX) as another:
            another.connect("socket")


def test_a_socket_that_nobody_listens_to(place: Place) -> None:
    os.chdir(place)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    with socket.socket(socket.AF_UNIX) as client:
        with fails_with(errno.ECONNREFUSED):
            client.connect("socket")
        with fails_with(errno.ENXIO):
            os.open("socket", os.O_RDWR)
    os.unlink("socket")
    assert names(place) == []


@pytest.mark.parametrize(
    ("kind", "device"), [(stat.S_IFCHR, (1, 3)), (stat.S_IFCHR, (300, 70_000)), (stat.S_IFBLK, (7, 200))]
)
def test_a_device_node(place: Place, kind: int, device: tuple[int, int]) -> None:
    os.mknod(place / "node", kind | 0o600, os.makedev(*device))
    st = os.stat(place / "node")
    assert (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)) == (kind, 0o600)
    assert (os.major(st.st_rdev), os.minor(st.st_rdev)) == device
    os.rename(place / "node", place / "renamed")
    assert os.stat(place / "renamed").st_rdev == st.st_rdev
    os.unlink(place / "renamed")
    assert names(place) == []


def test_a_device_node_is_not_usable_on_a_mount(place: Place) -> None:
    """They are mounted nodev; ext4 here may be either."""
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    fd = unless_refused(lambda: os.open(place / "null", os.O_WRONLY), errno.EACCES)
    assert fd is None or not place.on_mount
    if fd is not None:
        os.close(fd)


def test_device_nodes_are_made_by_root_only(place: Place) -> None:
    with fails_with(errno.EPERM):
        as_other(os.mknod, place / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert names(place) == []


def _program(place: Place) -> Path:
    path = place / "program"
    shutil.copy(os.path.realpath("/bin/sleep"), path)
    return path


def test_a_program_runs(place: Place) -> None:
    assert subprocess.run([_program(place), "0"], timeout=LIMIT_S, check=False).returncode == 0


def test_a_program_being_written_does_not_run(place: Place) -> None:
    path = _program(place)
    with opened(path, os.O_WRONLY), fails_with(errno.ETXTBSY):
        subprocess.run([path, "0"], timeout=LIMIT_S, check=False)
    assert subprocess.run([path, "0"], timeout=LIMIT_S, check=False).returncode == 0


def test_a_program_that_runs_is_not_written_but_replaced(place: Place) -> None:
    path = _program(place)
    running = subprocess.Popen([path, "60"])
    try:
        with fails_with(errno.ETXTBSY):
            os.open(path, os.O_WRONLY)
        with fails_with(errno.ETXTBSY):
            os.truncate(path, 0)
        make(place / "new", b"new")
        os.rename(place / "new", path)
        assert running.poll() is None
    finally:
        running.kill()
        running.wait(LIMIT_S)
    assert read(path) == b"new"
