"""mmap: what is stored in a mapping is the file's, what is written to the file is in the mapping."""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import resource
import signal

import pytest

from tests.posix.calls import MIB, fails_with, make, opened, pattern, read, read_fd
from tests.posix.places import Place
from tests.posix.processes import Died, Process

SIZE = 3 * MIB + 100
OLD = pattern(SIZE)


def _shared(fd: int, length: int = 0) -> mmap.mmap:
    return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_reads(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file") as fd:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with mmap.mmap(fd, 0, flags, mmap.PROT_READ) as mapped:
                assert mapped[:] == OLD


def test_a_store_is_read_at_once(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, opened(place / "file") as reader, _shared(fd) as mapped:
        for offset in (0, 5000, MIB, SIZE - 3):
            mapped[offset : offset + 3] = b"NEW"
            assert os.pread(fd, 3, offset) == b"NEW"
            assert os.pread(reader, 3, offset) == b"NEW"
            with opened(place / "file") as fresh:
                assert os.pread(fresh, 3, offset) == b"NEW"
        assert os.fstat(fd).st_size == SIZE


def test_stores_stay_after_all_is_closed(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
        mapped[1000:1003] = b"NEW"
        mapped[2 * MIB : 2 * MIB + 3] = b"TOO"
    expected = bytearray(OLD)
    expected[1000:1003] = b"NEW"
    expected[2 * MIB : 2 * MIB + 3] = b"TOO"
    assert read(place / "file") == expected


@pytest.mark.parametrize("flush", [False, True], ids=["munmap", "msync"])
def test_stores_after_the_descriptor_was_closed(place: Place, flush: bool) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd:
        mapped = _shared(fd)
    mapped[4096:4099] = b"NEW"
    assert read(place / "file")[4096:4099] == b"NEW"
    mapped[8192:8195] = b"TOO"
    if flush:
        mapped.flush()
    mapped.close()
    expected = bytearray(OLD)
    expected[4096:4099] = b"NEW"
    expected[8192:8195] = b"TOO"
    assert read(place / "file") == expected


def test_stores_of_a_process_that_was_killed(place: Place) -> None:
    make(place / "file", OLD)

    def store_and_die() -> None:
        with opened(place / "file", os.O_RDWR) as fd:
            mapped = _shared(fd)
        mapped[7000:7003] = b"NEW"
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(Died, match="SIGKILL"):
        Process(store_and_die).result()
    assert read(place / "file")[6999:7004] == OLD[6999:7000] + b"NEW" + OLD[7003:7004]


def test_a_write_shows_in_the_mapping(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, opened(place / "file", os.O_RDWR) as other, _shared(fd) as mapped:
        assert mapped[:10] == OLD[:10]
        os.pwrite(fd, b"own", 0)
        assert mapped[:3] == b"own"
        os.pwrite(other, b"other", MIB)
        assert mapped[MIB : MIB + 5] == b"other"
        assert mapped[MIB + 5 :] == OLD[MIB + 5 :]


def test_mappings_of_two_processes_are_one(place: Place) -> None:
    make(place / "file", bytes(8192))

    def answer() -> None:
        with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
            assert mapped[100:108] == b"question"
            mapped[5000:5006] = b"answer"

    with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
        mapped[100:108] = b"question"
        Process(answer).result()
        assert mapped[5000:5006] == b"answer"


def test_private_stores_do_not_reach_the_file(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file") as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[0:3] = b"NEW"
        assert mapped[:4] == b"NEW" + OLD[3:4]
        assert os.pread(fd, 3, 0) == OLD[:3]
    assert read(place / "file") == OLD


def test_of_a_file_made_longer(place: Place) -> None:
    """As databases and linkers do: create, ftruncate, map, store."""
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, MIB)
        with _shared(fd) as mapped:
            assert mapped[:] == bytes(MIB)
            mapped[MIB - 4 :] = b"last"
            mapped[5000:5005] = b"first"
            mapped.flush()
            assert os.pread(fd, 5, 5000) == b"first"
    assert read(place / "file") == bytes(5000) + b"first" + bytes(MIB - 5009) + b"last"


def test_of_a_file_made_longer_while_mapped(place: Place) -> None:
    make(place / "file", b"x" * 5000)
    with opened(place / "file", os.O_RDWR) as fd:
        with _shared(fd) as mapped:
            mapped[0:5] = b"start"
            os.ftruncate(fd, 20_000)
            mapped.resize(20_000)
            assert mapped[5000:] == bytes(15_000)
            mapped[19_997:] = b"end"
        assert read_fd(fd) == b"start" + b"x" * 4995 + bytes(14_997) + b"end"


def test_beyond_the_end_is_a_sigbus(place: Place) -> None:
    make(place / "file", OLD)

    def touch() -> None:
        faulthandler.disable()  # its text would look like a failure
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
            os.ftruncate(fd, 100)
            assert mapped[50] == OLD[50]
            assert mapped[8192] == 0

    with pytest.raises(Died, match="SIGBUS"):
        Process(touch).result()


def test_the_rest_of_the_last_page_is_not_the_files(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file", os.O_RDWR) as fd:
        with _shared(fd, 7) as mapped:
            mapped[0:7] = b"CONTENT"
        assert os.fstat(fd).st_size == 7
        os.ftruncate(fd, 4096)
        assert read_fd(fd) == b"CONTENT".ljust(4096, b"\0")


def test_a_truncated_file_shows_zeros_in_the_mapping(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
        assert mapped[5000] == OLD[5000]
        os.ftruncate(fd, 100)
        os.ftruncate(fd, SIZE)
        assert mapped[100:9000] == bytes(8900)
        assert mapped[:100] == OLD[:100]


def test_of_a_file_that_is_removed(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd:
        mapped = _shared(fd)
    os.unlink(place / "file")
    mapped[MIB : MIB + 3] = b"NEW"
    assert mapped[MIB - 1 : MIB + 4] == OLD[MIB - 1 : MIB] + b"NEW" + OLD[MIB + 3 : MIB + 4]
    mapped.close()


def test_of_a_file_that_is_renamed(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd:
        mapped = _shared(fd)
    os.rename(place / "file", place / "other")
    mapped[0:3] = b"NEW"
    mapped.close()
    assert read(place / "other") == b"NEW" + OLD[3:]


def test_time_after_stores(place: Place) -> None:
    """At the latest by msync or munmap, the file's time says that it was changed."""
    make(place / "file", OLD)
    os.utime(place / "file", (1_000_000, 1_000_000))
    with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
        mapped[0:3] = b"NEW"
        mapped.flush()
    assert os.stat(place / "file").st_mtime_ns > 10**18


def test_stores_and_fsync(place: Place) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, _shared(fd) as mapped:
        for i in range(5):
            mapped[i * 4096 : i * 4096 + 5] = b"%05d" % i
            os.fsync(fd)
    data = read(place / "file")
    assert [data[i * 4096 : i * 4096 + 5] for i in range(5)] == [b"%05d" % i for i in range(5)]


def test_what_cannot_be_mapped(place: Place) -> None:
    make(place / "file", OLD)
    os.mkdir(place / "directory")
    with opened(place / "file") as fd, fails_with(errno.EACCES):
        _shared(fd)
    with opened(place / "file", os.O_WRONLY) as fd, fails_with(errno.EACCES):
        mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    with opened(place / "directory") as fd, fails_with(errno.ENODEV):
        mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    with opened(place / "file") as fd:
        mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
