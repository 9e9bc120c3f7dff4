"""rename of directories: with what is in them, over others, and with files open below."""

from __future__ import annotations

import errno
import os

from tests.posix.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    fails_with,
    make,
    names,
    opened,
    read,
    read_fd,
    renameat2,
    write_all,
)
from tests.posix.places import Place


def _make_tree(place: Place, name: str) -> dict[str, bytes]:
    """Make a directory with files at three depths, an empty directory and a link; returns path below it -> content."""
    files = {f: f"{name}/{f}".encode() for f in ("file", "sub/file", "sub/other", "sub/deeper/file")}
    os.makedirs(place.path / name / "sub/deeper")
    os.mkdir(place.path / name / "empty")
    os.symlink("sub/file", place.path / name / "link")
    for path, data in files.items():
        make(place.path / name / path, data)
    return files


def _assert_tree(place: Place, name: str, files: dict[str, bytes]) -> None:
    root = place.path / name
    assert names(root) == ["empty", "file", "link", "sub"]
    assert names(root / "empty") == []
    assert names(root / "sub") == ["deeper", "file", "other"]
    assert names(root / "sub/deeper") == ["file"]
    assert {path: read(root / path) for path in files} == files
    assert read(root / "link") == files["sub/file"]


def test_an_empty_directory(place: Place) -> None:
    os.mkdir(place / "one")
    inode = os.stat(place / "one").st_ino
    os.rename(place / "one", place / "two")
    assert names(place) == ["two"]
    assert names(place / "two") == []
    assert os.stat(place / "two").st_ino == inode
    with fails_with(errno.ENOENT):
        os.listdir(place / "one")


def test_with_content(place: Place) -> None:
    files = _make_tree(place, "one")
    inode = os.stat(place / "one/sub/file").st_ino
    os.rename(place / "one", place / "two")
    assert names(place) == ["two"]
    _assert_tree(place, "two", files)
    assert os.stat(place / "two/sub/file").st_ino == inode
    with fails_with(errno.ENOENT):
        os.stat(place / "one/sub/file")


def test_again_and_again(place: Place) -> None:
    files = _make_tree(place, "0")
    for i in range(5):
        os.rename(place / f"{i}", place / f"{i + 1}")
        _assert_tree(place, f"{i + 1}", files)
    assert names(place) == ["5"]


def test_into_another_directory(place: Place) -> None:
    files = _make_tree(place, "one")
    os.makedirs(place / "target/deep")
    os.rename(place / "one", place / "target/deep/one")
    _assert_tree(place, "target/deep/one", files)
    assert os.stat(place / "target/deep/one/..").st_ino == os.stat(place / "target/deep").st_ino
    os.rename(place / "target/deep/one/sub", place / "sub")
    assert names(place / "sub") == ["deeper", "file", "other"]
    assert names(place / "target/deep/one") == ["empty", "file", "link"]


def test_over_an_empty_directory(place: Place) -> None:
    files = _make_tree(place, "one")
    os.mkdir(place / "two")
    os.rename(place / "one", place / "two")
    assert names(place) == ["two"]
    _assert_tree(place, "two", files)


def test_over_a_directory_that_was_emptied(place: Place) -> None:
    files = _make_tree(place, "one")
    os.mkdir(place / "two")
    make(place / "two/file", b"old")
    os.unlink(place / "two/file")
    os.rename(place / "one", place / "two")
    _assert_tree(place, "two", files)


def test_over_a_full_directory(place: Place) -> None:
    files = _make_tree(place, "one")
    os.mkdir(place / "two")
    make(place / "two/file", b"two")
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(place / "one", place / "two")
    _assert_tree(place, "one", files)
    assert read(place / "two/file") == b"two"


def test_over_itself_and_into_itself(place: Place) -> None:
    files = _make_tree(place, "one")
    os.rename(place / "one", place / "one")
    for target in ("one/new", "one/sub/deeper/new", "one/empty"):
        with fails_with(errno.EINVAL):
            os.rename(place / "one", place / target)
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(place / "one/sub", place / "one")
    _assert_tree(place, "one", files)


def test_dots_cannot_be_renamed(place: Place) -> None:
    os.mkdir(place / "one")
    os.chdir(place / "one")
    for source, target in ((".", "../two"), ("..", "../two"), ("../one", "."), ("../one", "..")):
        with fails_with(errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST):
            os.rename(source, target)
    assert names(place) == ["one"]


