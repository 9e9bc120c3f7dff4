"""The files of the journal: killed after each of their steps, and with disks that fail."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luxfuse import steps
from luxfuse.errors import IndexFormatError
from luxfuse.index import journal_file, journal_log
from luxfuse.index.growth import Growth
from luxfuse.index.journal import Journal
from luxfuse.index.journal_file import GENERATION, LOGLESS_VERSION, JournalFile, Records, Table
from luxfuse.index.journal_log import JournalLog
from luxfuse.index.uncommitted import U64

TABLES = (Table.FILES, Table.INLINE, Table.DELETES)
State = dict[tuple[Table, bytes], bytes]


@pytest.fixture(autouse=True)
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "LOG_BYTES", 16 * 4096)


@pytest.fixture(autouse=True)
def no_hook() -> Iterator[None]:
    yield
    steps.install(None)


def changes_of(rng: random.Random) -> Records:
    return {
        (rng.choice(TABLES), U64.pack(rng.randrange(12))): rng.choice(
            [None, rng.randbytes(20), rng.randbytes(rng.choice([5000, 20_000]))]
        )
        for _ in range(rng.randrange(1, 4))
    }


def applied(state: State, changes: Records) -> State:
    merged: Records = {**state, **changes}
    return {place: value for place, value in merged.items() if value is not None}


def state_of(file: JournalFile) -> State:
    found = {(table, key): value for table in TABLES for key, value in file.records(table)}
    assert all(file.get(*place) == value for place, value in found.items())
    for table in TABLES:
        keys = [key for key, _ in file.records(table)]
        assert keys == sorted(keys)
    return found


def after_a_kill(path: Path, copy: Path) -> State:
    """What the next run finds, and the one after it."""
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("lock.mdb"))
    first = JournalFile(copy)
    found = state_of(first)
    first.commit({(Table.META, b"next_id"): b"x"})
    first.close()
    second = JournalFile(copy)
    assert state_of(second) == found
    second.close()
    shutil.rmtree(copy)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_killed_after_any_step_a_commit_is_there_as_a_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    seen: set[str] = set()
    state: State = {}
    possible: list[State] = [{}]

    def stop(step: str) -> None:
        seen.add(step)
        steps.install(None)
        found = after_a_kill(tmp_path / "j", tmp_path / "copy")
        steps.install(stop)
        assert found in possible, step
        if step in ("journal.appended", "journal.written_back"):
            assert found == possible[-1], step

    file = JournalFile(tmp_path / "j")
    steps.install(stop)
    for turn in range(40):
        if turn == 3:
            file.make_log()
        changes = changes_of(rng)
        possible = [state, applied(state, changes)]
        file.commit(changes)
        state = possible[-1]
        possible = [state]
        if rng.random() < 0.1:
            steps.install(None)
            file.close()
            file = JournalFile(tmp_path / "j")
            steps.install(stop)
        assert state_of(file) == state
    steps.install(None)
    file.close()
    assert seen == {"journal.log_made", "journal.appended", "journal.written_back"}


class FailingDisk:
    """Has some appends fail, with none, a part or all of their bytes written; and transactions, before or at the end."""

    def __init__(self, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = False
        self.rng = rng
        self.pwrite = os.pwrite
        self.ahead = Growth.ahead
        monkeypatch.setattr(os, "pwrite", self.append)
        monkeypatch.setattr(Growth, "ahead", self.begin)
        steps.install(self.reached)

    def meets(self, part: float) -> bool:
        return self.fails and self.rng.random() < part

    def append(self, fd: int, data: bytes, at: int) -> int:
        if self.meets(0.3):
            self.pwrite(fd, data[: self.rng.choice([0, 4096, len(data)])], at)
            raise OSError(errno.EIO, "Input/output error")
        return self.pwrite(fd, data, at)

    def begin(self, env: object) -> None:
        if self.meets(0.3):
            raise OSError(errno.ENOSPC, "No space left on device")

    def reached(self, step: str) -> None:
        if step == "journal.written_back" and self.meets(0.3):
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.expected_logs("the log of .* fails")
@pytest.mark.parametrize("seed", range(6))
def test_with_a_failing_disk_nothing_acknowledged_is_lost(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is tried again with what was noted since, as the journal does, and may be there before that."""
    rng = random.Random(seed)
    file = JournalFile(tmp_path / "j")
    file.commit({(Table.META, b"next_id"): b"1"})
    file.make_log()
    disk = FailingDisk(rng, monkeypatch)
    state: State = {}
    waiting: Records = {}
    maybe: list[State] = []
    failures = 0
    for _ in range(40):
        waiting = {**waiting, **changes_of(rng)}
        disk.fails = True
        try:
            file.commit(waiting)
        except OSError:
            failures += 1
            maybe.append(applied(state, waiting))
        else:
            state, waiting, maybe = applied(state, waiting), {}, []
        disk.fails = False
        assert after_a_kill(tmp_path / "j", tmp_path / "copy") in [state, *maybe]
        for place in [*state, *state_of(file)]:
            assert place in waiting or file.get(*place) == state.get(place)
    assert failures
    file.close()


