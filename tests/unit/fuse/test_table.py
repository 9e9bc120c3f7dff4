"""The table of backing files in the extension, without a kernel."""

from __future__ import annotations

import fcntl
import itertools
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.fuse.lowlevel import passthrough
from luxfuse.types import PAGE_BYTES

FAST = passthrough.MARK | passthrough.MARK_FAST
LATER_NS = time.monotonic_ns() + 3600 * 10**9
_inodes = itertools.count(1 << 40)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor that only reads, of a file that can be written by its path."""
    (tmp_path / "backing").write_bytes(b"content")
    fd = os.open(tmp_path / "backing", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def inode(file: int) -> Iterator[int]:
    """An inode that is registered with backing id 42."""
    inode = next(_inodes)
    passthrough.register(inode, 42, file, os.fstat(file).st_mtime_ns, LATER_NS)
    yield inode
    while passthrough.released(inode) or passthrough.released(inode, False):
        pass
    passthrough.retire(inode)
    passthrough.take_drained()


def test_a_handle_says_whether_it_writes(inode: int) -> None:
    assert passthrough.acquire(inode, LATER_NS) == FAST | inode
    assert passthrough.acquire(inode, LATER_NS, True) == FAST | passthrough.MARK_WRITE | inode
    assert passthrough.opens(inode) == 2
    assert passthrough.acquire(inode + 1, LATER_NS, True) is None


def test_released_counts_down_and_ends_a_retired_backing(inode: int) -> None:
    passthrough.acquire(inode, LATER_NS, True)
    passthrough.acquire(inode, LATER_NS)
    assert passthrough.retire(inode) == 0
    assert passthrough.released(inode)
    assert passthrough.take_drained() == []
    assert passthrough.opens(inode) == 1
    assert passthrough.released(inode, False)
    assert passthrough.take_drained() == [(inode, 42)]
    assert passthrough.opens(inode) == -1


def test_a_retired_backing_is_joined_while_it_is_open(inode: int) -> None:
    passthrough.acquire(inode, LATER_NS)
    passthrough.retire(inode)
    assert passthrough.acquire(inode, LATER_NS, True) == FAST | passthrough.MARK_WRITE | inode


def test_released_never_counts_below_nothing(inode: int) -> None:
    assert not passthrough.released(inode)
    assert not passthrough.released(inode, False)
    assert not passthrough.released(inode + 1)
    assert passthrough.opens(inode) == 0


@pytest.mark.parametrize("writing", [True, False])
def test_released_never_counts_an_open_of_the_other_kind(inode: int, writing: bool) -> None:
    passthrough.acquire(inode, LATER_NS, writing)
    assert not passthrough.released(inode, not writing)
    assert passthrough.opens(inode) == 1
    assert passthrough.retire(inode, True) == -1
    assert passthrough.released(inode, writing)
    assert passthrough.opens(inode) == 0


def test_no_file_is_registered_without_one(file: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        passthrough.register(next(_inodes), 0, -1, 0, LATER_NS)


def test_restamp(inode: int, tmp_path: Path) -> None:
    assert passthrough.is_intact(inode)
    os.utime(tmp_path / "backing", ns=(5, 5))
    assert not passthrough.is_intact(inode)
    passthrough.restamp(inode, 5, LATER_NS)
    assert passthrough.is_intact(inode)
    passthrough.restamp(inode + 1, 5, LATER_NS)
    assert passthrough.opens(inode + 1) == -1


def test_the_callback_of_fallocate_can_be_set_and_taken_away() -> None:
    with pytest.raises(TypeError):
        passthrough.set_fallocate()  # type: ignore[call-arg]
    passthrough.set_fallocate(lambda *_: None)
    passthrough.set_fallocate(None)


def test_a_file_that_the_lanes_serve_is_open_for_writing_as_long_as_its_inode_is(file: int) -> None:
    inode = next(_inodes)
    passthrough.register(inode, 0, file, os.fstat(file).st_mtime_ns, LATER_NS)
    assert not has_writers(file)
    for _ in range(2):
        assert passthrough.acquire(inode, LATER_NS, True) == FAST | passthrough.MARK_WRITE | inode
    assert has_writers(file)
    passthrough.released(inode)
    assert has_writers(file)
    passthrough.released(inode)
    assert not has_writers(file)
    assert passthrough.acquire(inode, LATER_NS, True) is not None
    assert passthrough.retire(inode) == 0
    passthrough.released(inode)
    assert passthrough.take_drained() == [(inode, 0)]
    assert not has_writers(file)


def test_a_writer_counts_though_its_file_cannot_be_opened_for_writing(file: int) -> None:
    inode = next(_inodes)
    with Path("/proc/self/exe").open("rb") as program:  # which runs
        passthrough.register(inode, 0, program.fileno(), 0, LATER_NS)
    for opens in 1, 2:
        assert passthrough.acquire(inode, LATER_NS, True) == FAST | passthrough.MARK_WRITE | inode
        assert passthrough.opens(inode) == opens
    assert passthrough.retire(inode, True) == -1
    passthrough.released(inode)
    passthrough.released(inode)
    assert passthrough.opens(inode) == 0
    passthrough.retire(inode)


def test_the_next_writer_opens_the_file_that_could_not_be_opened(file: int) -> None:
    inode = next(_inodes)
    passthrough.register(inode, 0, file, 0, LATER_NS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert passthrough.acquire(inode, LATER_NS, True) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not has_writers(file)
    assert passthrough.acquire(inode, LATER_NS, True) is not None
    assert has_writers(file)
    passthrough.released(inode)
    assert has_writers(file)
    passthrough.released(inode)
    assert not has_writers(file)
    passthrough.retire(inode)


def test_opens_that_the_lanes_serve_are_counted(file: int) -> None:
    before = passthrough.statistics()["dataplane_opens"]
    for backing_id in (0, 42):
        inode = next(_inodes)
        passthrough.register(inode, backing_id, file, 0, LATER_NS)
        passthrough.acquire(inode, LATER_NS)
        passthrough.retire(inode)
    assert passthrough.statistics()["dataplane_opens"] == before + 1


def test_a_file_is_lent_once_and_does_not_count_as_registered(file: int) -> None:
    inode = next(_inodes)
    passthrough.lend(inode, file)
    assert passthrough.opens(inode) == -1
    with pytest.raises(FileExistsError):
        passthrough.lend(inode, file)
    passthrough.register(inode, 42, file, 0, LATER_NS)
    passthrough.take_back(inode)
    passthrough.take_back(inode)
    assert passthrough.opens(inode) == 0
    passthrough.lend(inode, file)
    passthrough.take_back(inode)
    assert passthrough.retire(inode) == 42


def test_pages_of_a_file_that_is_lent_while_it_is_filled(file: int) -> None:
    assert passthrough.FILL_BYTES == PAGE_BYTES
    inode = next(_inodes)
    assert not passthrough.fill(inode, 0, 1)
    passthrough.lend(inode, file, 3 << 20)
    assert passthrough.fill(inode, 0, 1)
    assert passthrough.fill(inode, 2, 1000)
    passthrough.take_back(inode)
    assert not passthrough.fill(inode, 0, 1)
    passthrough.lend(inode, file)
    assert not passthrough.fill(inode, 0, 1), "it is whole"
    passthrough.take_back(inode)


def has_writers(fd: int) -> bool:
    """Whether any process has the file open for writing: then there is no lease for readers."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
