from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.shares import shares
from luxfuse.tiers import staging as module
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.types import PAGE_BYTES
from tests.support.disks import read_only

OID = bytes(range(16))
OTHER = bytes(range(1, 17))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[CacheDirectory]:
    directory = CacheDirectory(tmp_path / "cache", "s")
    yield directory
    directory.close()


@pytest.fixture
def staging(directory: CacheDirectory) -> Iterator[Staging]:
    staging = Staging(directory)
    yield staging
    staging.close()


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("needs to mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=20)


def write(staging: Staging, number: int, data: bytes, offset: int = 0) -> None:
    fd = staging.create(number)
    os.pwrite(fd, data, offset)
    os.close(fd)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_written_anew_is_all_there_or_as_before(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A part of it would be taken for what a program has written."""
    if there:
        write(staging, 1, b"before")
    path = staging.path_of(1)

    def full(fd: int, _content: bytes, _offset: int) -> None:
        os.pwrite(fd, b"ne", 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_all", full)
        with pytest.raises(OSError, match="No space left"):
            staging.write_anew(1, b"new", 7)
    assert [each.read_bytes() for each in staging.path.iterdir()] == [b"before"] * there
    os.close(staging.write_anew(1, b"new", 7))
    assert (path.read_bytes(), path.stat().st_mtime_ns, list(staging.stored())) == (b"new", 7, [1])


@pytest.mark.parametrize("spare", [True, False])
def test_a_new_file_is_empty_private_and_its_own(staging: Staging, spare: bool) -> None:
    if spare:
        staging.refill()
    for number in (1, 2**64 - 1):
        fd = staging.create(number)
        assert os.fstat(fd).st_size == 0
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        assert os.pwrite(fd, b"%d" % number, 0)
        assert os.path.samestat(os.fstat(fd), staging.path_of(number).stat())
        os.close(fd)
    assert staging.path_of(2**64 - 1).name == "f" * 16
    assert sorted(staging.stored()) == [1, 2**64 - 1]
    assert stat.S_IMODE(staging.path.stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        staging.create(1)
    assert staging.path_of(1).read_bytes() == b"1"
    staging.remove(1)
    staging.remove(1)
    assert list(staging.stored()) == [2**64 - 1]


def test_spare_files_are_used_up_refilled_and_removed(directory: CacheDirectory) -> None:
    staging = Staging(directory)
    assert staging.spares_low
    staging.refill()
    assert not staging.spares_low
    assert len(list(staging.path.iterdir())) == shares().spares
    assert list(staging.stored()) == []
    ready = {path.stat().st_ino for path in staging.path.iterdir()}
    made = set()
    for number in range(shares().spares + 3):
        fd = staging.create(number)
        made.add(os.fstat(fd).st_ino)
        os.close(fd)
    assert ready < made
    assert len(made) == shares().spares + 3
    staging.refill()
    staging.refill()
    assert len(list(staging.path.glob("spare-*"))) == shares().spares
    again = Staging(directory)
    assert not list(staging.path.glob("spare-*")), "as after a crash"
    assert len(list(again.stored())) == shares().spares + 3
    again.refill()
    again.close()
    staging.close()
    assert not list(staging.path.glob("spare-*"))


def test_threads_get_files_of_their_own(staging: Staging) -> None:
    made: list[int] = []

    def work(start: int) -> None:
        for number in range(start, start + 50):
            if staging.spares_low:
                staging.refill()
            fd = staging.create(number)
            made.append(os.fstat(fd).st_ino)
            os.close(fd)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(list(staging.stored())) == 200
    assert len(staging._spares) <= shares().spares


def test_a_cache_file_becomes_a_staging_file_and_again_a_cache_file(directory: CacheDirectory, staging: Staging) -> None:
    fd = directory.open(OID, create=True)
    os.write(fd, b"old")
    writable = staging.adopt(directory, OID, 7)
    assert os.path.samestat(os.fstat(fd), os.fstat(writable)), "readers keep their file"
    assert list(directory.stored()) == []
    assert list(staging.stored()) == [7]
    os.pwrite(writable, b"new", 0)
    assert os.pread(fd, 10, 0) == b"new"
    os.close(directory.open(OTHER, create=True))
    staging.publish(7, OTHER)
    assert os.path.samestat(os.fstat(fd), directory.file_of(OTHER).stat())
    assert list(directory.stored()) == [OTHER]
    assert list(staging.stored()) == []
    os.close(fd)
    os.close(writable)
    with pytest.raises(FileNotFoundError):
        staging.adopt(directory, OID, 8)
    with pytest.raises(FileNotFoundError):
        staging.publish(8, OID)


def test_the_cache_directory_leaves_staging_files_alone(directory: CacheDirectory, staging: Staging) -> None:
    write(staging, 1, b"dirty")
    os.close(directory.open(OID, create=True))
    assert list(directory.stored()) == [OID]
    directory.doom_all()
    directory.remove_doomed()
    assert list(directory.stored()) == []
    assert staging.path_of(1).read_bytes() == b"dirty"
    assert directory.probe()
    assert staging.path_of(1).read_bytes() == b"dirty"


def test_a_lost_directory_is_made_anew_and_used(directory: CacheDirectory, staging: Staging) -> None:
    staging.refill()
    shutil.rmtree(directory.path)
    assert not directory.probe()
    assert stat.S_IMODE(staging.path.stat().st_mode) == 0o700
    fd = staging.create(5)
    os.write(fd, b"x")
    assert staging.path_of(5).read_bytes() == b"x"
    os.close(fd)
    staging.refill()
    assert list(staging.stored()) == [5]


def test_a_file_that_cannot_be_made_costs_no_spare_one(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    staging.refill()

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="Read-only"):
            staging.create(1)
    assert len(staging._spares) == shares().spares


# -- recovering


def test_recovered_files_are_moved_and_never_overwrite(staging: Staging, tmp_path: Path) -> None:
    wanted = tmp_path / "recovered" / "deep" / "name"
    paths = []
    for number in (1, 2, 3):
        write(staging, number, b"%d" % number)
        paths.append(staging.recover(number, wanted))
    assert [path.name for path in paths] == ["name", "name.1", "name.2"]
    assert [path.read_bytes() for path in paths] == [b"1", b"2", b"3"]
    assert stat.S_IMODE(wanted.parent.stat().st_mode) == 0o700
    assert list(staging.stored()) == []
    with pytest.raises(FileNotFoundError):
        staging.recover(9, wanted)
    assert len(list(wanted.parent.iterdir())) == 3


def test_long_names_can_be_numbered(staging: Staging, tmp_path: Path) -> None:
    wanted = tmp_path / ("ä" * 127)
    for number in (1, 2):
        write(staging, number, b"%d" % number)
    assert staging.recover(1, wanted) == wanted
    assert staging.recover(2, wanted).read_bytes() == b"2"


def test_recovering_goes_across_file_systems_and_keeps_holes(staging: Staging, other_disk: Path) -> None:
    fd = staging.create(1)
    os.pwrite(fd, b"begin", 0)
    os.pwrite(fd, b"end", 1 << 40)
    os.ftruncate(fd, (1 << 40) + 100)
    os.utime(fd, ns=(5, 10**18 + 7))
    os.close(fd)
    path = staging.recover(1, other_disk / "r" / "name")
    assert path.stat().st_size == (1 << 40) + 100
    assert path.stat().st_mtime_ns == 10**18 + 7
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as f:
        assert os.pread(f.fileno(), 6, 0) == b"begin\0"
        assert os.pread(f.fileno(), 10, 1 << 40) == b"end" + bytes(7)
    assert list(staging.stored()) == []
    assert list(path.parent.iterdir()) == [path]


def test_what_does_not_fit_stays(staging: Staging, other_disk: Path) -> None:
    data = random.Random(1).randbytes(8 << 20)
    write(staging, 1, data)
    with pytest.raises(OSError, match="No space"):
        staging.recover(1, other_disk / "name")
    assert staging.path_of(1).read_bytes() == data
    assert list(other_disk.iterdir()) == []


# -- content


def test_a_new_name_is_synced_with_its_file_once(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_fdatasync = os.fsync, os.fdatasync

    def fsync(fd: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_fsync(fd)

    def fdatasync(fd: int) -> None:
        calls.append("data")
        real_fdatasync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    one, two = staging.create(1), staging.create(2)
    staging.sync(one)
    assert calls == ["file", "directory"]
    staging.sync(one)
    staging.sync(two)
    assert calls[2:] == ["data", "data"], "its name was synced with the other one's"
    three = staging.create(3)
    staging.sync(one)
    assert calls[4:] == ["data"]
    staging.sync(three)
    assert calls[5:] == ["file", "directory"]
    for fd in (one, two, three):
        os.close(fd)


def test_an_adopted_file_is_synced_as_a_new_one(directory: CacheDirectory, staging: Staging) -> None:
    os.close(directory.open(OID, create=True))
    fd = staging.adopt(directory, OID, 1)
    assert staging._unsynced == {(os.fstat(fd).st_dev, os.fstat(fd).st_ino): staging.path}
    staging.sync(fd)
    assert not staging._unsynced
    os.close(fd)
    for number in (2, 3, 4):
        write(staging, number, b"x")
    staging.remove(2)
    staging.publish(3, OTHER)
    staging.recover(4, directory.path / "recovered" / "x")
    assert not staging._unsynced, "numbers of inodes are used again"


@pytest.mark.parametrize("what", ["publish", "remove", "retire"])
def test_a_name_that_stays_as_the_disk_refuses_is_synced_later(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    fd = staging.create(1)
    unsynced = dict(staging._unsynced)
    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, refuse)
        with pytest.raises(OSError, match="Read-only"):
            staging.publish(1, OID) if what == "publish" else getattr(staging, what)(1)
    assert staging._unsynced == unsynced
    staging.sync(fd)
    assert not staging._unsynced
    os.close(fd)


def pages(ranges: list[range]) -> set[int]:
    return set().union(*ranges)


def test_a_page_counts_as_present_only_if_all_of_it_is_data(staging: Staging) -> None:
    fd = staging.create(1)
    size = 6 * PAGE_BYTES + 5000
    os.ftruncate(fd, size)
    assert staging.data_ranges(fd, size) == []
    os.pwrite(fd, b"x" * PAGE_BYTES, PAGE_BYTES)
    os.pwrite(fd, b"x" * PAGE_BYTES, 2 * PAGE_BYTES)
    os.pwrite(fd, b"x" * 8192, 4 * PAGE_BYTES)
    assert pages(staging.data_ranges(fd, size)) == {1, 2}
    os.pwrite(fd, b"x" * 5000, 6 * PAGE_BYTES)
    assert pages(staging.data_ranges(fd, size)) == {1, 2, 6}
    os.pwrite(fd, b"x" * PAGE_BYTES, 3 * PAGE_BYTES + 4096)
    assert pages(staging.data_ranges(fd, size)) == {1, 2, 6}
    os.pwrite(fd, b"x" * PAGE_BYTES, 3 * PAGE_BYTES)
    assert pages(staging.data_ranges(fd, size)) == {1, 2, 3, 6}
    assert pages(staging.data_ranges(fd, 2 * PAGE_BYTES)) == {1}, "only what is asked for"
    assert staging.data_ranges(fd, 0) == []
    os.close(fd)


@pytest.mark.parametrize("seed", range(10))
def test_presence_is_never_more_than_was_written(staging: Staging, seed: int) -> None:
    """Against a model in blocks of the file system."""
    rng = random.Random(seed)
    block, size = 4096, rng.randrange(1, 8 * PAGE_BYTES)
    fd = staging.create(seed)
    os.ftruncate(fd, size)
    written: set[int] = set()
    for _ in range(rng.randrange(12)):
        start = rng.randrange(size) // block * block
        length = min(rng.choice([1, block, PAGE_BYTES, 3 * PAGE_BYTES]), size - start)
        os.pwrite(fd, b"x" * length, start)
        written |= set(range(start // block, -(-(start + length) // block)))
    per_page = PAGE_BYTES // block
    expected = {
        page
        for page in range(-(-size // PAGE_BYTES))
        if set(range(page * per_page, min((page + 1) * per_page, -(-size // block)))) <= written
    }
    assert pages(staging.data_ranges(fd, size)) == expected
    os.close(fd)


def test_a_file_system_that_tells_no_holes_is_noticed(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = staging.create(1)

    def lseek(fd: int, position: int, how: int) -> int:
        return position if how == os.SEEK_DATA else os.fstat(fd).st_size

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", lseek)
        with pytest.raises(OSError, match="does not tell") as caught:
            staging.data_ranges(fd, PAGE_BYTES)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert {path.name for path in staging.path.iterdir()} == {staging.path_of(1).name}
    os.close(fd)


# -- writers


def test_writers_are_seen_in_any_form(staging: Staging) -> None:
    fd = staging.create(1)
    path = staging.path_of(1)
    os.ftruncate(fd, 8192)
    assert staging.has_writers(path)
    copy = os.dup(fd)
    os.close(fd)
    assert staging.has_writers(path)
    mapped = mmap.mmap(copy, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(copy)
    assert staging.has_writers(path), "a mapping outlives its descriptor"
    mapped.close()
    assert not staging.has_writers(path)
    reader = os.open(path, os.O_RDONLY)
    assert not staging.has_writers(path)
    readable = mmap.mmap(reader, 8192, mmap.MAP_SHARED, mmap.PROT_READ)
    private = mmap.mmap(reader, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(reader)
    assert not staging.has_writers(path)
    readable.close()
    private.close()
    with pytest.raises(FileNotFoundError):
        staging.has_writers(staging.path_of(2))


HOLDER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY if sys.argv[2] == "read" else os.O_RDWR)
if sys.argv[2] == "map":
    held = mmap.mmap(fd, 4096)
    os.close(fd)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(("how", "writes"), [("write", True), ("map", True), ("read", False)])
def test_writers_in_other_processes_are_seen(staging: Staging, how: str, writes: bool) -> None:
    write(staging, 1, bytes(4096))
    path = staging.path_of(1)
    command = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == b"ready\n"
            assert staging.has_writers(path) is writes
            holder.stdin.close()
            assert holder.wait(60) == 0
        finally:
            holder.kill()
    assert not staging.has_writers(path)


OPENER = """
import os, sys
for _ in range(100_000):
    os.close(os.open(sys.argv[1], os.O_RDWR))
"""


def test_one_that_opens_while_we_look_is_not_refused(staging: Staging) -> None:
    """And the signal that tells of it ends nobody."""
    write(staging, 1, b"x")
    path = staging.path_of(1)
    with subprocess.Popen([sys.executable, "-c", OPENER, str(path)]) as opener:
        answers = set()
        try:
            while opener.poll() is None:
                answers.add(staging.has_writers(path))
        finally:
            opener.kill()
        assert opener.returncode == 0
    assert answers == {True, False}
    assert not staging.has_writers(path)


@pytest.mark.parametrize(("code", "answer"), [(errno.EINVAL, False), (errno.ENOLCK, False), (errno.EAGAIN, True)])
def test_a_file_system_without_leases_has_no_writers(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, code: int, answer: bool
) -> None:
    write(staging, 1, b"x")

    def fcntl(fd: int, command: int, argument: int) -> int:
        if command == module.fcntl.F_SETLEASE:
            raise OSError(code, os.strerror(code))
        return 0

    monkeypatch.setattr(module.fcntl, "fcntl", fcntl)
    assert staging.has_writers(staging.path_of(1)) is answer


def test_a_retired_file_is_there_again_after_a_kill(directory: CacheDirectory, staging: Staging) -> None:
    write(staging, 1, b"content")
    write(staging, 2, b"other")
    remove = staging.retire(1)
    staging.retire(3)()
    assert list(staging.stored()) == [2]
    again = Staging(directory)
    assert sorted(again.stored()) == [1, 2]
    assert again.path_of(1).read_bytes() == b"content"
    assert again.was_retired(1)
    assert not again.was_retired(2)
    again.close()
    remove()  # by the daemon that is dead by now, as it were
    staging.retire(1)()
    assert [path.name for path in staging.path.iterdir()] == [f"{2:016x}"]


def test_a_read_only_disk(directory: CacheDirectory, staging: Staging, tmp_path: Path) -> None:
    """A daemon begins on it with all that another one has left, and changes that once the disk can be written again."""
    for number in (1, 2, 3):
        write(staging, number, b"content", 2 * PAGE_BYTES)
    staging.retire(1)
    with read_only(directory.path) as let_be_written:
        again = Staging(directory)
        assert again.was_retired(1)
        with pytest.raises(OSError, match="Read-only"):
            again.give_name_back(1)
        again.discard(2)
        with pytest.raises(OSError, match="Read-only"):
            again.recover(3, tmp_path / "recovered")
        assert not (tmp_path / "recovered").exists()
        fd = os.open(again.path_of(3), os.O_RDONLY)
        assert again.data_ranges(fd, os.fstat(fd).st_size) == [range(2, 3)]
        os.close(fd)
        let_be_written()
        again.give_name_back(1)
        assert again.path_of(1).read_bytes()[2 * PAGE_BYTES :] == b"content"
        os.close(again.create(2))
        assert again.path_of(2).read_bytes() == b""
        again.close()
