"""Many processes and threads at once: every result is one that some order of the calls gives."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import RENAME_EXCHANGE, exists, make, names, opened, pattern, read, renameat2, unless_refused
from tests.posix.places import Place
from tests.posix.processes import Process

WORKERS = 4
ROUNDS = 15


def _all(work: Callable[[int], Any], count: int = WORKERS) -> list[Any]:
    """Return what the function returns for each number, in a process each, begun at the same time."""
    waiting, go = os.pipe()

    def begin(number: int) -> Any:
        os.close(go)
        os.read(waiting, 1)  # returns when nobody has the other end any more
        return work(number)

    workers = [Process(begin, number) for number in range(count)]
    os.close(go)
    os.close(waiting)
    return [worker.result() for worker in workers]


def _won(call: Callable[[], Any], *lost: int) -> bool:
    """Whether the call succeeds rather than loses."""
    return unless_refused(lambda: call() or True, *lost) is not None


def _exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


@pytest.mark.parametrize("call", [_exclusively, os.mkdir, os.mkfifo, lambda p: os.symlink("x", p)],
                         ids=["excl", "mkdir", "mkfifo", "symlink"])  # fmt: skip
def test_one_makes_a_name(place: Place, call) -> None:
    won = _all(lambda _: [_won(lambda i=i: call(place / f"{i}"), errno.EEXIST) for i in range(ROUNDS)])
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * ROUNDS
    assert names(place) == sorted(f"{i}" for i in range(ROUNDS))


@pytest.mark.parametrize(("make_it", "remove"), [(make, os.unlink), (os.mkdir, os.rmdir)], ids=["unlink", "rmdir"])
def test_one_removes_a_name(place: Place, make_it, remove) -> None:
    for i in range(ROUNDS):
        make_it(place / f"{i}")
    won = _all(lambda _: [_won(lambda i=i: remove(place / f"{i}"), errno.ENOENT) for i in range(ROUNDS)])
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * ROUNDS
    assert names(place) == []


def test_one_renames_a_name(place: Place) -> None:
    for i in range(ROUNDS):
        make(place / f"{i}", b"%d" % i)

    def work(number: int) -> list[bool]:
        return [_won(lambda i=i: os.rename(place / f"{i}", place / f"{i}-{number}"), errno.ENOENT) for i in range(ROUNDS)]

    won = _all(work)
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * ROUNDS
    expected = {f"{i}-{number}": b"%d" % i for number in range(WORKERS) for i in range(ROUNDS) if won[number][i]}
    assert {name: read(place / name) for name in names(place)} == expected


def test_creat_without_excl_gives_all_the_same_file(place: Place) -> None:
    def work(number: int) -> list[int]:
        inodes = []
        for i in range(ROUNDS):
            with opened(place / f"{i}", os.O_CREAT | os.O_WRONLY) as fd:
                os.pwrite(fd, b"%d" % number, number)
                inodes.append(os.fstat(fd).st_ino)
        return inodes

    inodes = _all(work)
    assert all(each == inodes[0] for each in inodes)
    assert [read(place / f"{i}") for i in range(ROUNDS)] == [b"0123"] * ROUNDS


def test_each_makes_its_own_names(place: Place) -> None:
    def work(number: int) -> None:
        for i in range(30):
            make(place / f"{number}-{i:02d}", b"%d %d" % (number, i))

    _all(work)
    expected = {f"{number}-{i:02d}": b"%d %d" % (number, i) for number in range(WORKERS) for i in range(30)}
    assert {name: read(place / name) for name in names(place)} == expected


def test_a_directory_that_all_hammer(place: Place) -> None:
    """Each worker has names of its own that come, move and go; at the end there is what each remembers."""

    def work(number: int) -> dict[str, bytes]:
        rng = random.Random(number)
        mine: dict[str, bytes] = {}
        for step in range(80):
            name, new = (f"{number}-{rng.randrange(6)}" for _ in range(2))
            action = rng.randrange(4)
            if action < 2:
                (place / name).write_bytes(b"%d" % step)
                mine[name] = b"%d" % step
            elif action == 2:
                assert _won(lambda name=name: os.unlink(place / name), errno.ENOENT) == (name in mine)
                mine.pop(name, None)
            else:
                moved = _won(lambda name=name, new=new: os.rename(place / name, place / new), errno.ENOENT)
                assert moved == (name in mine)
                if moved:
                    mine[new] = mine.pop(name)
            if step % 10 == 0:
                found = [each for each in os.listdir(place) if each.startswith(f"{number}-")]
                assert sorted(found) == sorted(mine)
        return mine

    expected: dict[str, bytes] = {}
    for mine in _all(work):
        expected |= mine
    assert {name: read(place / name) for name in names(place)} == expected


def test_a_replaced_file_is_always_whole(place: Place) -> None:
    """Readers see one content or the other, and always one."""
    contents = [pattern(20_000, 1), pattern(30_000, 2)]
    make(place / "file", contents[0])

    def work(number: int) -> None:
        if number == 0:
            for i in range(25):
                make(place / "new", contents[i % 2])
                os.rename(place / "new", place / "file")
            make(place / "done")
        else:
            seen = 0
            while not exists(place / "done") or not seen:
                found = unless_refused(lambda: read(place / "file"), errno.ESTALE)
                assert found is None or found in contents
                seen += found is not None

    _all(work, 3)
    assert names(place) == ["done", "file"]


def test_exchanged_names_always_exist(place: Place) -> None:
    make(place / "one", b"1")
    make(place / "two", b"2")

    def work(number: int) -> None:
        if number == 0:
            for _ in range(41):
                renameat2(place / "one", place / "two", RENAME_EXCHANGE)
            make(place / "done")
        else:
            while not exists(place / "done"):
                assert read(place / "one") in (b"1", b"2")
                assert read(place / "two") in (b"1", b"2")
                # Each entry stays, but under a different inode number: a listing of a mount may show a name twice.
                listed = os.listdir(place)
                assert {"one", "two"} <= set(listed)
                assert place.on_mount or len(listed) == len(set(listed))

    _all(work, 3)
    assert (read(place / "one"), read(place / "two")) == (b"2", b"1")


def test_a_directory_that_moves_under_readers(place: Place) -> None:
    os.mkdir(place / "one")
    make(place / "one/file", b"content")

    def work(number: int) -> None:
        if number == 0:
            for _ in range(20):
                os.rename(place / "one", place / "two")
                os.rename(place / "two", place / "one")
            make(place / "done")
        else:
            while not exists(place / "done"):
                for name in ("one", "two"):
                    found = unless_refused(lambda name=name: read(place / name / "file"), errno.ENOENT)
                    assert found in (None, b"content")

    _all(work, 3)
    assert names(place) == ["done", "one"]
    assert names(place / "one") == ["file"]


def test_directories_cannot_be_moved_into_each_other(place: Place) -> None:
    """Two moves that each alone may be, and together would make a loop: EINVAL where the loser had found both names."""
    for i in range(10):
        os.makedirs(place / f"{i}/one")
        os.makedirs(place / f"{i}/two")

    def work(number: int) -> list[bool]:
        source, target = ("one", "two") if number else ("two", "one")
        return [
            _won(
                lambda i=i: os.rename(place / f"{i}" / source, place / f"{i}" / target / source),
                errno.ENOENT,
                errno.EINVAL,
            )
            for i in range(10)
        ]

    won = _all(work, 2)
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * 10
    assert all(len(names(place / f"{i}")) == 1 for i in range(10))


def test_rmdir_against_creat(place: Place) -> None:
    """Either the directory goes or the file comes."""
    for i in range(ROUNDS):
        os.mkdir(place / f"{i}")

    def work(number: int) -> list[bool]:
        if number:
            return [_won(lambda i=i: make(place / f"{i}/file"), errno.ENOENT) for i in range(ROUNDS)]
        return [_won(lambda i=i: os.rmdir(place / f"{i}"), errno.ENOTEMPTY) for i in range(ROUNDS)]

    removed, made = _all(work, 2)
    assert [r + m for r, m in zip(removed, made, strict=True)] == [1] * ROUNDS
    assert names(place) == sorted(f"{i}" for i in range(ROUNDS) if made[i])


def test_writers_of_different_parts(place: Place) -> None:
    make(place / "file", bytes(WORKERS * 50_000))

    def work(number: int) -> None:
        with opened(place / "file", os.O_WRONLY) as fd:
            for i in range(50):
                os.pwrite(fd, bytes([65 + number]) * 1000, number * 50_000 + i * 1000)

    _all(work)
    assert read(place / "file") == b"".join(bytes([65 + n]) * 50_000 for n in range(WORKERS))


def test_threads_with_files_of_their_own(place: Place) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                path = place / f"{number}"
                path.write_bytes(pattern(5000 + i, number))
                assert path.read_bytes() == pattern(5000 + i, number)
                os.rename(path, place / f"{number}-moved")
                assert path.exists() is False
                os.unlink(place / f"{number}-moved")
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(place) == []
