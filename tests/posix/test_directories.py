"""mkdir, readdir and what directories say of themselves."""

from __future__ import annotations

import errno
import os
import shutil
import stat

import pytest

from tests.posix.calls import fails_with, make, names, opened, read, tick
from tests.posix.directory_stream import DirectoryStream
from tests.posix.places import Place


@pytest.mark.parametrize(("mode", "umask", "expected"), [(0o777, 0o022, 0o755), (0o700, 0o022, 0o700), (0o1777, 0, 0o1777)])
def test_mkdir(place: Place, mode: int, umask: int, expected: int) -> None:
    os.umask(umask)
    os.mkdir(place / "directory", mode)
    st = os.stat(place / "directory")
    assert (stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode)) == (stat.S_IFDIR, expected)
    assert names(place / "directory") == []


@pytest.mark.parametrize("what", ["directory", "file", "dangling"])
def test_mkdir_of_what_exists(place: Place, what: str) -> None:
    os.mkdir(place / "directory")
    make(place / "file")
    os.symlink("nothing", place / "dangling")
    with fails_with(errno.EEXIST):
        os.mkdir(place / what)
    assert names(place) == ["dangling", "directory", "file"]


def test_mkdir_where_it_cannot_be(place: Place) -> None:
    make(place / "file")
    with fails_with(errno.ENOENT):
        os.mkdir(place / "missing/directory")
    with fails_with(errno.ENOTDIR):
        os.mkdir(place / "file/directory")
    with fails_with(errno.EEXIST):
        os.mkdir(f"{place}/.")


def test_mkdir_inherits_setgid(place: Place) -> None:
    """In a setgid directory everything new has its group, and directories the bit."""
    os.mkdir(place / "directory")
    os.chown(place / "directory", 0, 4321)
    os.chmod(place / "directory", 0o2775)
    os.mkdir(place / "directory/sub", 0o755)
    make(place / "directory/file")
    os.mkfifo(place / "directory/fifo")
    os.symlink("file", place / "directory/link")
    sub = os.stat(place / "directory/sub")
    assert (sub.st_gid, stat.S_IMODE(sub.st_mode)) == (4321, 0o2755)
    for name in ("file", "fifo", "link"):
        st = os.lstat(place / f"directory/{name}")
        assert (st.st_gid, st.st_mode & stat.S_ISGID) == (4321, 0), name


def test_without_setgid_the_group_is_the_makers(place: Place) -> None:
    os.mkdir(place / "directory")
    os.chown(place / "directory", 0, 4321)
    os.mkdir(place / "directory/sub")
    assert os.stat(place / "directory/sub").st_gid == os.getegid()


def test_mkdir_and_rmdir_change_the_times_of_the_parent(place: Place) -> None:
    stamps = [os.stat(place).st_mtime_ns]
    for call in (os.mkdir, os.rmdir):
        tick()
        call(place / "directory")
        stamps.append(os.stat(place).st_mtime_ns)
    assert stamps == sorted(set(stamps))


def test_a_new_entry_changes_the_times_of_the_directory(place: Place) -> None:
    for number, call in enumerate((make, os.mkdir, os.mkfifo, lambda path: os.symlink("x", path))):
        before = os.stat(place)
        tick()
        call(place / f"{number}")
        after = os.stat(place)
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns


def test_links_of_directories(place: Place) -> None:
    """ext4 counts the directories below; the mounts may say 1, by which programs know that nobody counts."""
    os.makedirs(place / "directory/sub")
    count = os.stat(place / "directory").st_nlink
    assert count in ((1, 2, 3) if place.on_mount else (3,))


def test_listing_after_each_change(place: Place) -> None:
    expected: list[str] = []
    for i in range(40):
        make(place / f"file-{i:02d}")
        expected.append(f"file-{i:02d}")
        assert names(place) == expected
    for name in expected[::2]:
        os.unlink(place / name)
    os.rename(place / "file-01", place / "a")
    os.mkdir(place / "z")
    assert names(place) == sorted(["a", "z", *expected[3::2]])


def test_kinds_and_inodes_of_a_listing(place: Place) -> None:
    make(place / "file")
    os.mkdir(place / "directory")
    os.symlink("file", place / "link")
    os.mkfifo(place / "fifo")
    with os.scandir(place) as entries:
        found = {e.name: (e.inode(), e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.is_symlink())
                 for e in entries}  # fmt: skip
    assert found == {
        "file": (os.lstat(place / "file").st_ino, True, False, False),
        "directory": (os.lstat(place / "directory").st_ino, False, True, False),
        "link": (os.lstat(place / "link").st_ino, False, False, True),
        "fifo": (os.lstat(place / "fifo").st_ino, False, False, False),
    }


