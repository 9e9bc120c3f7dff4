"""stat and what changes it: chmod, chown; statvfs."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.calls import MIB, fails_with, make, now_ns, opened, pattern, read, tick, write_all
from tests.posix.places import Place


def test_of_a_new_file(place: Place) -> None:
    began = now_ns()
    make(place / "file", b"content", 0o640)
    st = os.stat(place / "file")
    assert stat.S_ISREG(st.st_mode)
    assert (stat.S_IMODE(st.st_mode), st.st_size, st.st_nlink) == (0o640, 7, 1)
    assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())
    assert st.st_dev == os.stat(place).st_dev
    assert st.st_blksize > 0
    for stamp in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns):
        assert began <= stamp <= began + 5 * 10**9


def test_stat_fstat_and_lstat_agree(place: Place) -> None:
    make(place / "file", pattern(10_000))
    with opened(place / "file", os.O_RDWR) as fd:
        for _ in range(3):
            os.write(fd, b"more")
            one, two, three = os.fstat(fd), os.stat(place / "file"), os.lstat(place / "file")
            for field in ("st_ino", "st_dev", "st_mode", "st_size", "st_nlink", "st_mtime_ns", "st_ctime_ns", "st_uid"):
                assert getattr(one, field) == getattr(two, field) == getattr(three, field), field


def test_inode_numbers_are_different_and_stay(place: Place) -> None:
    for i in range(20):
        make(place / f"{i}")
    first = [os.stat(place / f"{i}").st_ino for i in range(20)]
    assert len(set(first)) == 20
    for i in range(20):
        with opened(place / f"{i}", os.O_WRONLY) as fd:
            os.write(fd, b"changed")
    assert [os.stat(place / f"{i}").st_ino for i in range(20)] == first


def test_blocks_of_a_file_with_content(place: Place) -> None:
    make(place / "file", pattern(MIB))
    with opened(place / "file", os.O_RDWR) as fd:
        os.fsync(fd)
        for st in (os.fstat(fd), os.stat(place / "file")):
            assert MIB <= st.st_blocks * 512 <= 2 * MIB
    make(place / "empty")
    assert os.stat(place / "empty").st_blocks == 0


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6777, 0o7777])
def test_chmod(place: Place, mode: int) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    tick()
    os.chmod(place / "file", mode)
    after = os.stat(place / "file")
    assert stat.S_IMODE(after.st_mode) == mode
    assert stat.S_ISREG(after.st_mode)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    assert read(place / "file") == b"content"


def test_fchmod_of_files_being_written(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR, 0o600) as fd:
        write_all(fd, b"content")
        os.fchmod(fd, 0o751)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o751
        assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o751
        write_all(fd, b" more")
    st = os.stat(place / "file")
    assert (stat.S_IMODE(st.st_mode), st.st_size) == (0o751, 12)


def test_chmod_of_a_directory(place: Place) -> None:
    os.mkdir(place / "directory")
    for mode in (0o700, 0o2775, 0o1777, 0o000):
        os.chmod(place / "directory", mode)
        st = os.stat(place / "directory")
        assert (stat.S_ISDIR(st.st_mode), stat.S_IMODE(st.st_mode)) == (True, mode)


def test_chmod_through_a_symlink(place: Place) -> None:
    make(place / "file")
    os.symlink("file", place / "link")
    os.chmod(place / "link", 0o600)
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(place / "link").st_mode) == 0o777


def test_chown(place: Place) -> None:
    make(place / "file", b"content", 0o640)
    before = os.stat(place / "file")
    tick()
    os.chown(place / "file", 7, 8)
    after = os.stat(place / "file")
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (7, 8, 0o640)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    os.chown(place / "file", -1, 9)
    os.chown(place / "file", 10, -1)
    st = os.stat(place / "file")
    assert (st.st_uid, st.st_gid) == (10, 9)


def test_fchown_and_chown_of_directories(place: Place) -> None:
    os.mkdir(place / "directory")
    os.chown(place / "directory", 7, 8)
    with opened(place / "directory") as fd:
        os.fchown(fd, -1, 9)
    st = os.stat(place / "directory")
    assert (st.st_uid, st.st_gid) == (7, 9)


def test_large_owners(place: Place) -> None:
    make(place / "file")
    os.chown(place / "file", 4_000_000_000, 3_999_999_999)
    st = os.stat(place / "file")
    assert (st.st_uid, st.st_gid) == (4_000_000_000, 3_999_999_999)


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "file"])
def test_attributes_survive_a_rename(place: Place, kind: str) -> None:
    path = place / kind
    {
        "fifo": os.mkfifo, "link": lambda p: os.symlink("target", p), "directory": os.mkdir, "file": make
    }[kind](path)  # fmt: skip
    os.chown(path, 7, 8, follow_symlinks=False)
    if kind != "link":
        os.chmod(path, 0o2710)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    before = os.lstat(path)
    os.rename(path, place / "renamed")
    after = os.lstat(place / "renamed")
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ino", "st_size"):
        assert getattr(after, field) == getattr(before, field), field


def test_attributes_of_a_closed_file_stay_when_it_is_written(place: Place) -> None:
    make(place / "file", b"content", 0o751)
    os.chown(place / "file", 7, 8)
    with opened(place / "file", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b" and more")
    st = os.stat(place / "file")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), st.st_size) == (7, 8, 0o751, 16)


def test_what_is_missing(place: Place) -> None:
    make(place / "file")
    for path, number in ((place / "missing", errno.ENOENT), (place / "file/below", errno.ENOTDIR)):
        for call in (
            os.stat, os.lstat, lambda p: os.chmod(p, 0o600), lambda p: os.chown(p, 1, 1), os.utime
        ):  # fmt: skip
            with fails_with(number):
                call(path)


def test_statvfs(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        for st in (os.statvfs(place), os.statvfs(place / "file"), os.fstatvfs(fd)):
            assert st.f_namemax == 255
            assert st.f_bsize > 0
            assert st.f_frsize > 0
            assert 0 < st.f_bavail <= st.f_bfree <= st.f_blocks
            assert not st.f_flag & os.ST_RDONLY