def test_a_commit_is_one_append_and_lmdb_gets_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JournalFile(tmp_path / "j")
    file.make_log()
    file.commit({(Table.FILES, b"0"): b"x"})
    written: list[Records] = []
    real = file._write_back

    def write_back(records: Records) -> None:
        written.append(dict(file._logged))
        real(records)

    monkeypatch.setattr(file, "_write_back", write_back)
    for number in range(10):
        file.commit({(Table.INLINE, b"a"): b"y" * 100})
        file.commit({(Table.INLINE, b"a"): None, (Table.FILES, b"n"): b"%d" % number})
    assert len(written) == 1
    assert written[0] == {(Table.INLINE, b"a"): None, (Table.FILES, b"n"): b"7"}
    file.commit({(Table.INLINE, b"large"): bytes(17 * 4096)})
    assert len(written) == 2
    assert len(file.get(Table.INLINE, b"large") or b"") == 17 * 4096
    file.close()


@pytest.fixture
def no_longer_files() -> Iterator[Callable[[int], None]]:
    """Lets no file become longer than a number of bytes: what is not on the disk by now finds no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("seed", range(4))
def test_on_a_disk_that_is_full_by_now_the_next_mount_begins(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, no_longer_files: Callable[[int], None]
) -> None:
    """What the log holds has its room in LMDB before it is there, whatever it is."""
    monkeypatch.setattr(journal_log, "LOG_BYTES", 4 << 20)
    rng = random.Random(seed)
    sizes = [[1500], [30_000], [20, 1500, 30_000], [20]][seed]
    file = JournalFile(tmp_path / "j")
    file.make_log()
    state: State = {}

    def commit() -> None:
        nonlocal state
        changes: Records = {
            (Table.DELETES, rng.randbytes(16)): rng.randbytes(rng.choice(sizes)) for _ in range(rng.randrange(1, 40))
        }
        state |= applied({}, changes)
        file.commit(changes)

    while len(state) < 3000:
        commit()
    while not file._logged or len(file._logged) < journal_file.LOGGED_RECORDS - 40:
        commit()
        if file._log is not None and file._log._end > file._log.bytes * 0.9:
            break
    used = (file._env.info()["last_pgno"] + 1) * file._env.stat()["psize"]
    file.close()
    room = journal_file.ROOM_FACTOR * journal_log.LOG_BYTES
    assert (tmp_path / "j" / "data.mdb").stat().st_blocks * 512 >= used + room
    no_longer_files(used + room)
    file = JournalFile(tmp_path / "j")
    file.commit({(Table.META, b"next_id"): b"x"})
    assert not file._logged
    assert dict(file.records(Table.DELETES)) == {key: value for (_, key), value in state.items()}
    file.close()


def test_what_the_log_holds_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "LOGGED_RECORDS", 10)
    file = JournalFile(tmp_path / "j")
    file.make_log()
    most = 0
    for number in range(40):
        file.commit({(Table.DELETES, b"%d" % (2 * number + each)): b"x" for each in range(2)})
        most = max(most, len(file._logged))
    assert most == 10
    assert len(state_of(file)) == 80
    file.close()


def test_nothing_is_appended_for_which_lmdb_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Growth, "reserve", lambda *_: False)
    file = JournalFile(tmp_path / "j")
    file.make_log()
    for number in range(5):
        file.commit({(Table.FILES, b"%d" % number): b"x"})
    assert not file._logged
    file.close()
    again = JournalFile(tmp_path / "j")
    assert len(state_of(again)) == 5
    again.close()


def test_a_journal_that_cannot_be_written_for_want_of_room_is_not_to_be_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(tmp_path / "j").close()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Growth, "ahead", full)
    with pytest.raises(IndexFormatError, match=r"cannot be written .*: free space"):
        Journal(tmp_path / "j")


def test_a_journal_is_for_one_daemon_alone(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "j")
    with pytest.raises(IndexFormatError, match="in use by another daemon"):
        JournalFile(tmp_path / "j")
    file.commit({(Table.FILES, b"a"): b"x"})
    file.close()
    again = JournalFile(tmp_path / "j")
    assert len(state_of(again)) == 1
    again.close()


@pytest.mark.expected_logs("goes without a log")
def test_of_a_log_that_could_not_be_made_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes may have been the last of a quota, that the journal itself needs."""
    file = JournalFile(tmp_path / "j")

    def used_up(_fd: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", used_up)
        file.make_log()
    assert not (tmp_path / "j" / journal_log.NAME).exists()
    file.commit({(Table.FILES, b"a"): b"x"})
    file.close()


def test_without_room_for_a_log_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "ROOMY_FACTOR", 1 << 50)
    file = JournalFile(tmp_path / "j")
    file.make_log()
    for number in range(3):
        file.commit({(Table.FILES, b"%d" % number): b"x"})
    assert not (tmp_path / "j" / journal_log.NAME).exists()
    file.close()
    again = JournalFile(tmp_path / "j")
    assert len(state_of(again)) == 3
    again.close()


