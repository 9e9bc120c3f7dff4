"""O_APPEND: every write goes to the end, whoever else writes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.posix.calls import make, opened, pattern, read, write_all
from tests.posix.places import Place
from tests.posix.processes import Process

APPEND = os.O_CREAT | os.O_APPEND | os.O_WRONLY
RECORDS, WRITERS = 100, 4


def _record(writer: int, number: int, length: int) -> bytes:
    return f"{writer}:{number:04d}:".encode().ljust(length - 1, b"abcd"[writer : writer + 1]) + b"\n"


def _append_records(path: Path, writer: int, length: int, *, reopen: bool) -> None:
    fd = os.open(path, APPEND)
    for number in range(RECORDS):
        assert os.write(fd, _record(writer, number, length)) == length
        if reopen and number % 20 == 19:
            os.close(fd)
            fd = os.open(path, APPEND)
    os.close(fd)


def _assert_all_there(data: bytes, length: int) -> None:
    records = [data[i : i + length] for i in range(0, len(data), length)]
    wanted = [_record(writer, number, length) for writer in range(WRITERS) for number in range(RECORDS)]
    lost = sorted(record[:6].decode() for record in set(wanted) - set(records))
    assert not lost, f"{len(lost)} records are lost: {lost}"
    assert sorted(records) == sorted(wanted)
    for writer in range(WRITERS):  # each writer's records are in the order in which it wrote them
        numbers = [record[:7] for record in records if record.startswith(b"%d:" % writer)]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("length", [37, 5000])
@pytest.mark.parametrize("reopen", [False, True], ids=["held", "reopened"])
def test_several_processes_lose_nothing(place: Place, length: int, reopen: bool) -> None:
    def work(writer: int) -> None:
        _append_records(place / "file", writer, length, reopen=reopen)

    workers = [Process(work, writer) for writer in range(WRITERS)]
    for worker in workers:
        worker.result()
    _assert_all_there(read(place / "file"), length)


def test_several_threads_lose_nothing(place: Place) -> None:
    with opened(place / "file", APPEND) as fd:

        def work(writer: int) -> None:
            for number in range(RECORDS):
                os.write(fd, _record(writer, number, 50))

        threads = [threading.Thread(target=work, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _assert_all_there(read(place / "file"), 50)


def test_the_end_is_found_at_each_write(place: Place) -> None:
    make(place / "file", b"start")
    with opened(place / "file", os.O_RDWR | os.O_APPEND) as fd, opened(place / "file", os.O_WRONLY) as other:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b" one")
        os.pwrite(other, b" two", 9)
        os.write(fd, b" three")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 19
        assert os.pread(fd, 100, 0) == b"start one two three"


def test_after_another_truncated(place: Place) -> None:
    make(place / "file", b"0123456789")
    with opened(place / "file", os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"x")
        os.truncate(place / "file", 3)
        os.write(fd, b"end")
        assert os.pread(fd, 100, 0) == b"012end"
        os.truncate(place / "file", 8)
        os.write(fd, b"!")
    assert read(place / "file") == b"012end\0\0!"


def test_pwrite_appends_too(place: Place) -> None:
    """Linux: with O_APPEND the offset is not looked at (pwrite(2), BUGS)."""
    make(place / "file", b"0123456789")
    with opened(place / "file", os.O_WRONLY | os.O_APPEND) as fd:
        os.pwrite(fd, b"end", 2)
    assert read(place / "file") == b"0123456789end"


def test_appends_and_reads_interleave(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd:
        expected = b""
        for i in range(20):
            part = pattern(1 + 777 * i, i)
            write_all(fd, part)
            expected += part
            os.lseek(fd, 0, os.SEEK_SET)
            assert os.read(fd, len(expected) + 1) == expected


def test_a_log_that_is_opened_for_each_line(place: Place) -> None:
    for i in range(30):
        with (place / "log").open("a") as log:
            log.write(f"line {i}\n")
    assert read(place / "log").decode().splitlines() == [f"line {i}" for i in range(30)]


@pytest.mark.parametrize("change", [
    lambda path: os.chmod(path, 0o600), lambda path: os.chown(path, 7, 8), lambda path: os.utime(path, (1, 1)),
    lambda path: os.setxattr(path, "user.name", b"value"), lambda path: os.truncate(path, 7),
    lambda path: os.rename(path, f"{path}.moved") or os.rename(f"{path}.moved", path),
], ids=["chmod", "chown", "utime", "setxattr", "truncate", "rename"])  # fmt: skip
def test_after_a_change_that_is_no_write(place: Place, change) -> None:
    """To a file that was just closed: the append must go to the file that all see."""
    for path in (place / "one", place / "two"):
        make(path, b"content")
        change(path)
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b" and more")
            assert os.fstat(fd).st_size == 16
            assert read(path) == b"content and more"
        assert os.stat(path).st_size == 16
        assert read(path) == b"content and more"
