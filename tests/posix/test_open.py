"""open(2): flags and what it refuses."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import (
    exists,
    fails_with,
    link_fd,
    make,
    names,
    opened,
    pattern,
    read,
    tick,
    unless_refused,
    write_all,
)
from tests.posix.places import Place

CREATE = os.O_CREAT | os.O_WRONLY


def test_creat_makes_an_empty_file_of_its_mode(place: Place) -> None:
    with opened(place / "file", CREATE, 0o640) as fd:
        st = os.fstat(fd)
    assert (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_size) == (stat.S_IFREG, 0o640, 0)
    assert read(place / "file") == b""
    assert names(place) == ["file"]


def test_umask_applies(place: Place) -> None:
    os.umask(0o027)
    with opened(place / "file", CREATE, 0o666):
        pass
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o640


def test_creat_of_an_existing_file_keeps_content_and_mode(place: Place) -> None:
    make(place / "file", b"content", 0o600)
    with opened(place / "file", os.O_CREAT | os.O_RDWR, 0o777) as fd:
        assert os.read(fd, 10) == b"content"
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o600


def test_creat_through_a_dangling_symlink_makes_the_target(place: Place) -> None:
    os.symlink("target", place / "link")
    with opened(place / "link", CREATE) as fd:
        write_all(fd, b"x")
    assert read(place / "target") == b"x"
    assert os.path.islink(place / "link")


def test_creat_for_reading_only(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDONLY) as fd, fails_with(errno.EBADF):
        os.write(fd, b"x")
    assert exists(place / "file")


def test_creat_without_permission_to_write_gives_a_writable_descriptor(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR, 0o000) as fd:
        write_all(fd, b"secret")
    assert read(place / "file") == b"secret"
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0


@pytest.mark.parametrize("what", ["file", "directory", "dangling"])
def test_excl_refuses_what_exists(place: Place, what: str) -> None:
    make(place / "file")
    os.mkdir(place / "directory")
    os.symlink("nothing", place / "dangling")
    with fails_with(errno.EEXIST):
        os.open(place / what, CREATE | os.O_EXCL)
    assert not exists(place / "nothing")


def test_excl_creates(place: Place) -> None:
    with opened(place / "file", CREATE | os.O_EXCL):
        pass
    os.unlink(place / "file")
    with opened(place / "file", CREATE | os.O_EXCL):
        pass


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_CREAT | os.O_RDONLY, os.O_WRONLY | os.O_TRUNC])
def test_a_directory_is_not_opened_for_writing(place: Place, flags: int) -> None:
    os.mkdir(place / "directory")
    with fails_with(errno.EISDIR):
        os.open(place / "directory", flags)


def test_a_directory_is_not_read_as_a_file(place: Place) -> None:
    with opened(place) as fd, fails_with(errno.EISDIR):
        os.read(fd, 1)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_PATH, os.O_DIRECTORY, os.O_WRONLY | os.O_TRUNC])
def test_a_missing_file(place: Place, flags: int) -> None:
    with fails_with(errno.ENOENT):
        os.open(place / "missing", flags)


def test_creat_in_a_missing_directory(place: Place) -> None:
    with fails_with(errno.ENOENT):
        os.open(place / "missing/file", CREATE)


def test_below_a_file(place: Place) -> None:
    make(place / "file")
    for flags in (os.O_RDONLY, CREATE):
        with fails_with(errno.ENOTDIR):
            os.open(place / "file/below", flags)
    with fails_with(errno.ENOTDIR):
        os.open(f"{place}/file/", os.O_RDONLY)


def test_creat_with_a_slash_at_the_end(place: Place) -> None:
    with fails_with(errno.EISDIR):
        os.open(f"{place}/new/", CREATE)
    assert names(place) == []


def test_trunc_empties(place: Place) -> None:
    make(place / "file", pattern(10_000))
    before = os.stat(place / "file")
    tick()
    with opened(place / "file", os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        assert os.stat(place / "file").st_size == 0
    after = os.stat(place / "file")
    assert after.st_ino == before.st_ino
    assert after.st_mtime_ns > before.st_mtime_ns
    assert read(place / "file") == b""


def test_trunc_shows_to_open_descriptors(place: Place) -> None:
    make(place / "file", pattern(10_000))
    with opened(place / "file", os.O_RDWR) as held, opened(place / "file") as reader:
        assert len(os.pread(reader, 20_000, 0)) == 10_000
        with opened(place / "file", os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, b"new")
            assert os.fstat(held).st_size == 3
            assert os.pread(reader, 100, 0) == b"new"
            assert os.pread(held, 100, 0) == b"new"


def test_trunc_with_creat(place: Place) -> None:
    for content in (b"first, long", b"second"):
        with opened(place / "file", CREATE | os.O_TRUNC) as fd:
            write_all(fd, content)
        assert read(place / "file") == content


def test_directory_flag(place: Place) -> None:
    make(place / "file")
    os.mkdir(place / "directory")
    os.symlink("directory", place / "link")
    with opened(place / "directory", os.O_DIRECTORY), opened(place / "link", os.O_DIRECTORY):
        pass
    with fails_with(errno.ENOTDIR):
        os.open(place / "file", os.O_DIRECTORY)


def test_nofollow(place: Place) -> None:
    make(place / "file", b"content")
    os.symlink("file", place / "link")
    with opened(place / "file", os.O_NOFOLLOW) as fd:
        assert os.read(fd, 10) == b"content"
    for flags in (os.O_RDONLY, os.O_WRONLY, CREATE):
        with fails_with(errno.ELOOP):
            os.open(place / "link", flags | os.O_NOFOLLOW)


def test_nofollow_with_directory(place: Place) -> None:
    os.symlink(".", place / "link")
    with fails_with(errno.ENOTDIR, errno.ELOOP):
        os.open(place / "link", os.O_NOFOLLOW | os.O_DIRECTORY)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_synchronous_writes(place: Place, flag: int) -> None:
    with opened(place / "file", CREATE | flag) as fd:
        for part in (b"one ", b"two ", b"three"):
            write_all(fd, part)
            assert read(place / "file").endswith(part)
    assert read(place / "file") == b"one two three"


def test_direct(place: Place) -> None:
    """Whole blocks from aligned memory, or no O_DIRECT at all."""
    block = mmap.mmap(-1, 8192)
    block[:] = pattern(8192)
    fd = unless_refused(lambda: os.open(place / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644), errno.EINVAL)
    if fd is None:
        return
    try:
        assert os.pwritev(fd, [block], 4096) == 8192
        back = mmap.mmap(-1, 16384)
        assert os.preadv(fd, [back], 0) == 12288
        assert back[:12288] == bytes(4096) + pattern(8192)
    finally:
        os.close(fd)
    assert read(place / "file") == bytes(4096) + pattern(8192)


def test_direct_and_buffered_agree(place: Place) -> None:
    make(place / "file", pattern(16384))
    direct = unless_refused(lambda: os.open(place / "file", os.O_RDWR | os.O_DIRECT), errno.EINVAL)
    if direct is None:
        return
    block = mmap.mmap(-1, 4096)
    with opened(place / "file", os.O_RDWR) as buffered:
        os.pread(buffered, 16384, 0)
        block[:] = b"d" * 4096
        os.pwritev(direct, [block], 4096)
        assert os.pread(buffered, 4096, 4096) == b"d" * 4096
        os.pwrite(buffered, b"b" * 4096, 8192)
        assert os.preadv(direct, [block], 8192) == 4096
        assert block[:] == b"b" * 4096
    os.close(direct)


def test_path_descriptor(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file", os.O_PATH) as fd:
        assert os.fstat(fd).st_size == 7
        for call in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x"), lambda: os.fchmod(fd, 0o600)):
            with fails_with(errno.EBADF):
                call()
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"content"


def test_path_descriptor_of_a_symlink(place: Place) -> None:
    os.symlink("target", place / "link")
    with opened(place / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "target"


def test_path_descriptor_of_a_directory(place: Place) -> None:
    os.mkdir(place / "directory")
    with opened(place / "directory", os.O_PATH) as fd:
        with opened("file", CREATE, dir_fd=fd) as inner:
            write_all(inner, b"x")
        os.fchdir(fd)
    assert read("file") == b"x"
    assert os.getcwd() == f"{place}/directory"


def test_tmpfile_works_or_is_refused(place: Place) -> None:
    refusals = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
    fd = unless_refused(lambda: os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600), *refusals)
    if fd is None:
        assert place.on_mount
        assert names(place) == []
        return
    write_all(fd, b"content")
    assert names(place) == []
    assert os.pread(fd, 10, 0) == b"content"
    assert os.fstat(fd).st_nlink == 0
    if not place.on_mount:  # hard links: EPERM by choice
        link_fd(fd, place / "named")
        assert read(place / "named") == b"content"
    os.close(fd)


@pytest.mark.parametrize("flag", [os.O_NONBLOCK, os.O_NOCTTY, os.O_NOATIME, os.O_ASYNC, os.O_CLOEXEC | os.O_LARGEFILE])
def test_flags_that_change_little(place: Place, flag: int) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR | flag) as fd:
        write_all(fd, b"content")
        assert os.pread(fd, 10, 0) == b"content"


def test_many_descriptors_of_one_file(place: Place) -> None:
    make(place / "file", b"0" * 200)
    fds = [os.open(place / "file", (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)[i % 3]) for i in range(200)]
    for i, fd in enumerate(fds):
        if i % 3:
            os.pwrite(fd, b"1", i)
    expected = "".join("1" if i % 3 else "0" for i in range(200)).encode()
    for i, fd in enumerate(fds):
        if i % 3 != 1:
            assert os.pread(fd, 300, 0) == expected
        os.close(fd)
    assert read(place / "file") == expected
