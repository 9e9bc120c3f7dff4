"""Names and paths: how long, of which bytes, and what comes of . and .. and slashes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.posix.calls import exists, fails_with, make, names, opened, read, unless_refused
from tests.posix.places import Place

LONGEST = 255
KEY_BYTES = 1024  # the longest key that S3 has; the directories of a test come before the names below
UNUSUAL = [
    "with space", " leading", "trailing ", "line\nbreak", "tab\tbell\a", "-dash", "--help", "quote'single", 'quote"double',
    "back\\slash", "semi;colon", "star*", "ques?tion", "per%20cent", "plus+plus", "amp&amp;", "<angle>", "hash#tag", "a=b",
    "né", "ne\u0301", "日本語", "emoji😀", "\u202eright-to-left", "\x7f", "\x01", "...", "..name", ".hidden", "name.",
    "~", "$HOME", "{brace}", "[bracket]", "@at", "comma,colon:", "NUL", "con.txt", "|pipe`tick`",
]  # fmt: skip


def _creat(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _symlink(path: str) -> None:
    os.symlink("target", path)


MAKERS: dict[str, Callable[[str], None]] = {
    "creat": _creat, "mkdir": os.mkdir, "symlink": _symlink, "mkfifo": os.mkfifo
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL, ids=ascii)
def test_unusual_names(place: Place, name: str) -> None:
    make(place.path / name, b"content")
    assert names(place) == [name]
    assert read(place.path / name) == b"content"
    os.rename(place.path / name, place / "other")
    os.mkdir(place.path / name)
    make(place.path / name / name)
    assert names(place) == sorted([name, "other"])
    os.rename(place / "other", place.path / name / "other")
    assert names(place.path / name) == sorted([name, "other"])
    os.unlink(place.path / name / name)
    os.unlink(place.path / name / "other")
    os.rmdir(place.path / name)
    assert names(place) == []


def test_names_that_differ_in_case_or_form_are_different(place: Place) -> None:
    different = ["name", "Name", "NAME", "né", "ne\u0301", "name ", "name."]
    for name in different:
        make(place.path / name, name.encode())
    assert names(place) == sorted(different)
    for name in different:
        assert read(place.path / name) == name.encode()


def test_a_name_that_is_not_utf8(place: Place) -> None:
    """Keys are text: the mount refuses such names with EILSEQ."""
    path = os.fsencode(place.path) + b"/bad-\xff\xfe"
    if place.on_mount:
        for call in MAKERS.values():
            with fails_with(errno.EILSEQ):
                call(os.fsdecode(path))
        with fails_with(errno.ENOENT, errno.EILSEQ):
            os.stat(path)
        make(place / "file")
        with fails_with(errno.EILSEQ):
            os.rename(place / "file", path)
        assert names(place) == ["file"]
    else:
        make(path, b"content")
        assert os.listdir(os.fsencode(place.path)) == [b"bad-\xff\xfe"]


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_longest_name(place: Place, how: str, letter: str) -> None:
    # A symlink's object is NAME.rclonelink, which must be a file name, too: servers may keep objects in files.
    longest = LONGEST - len(".rclonelink") if place.on_mount and how == "symlink" else LONGEST
    name = letter * (longest // len(letter.encode()))
    name += "x" * (longest - len(name.encode()))
    MAKERS[how](f"{place}/{name}")
    assert names(place) == [name]


@pytest.mark.parametrize("how", MAKERS)
def test_a_name_too_long_to_create(place: Place, how: str) -> None:
    longest = LONGEST - len(".rclonelink") if place.on_mount and how == "symlink" else LONGEST
    with fails_with(errno.ENAMETOOLONG):
        MAKERS[how](f"{place}/{'x' * (longest + 1)}")
    assert names(place) == []


def test_a_name_too_long_to_find(place: Place) -> None:
    path = f"{place}/{'x' * (LONGEST + 1)}"
    for call in (os.stat, os.lstat, os.unlink, os.rmdir, os.readlink, os.listdir):
        with fails_with(errno.ENAMETOOLONG):
            call(path)
    make(place / "file")
    with fails_with(errno.ENAMETOOLONG):
        os.rename(place / "file", path)
    with fails_with(errno.ENAMETOOLONG):
        os.rename(path, place / "file")
    assert names(place) == ["file"]


def test_the_longest_name_can_be_renamed_and_removed(place: Place) -> None:
    one, two = place.path / ("a" * LONGEST), place.path / ("b" * LONGEST)
    make(one, b"content")
    os.rename(one, two)
    assert read(two) == b"content"
    os.unlink(two)
    assert names(place) == []


def test_path_max(place: Place) -> None:
    """A path of 4,095 bytes is one, one of 4,096 is not."""
    make(place / "file", b"content")
    room = 4095 - len(str(place)) - len("/file")
    path = f"{place}{'/.' * (room // 2)}{'/' * (room % 2)}/file"
    assert len(path) == 4095
    assert read(path) == b"content"
    with opened(f"{path[:-4]}made", os.O_CREAT | os.O_WRONLY):
        pass
    for call in (os.stat, os.unlink, os.listdir):
        with fails_with(errno.ENAMETOOLONG):
            call(f"/{path}")
    assert names(place) == ["file", "made"]


def test_a_deep_tree(place: Place) -> None:
    """To the length of a path; on a mount of S3 to that of a key."""
    longest = KEY_BYTES - len("/1-directory-of-the-test".ljust(80)) if place.on_mount else 4095 - len(str(place))
    path, depth = str(place), 0
    while len(path) - len(str(place)) + 200 < longest:
        path += "/" + f"{depth}-".ljust(120, "d")
        os.mkdir(path)
        depth += 1
    make(f"{path}/file", b"deep")
    assert read(f"{path}/file") == b"deep"
    assert depth >= 6
    found = [names_ for _, names_, _ in os.walk(place)]
    assert sum(map(len, found)) == depth


def test_dots(place: Place) -> None:
    os.mkdir(place / "directory")
    make(place / "file", b"content")
    assert read(place / "directory/../file") == b"content"
    assert os.stat(place / "directory/.").st_ino == os.stat(place / "directory").st_ino
    assert os.stat(place / "directory/..").st_ino == os.stat(place).st_ino
    with fails_with(errno.ENOTDIR):
        os.stat(f"{place}/file/.")
    with fails_with(errno.ENOENT):
        os.stat(place / "missing/..")


def test_slashes_at_the_end(place: Place) -> None:
    make(place / "file")
    os.mkdir(f"{place}/directory/")
    assert os.stat(f"{place}//directory//").st_ino == os.stat(place / "directory").st_ino
    for call in (os.stat, os.lstat, os.unlink):
        with fails_with(errno.ENOTDIR):
            call(f"{place}/file/")
    with fails_with(errno.ENOENT):
        os.symlink("target", f"{place}/link/")
    with fails_with(errno.ENOTDIR):
        os.rename(f"{place}/file/", f"{place}/other")
    with fails_with(errno.ENOTDIR):
        os.rename(f"{place}/file", f"{place}/other/")
    os.rename(f"{place}/directory/", f"{place}/moved/")
    assert names(place) == ["file", "moved"]


def test_the_empty_path(place: Place) -> None:
    os.chdir(place)
    for call in (os.stat, os.unlink, os.mkdir, os.rmdir, os.listdir):
        with fails_with(errno.ENOENT):
            call("")
    with fails_with(errno.ENOENT):
        os.symlink("", "link")


@pytest.mark.parametrize("name", ["name.rclonelink", ".rclonelink", "directory.rclonelink"])
def test_the_ending_of_symlink_objects(place: Place, name: str) -> None:
    """rclone's convention keeps symlinks in NAME.rclonelink: a file so named works or is refused, and is never lost."""
    refusals = (errno.EINVAL, errno.EPERM, errno.EILSEQ) if place.on_mount else ()
    if unless_refused(lambda: make(place.path / name, b"no link"), *refusals) is None:
        assert names(place) == []
        assert not exists(place.path / name)
        return
    assert names(place) == [name]
    assert read(place.path / name) == b"no link"
    os.unlink(place.path / name)
    assert names(place) == []