def test_files_open_below(place: Place) -> None:
    _make_tree(place, "one")
    with (
        opened(place / "one/sub/file") as reader,
        opened(place / "one/sub/other", os.O_RDWR) as writer,
        opened(place / "one/sub/new", os.O_CREAT | os.O_RDWR) as new,
    ):
        write_all(new, b"before ")
        os.rename(place / "one", place / "two")
        assert read_fd(reader) == b"one/sub/file"
        os.pwrite(writer, b"changed", 0)
        write_all(new, b"after")
        assert read(place / "two/sub/new") == b"before after"
        assert os.fstat(writer).st_ino == os.stat(place / "two/sub/other").st_ino
    assert read(place / "two/sub/other") == b"changed/other"
    assert read(place / "two/sub/new") == b"before after"
    assert names(place) == ["two"]


def test_a_new_directory_under_the_old_name(place: Place) -> None:
    """What was open below the old one keeps to it."""
    _make_tree(place, "one")
    with opened(place / "one/sub/file", os.O_RDWR) as fd:
        os.rename(place / "one", place / "two")
        os.makedirs(place / "one/sub")
        make(place / "one/sub/file", b"another")
        os.pwrite(fd, b"changed", 0)
    assert read(place / "one/sub/file") == b"another"
    assert read(place / "two/sub/file") == b"changed/file"
    assert names(place / "one/sub") == ["file"]


def test_the_working_directory(place: Place) -> None:
    _make_tree(place, "one")
    os.chdir(place / "one/sub")
    os.rename(place / "one", place / "two")
    assert read("file") == b"one/sub/file"
    make("fresh", b"fresh")
    assert read(place / "two/sub/fresh") == b"fresh"
    assert os.getcwd() == str(place / "two/sub")


def test_an_open_directory(place: Place) -> None:
    _make_tree(place, "one")
    with opened(place / "one/sub", os.O_DIRECTORY) as fd:
        os.rename(place / "one", place / "two")
        assert sorted(os.listdir(fd)) == ["deeper", "file", "other"]
        with opened("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd) as inner:
            write_all(inner, b"made")
        os.unlink("other", dir_fd=fd)
    assert names(place / "two/sub") == ["deeper", "file", "made"]
    assert read(place / "two/sub/made") == b"made"


def test_noreplace(place: Place) -> None:
    files = _make_tree(place, "one")
    os.mkdir(place / "two")
    with fails_with(errno.EEXIST):
        renameat2(place / "one", place / "two", RENAME_NOREPLACE)
    renameat2(place / "one", place / "three", RENAME_NOREPLACE)
    _assert_tree(place, "three", files)
    assert names(place) == ["three", "two"]


def test_exchange_of_directories(place: Place) -> None:
    one, two = _make_tree(place, "one"), _make_tree(place, "two")
    make(place / "two/sub/deeper/only", b"two")
    with opened(place / "one/file", os.O_RDWR) as fd:
        renameat2(place / "one", place / "two", RENAME_EXCHANGE)
        os.pwrite(fd, b"ONE", 0)
    os.unlink(place / "one/sub/deeper/only")
    _assert_tree(place, "one", two)
    _assert_tree(place, "two", one | {"file": b"ONE/file"})


def test_exchange_of_a_file_and_a_directory(place: Place) -> None:
    files = _make_tree(place, "one")
    make(place / "file", b"content")
    renameat2(place / "file", place / "one", RENAME_EXCHANGE)
    assert read(place / "one") == b"content"
    _assert_tree(place, "file", files)


def test_exchange_with_what_is_below(place: Place) -> None:
    files = _make_tree(place, "one")
    for source, target in (("one", "one/sub"), ("one/sub", "one")):
        with fails_with(errno.EINVAL, errno.ENOTEMPTY):
            renameat2(place / source, place / target, RENAME_EXCHANGE)
    _assert_tree(place, "one", files)


def test_many_files(place: Place) -> None:
    """More than one listing page of some stores would be slow here; 60 are more than requests under way at once."""
    os.mkdir(place / "one")
    for i in range(60):
        make(place / f"one/{i:03d}", b"%d" % i)
    os.rename(place / "one", place / "two")
    assert names(place / "two") == [f"{i:03d}" for i in range(60)]
    assert all(read(place / f"two/{i:03d}") == b"%d" % i for i in range(60))