def test_dots_of_a_listing(place: Place) -> None:
    os.mkdir(place / "directory")
    with DirectoryStream(place / "directory") as stream:
        found = dict(stream.rest())
    assert set(found) == {b".", b".."}
    assert found[b"."] == os.stat(place / "directory").st_ino
    # The kernel answers stat of .. itself; what a listing says of it few look at.
    assert found[b".."] == os.stat(place).st_ino or place.on_mount


def test_a_large_listing(place: Place) -> None:
    """More than fits in one getdents."""
    os.mkdir(place / "directory")
    expected = sorted(f"{i:04d}-{'x' * 100}" for i in range(600))
    for name in expected:
        os.mknod(place.path / "directory" / name, stat.S_IFIFO | 0o600)  # stays local, so it costs no upload
    assert names(place / "directory") == expected
    for name in expected[:300]:
        os.unlink(place.path / "directory" / name)
    assert names(place / "directory") == expected[300:]


def test_reading_while_entries_come_and_go(place: Place) -> None:
    """What was there all the time comes exactly once, what was never there does not come."""
    stay = {b"stay-%03d" % i for i in range(150)}
    for name in stay:
        os.mkfifo(place.path / os.fsdecode(name))
    for i in range(150):
        os.mkfifo(place / f"go-{i:03d}")
    found: list[bytes] = []
    with DirectoryStream(place) as stream:
        for number, (name, _) in enumerate(stream.rest()):
            found.append(name)
            if number < 150:
                os.unlink(place / f"go-{number:03d}")
                os.mkfifo(place / f"come-{number:03d}")
    assert len(found) == len(set(found))
    assert stay <= set(found)
    possible = {b".", b"..", *stay, *(b"%s-%03d" % (w, i) for w in (b"go", b"come") for i in range(150))}
    assert set(found) <= possible


def test_removing_while_reading(place: Place) -> None:
    """As rm -r does; nothing is skipped."""
    for i in range(300):
        os.mkfifo(place / f"{i:03d}")
    with DirectoryStream(place) as stream:
        for name, _ in stream.rest():
            if not name.startswith(b"."):
                os.unlink(place.path / os.fsdecode(name))
    assert names(place) == []


def test_rewinddir_shows_changes(place: Place) -> None:
    make(place / "one")
    with DirectoryStream(place) as stream:
        assert {name for name, _ in stream.rest()} == {b".", b"..", b"one"}
        make(place / "two")
        os.unlink(place / "one")
        stream.rewind()
        assert {name for name, _ in stream.rest()} == {b".", b"..", b"two"}


def test_seekdir_goes_back_to_where_telldir_was(place: Place) -> None:
    for i in range(100):
        os.mkfifo(place / f"{i:03d}")
    with DirectoryStream(place) as stream:
        for _ in range(40):
            stream.next()
        there = stream.tell()
        rest = list(stream.rest())
        assert len(rest) == 62
        stream.seek(there)
        assert list(stream.rest()) == rest


def test_a_removed_directory_that_is_open_is_empty(place: Place) -> None:
    os.mkdir(place / "directory")
    with opened(place / "directory", os.O_DIRECTORY) as fd:
        os.rmdir(place / "directory")
        assert os.listdir(fd) == []
        with fails_with(errno.ENOENT):
            os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


def test_calls_relative_to_a_descriptor(place: Place) -> None:
    os.mkdir(place / "directory")
    with opened(place / "directory", os.O_DIRECTORY) as fd:
        os.mkdir("sub", dir_fd=fd)
        make(place / "directory/file", b"content")
        os.rename("file", "sub/file", src_dir_fd=fd, dst_dir_fd=fd)
        os.symlink("sub/file", "link", dir_fd=fd)
        os.mkfifo("fifo", dir_fd=fd)
        assert sorted(os.listdir(fd)) == ["fifo", "link", "sub"]
        assert os.stat("link", dir_fd=fd).st_size == 7
        os.unlink("sub/file", dir_fd=fd)
        os.rmdir("sub", dir_fd=fd)
    assert names(place / "directory") == ["fifo", "link"]


def test_a_tree_is_made_copied_and_removed(place: Place) -> None:
    for i in range(4):
        os.makedirs(place / f"tree/{i}/deep/deeper")
        make(place / f"tree/{i}/deep/deeper/file", b"%d" % i)
        make(place / f"tree/{i}/file", b"%d" % i)
    shutil.copytree(place / "tree", place / "copy")
    assert [read(place / f"copy/{i}/deep/deeper/file") for i in range(4)] == [b"0", b"1", b"2", b"3"]
    shutil.rmtree(place / "tree")
    assert names(place) == ["copy"]
    assert sum(len(files) for _, _, files in os.walk(place / "copy")) == 8