def test_a_journal_without_a_log_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal_file, "FORMAT_VERSION", LOGLESS_VERSION)
        file = JournalFile(tmp_path / "j")
        for number in range(3):
            file.commit({(Table.INLINE, b"%d" % number): b"x"})
        assert file.get(Table.META, b"format") == U64.pack(1)
        file.close()
    file = JournalFile(tmp_path / "j")
    file.make_log()
    for number in range(3, 6):
        file.commit({(Table.INLINE, b"%d" % number): b"x"})
    assert file.get(Table.META, b"format") == U64.pack(2)
    assert file.get(Table.META, GENERATION) is not None
    file.close()
    again = JournalFile(tmp_path / "j")
    assert len(state_of(again)) == 6
    again.close()


@pytest.mark.parametrize("damage", ["middle", "missing", "cut"])
def test_a_damaged_log_is_refused_with_one_line(tmp_path: Path, damage: str) -> None:
    file = JournalFile(tmp_path / "j")
    file.make_log()
    for number in range(6):
        file.commit({(Table.FILES, b"%d" % number): b"x"})
    file.close()
    log = tmp_path / "j" / journal_log.NAME
    if damage == "missing":
        log.unlink()
    elif damage == "cut":
        os.truncate(log, 5000)
    else:
        content = bytearray(log.read_bytes())
        content[100:200] = bytes(100)
        content[20] ^= 1
        log.write_bytes(content)
    with pytest.raises(IndexFormatError) as caught:
        Journal(tmp_path / "j")
    assert ".damaged, and mount again" in str(caught.value)
    assert "log" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_log_that_is_made_when_the_journal_is_closed_is_closed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JournalFile(tmp_path / "j")
    before = len(list(Path("/proc/self/fd").iterdir()))
    real = journal_log.made

    def made(path: Path) -> JournalLog | None:
        file.close()
        return real(path)

    monkeypatch.setattr(journal_log, "made", made)
    file.make_log()
    assert len(list(Path("/proc/self/fd").iterdir())) < before
    again = JournalFile(tmp_path / "j")
    again.commit({(Table.FILES, b"a"): b"x"})
    again.close()
