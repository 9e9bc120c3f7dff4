from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from luxfuse import lasting
from luxfuse.errors import IndexFormatError
from luxfuse.estate.memory import Estate
from luxfuse.estate.trail import JOURNAL, Stream, stream_of
from luxfuse.index import journal as module
from luxfuse.index.journal import DeleteRecord, FileRecord, Journal, OperationRecord
from luxfuse.index.journal_copy import JournalCopy
from luxfuse.index.journal_file import JournalFile, Records, Table
from luxfuse.index.names import Attributes
from luxfuse.index.records import encode
from luxfuse.index.uncommitted import U64
from luxfuse.types import Kind, WriteMode
from tests.support.harness import until
from tests.support.virtual_time import virtual_time


def record(key: str = "d/k", **changes: object) -> FileRecord:
    values: dict = {
        "key": key,
        "kind": Kind.FILE,
        "mode": WriteMode.ASYNC_THROUGH,
        "inode": 20,
        "attributes": None,
        "expect": "v",
        "base_key": "",
        "base_version": "",
        "base_size": 0,
        "size": 5,
        "stamp": 6,
        "closed": True,
        "content": True,
        "since_s": 7.0,
    }
    return FileRecord(**{**values, **changes})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "j")
    yield journal
    journal.close()


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.path)


def crashed(journal: Journal, copy: Path) -> Journal:
    """Open what a crash at this moment would leave."""
    shutil.copytree(journal.path, copy, ignore=shutil.ignore_patterns("lock.mdb"))
    return Journal(copy)


@asynccontextmanager
async def halted(journal: Journal):
    """The writer thread stands still in its next transaction; yields what lets it go on."""
    entered, proceed = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = journal._file.commit

    def commit(rows: dict) -> None:
        journal._file.commit = real  # type: ignore[method-assign]
        token.run_sync_soon(entered.set)
        assert proceed.wait(120)
        real(rows)

    journal._file.commit = commit  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.commit)
        await entered.wait()
        try:
            yield proceed.set
        finally:
            proceed.set()


def full(rows: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_what_is_committed_is_there_again(journal: Journal) -> None:
    attributes = Attributes(0o644, 1, 2, 3, 4, 5, 6, {"user.a": b"\0\xff"})
    one, two, three = (journal.new_id() for _ in range(3))
    long = "ä" * 511 + "/k"
    journal.put_file(one, record(attributes=attributes, kind=Kind.SYMLINK, mode=WriteMode.MUST_CACHE, expect=None))
    journal.put_file(two, record(long, expect="", base_key="b", base_version="bv", base_size=1 << 40))
    journal.put_delete(long, DeleteRecord(None, one, 1.5))
    journal.put_delete("gone", DeleteRecord("v", 0, 1.5))
    journal.put_operation(three, OperationRecord("move", {"source": "a/", "target": "b/"}, 2, 3.5))
    journal.uploads.begun(long, "u" * 2000, {})
    journal.uploads.begun("k", "1", {})
    journal.uploads.begun("k", "2", {})
    await journal.commit()
    assert journal.uncommitted == 0
    again = reopened(journal)
    assert again.files == {
        one: record(attributes=attributes, kind=Kind.SYMLINK, mode=WriteMode.MUST_CACHE, expect=None),
        two: record(long, expect="", base_key="b", base_version="bv", base_size=1 << 40),
    }
    assert again.deletes == {long: DeleteRecord(None, one, 1.5), "gone": DeleteRecord("v", 0, 1.5)}
    assert again.operations == {three: OperationRecord("move", {"source": "a/", "target": "b/"}, 2, 3.5)}
    assert again.uploads.open == {(long, "u" * 2000), ("k", "1"), ("k", "2")}
    assert (again.files, again.deletes, again.operations, again.uploads.open) == (
        journal.files,
        journal.deletes,
        journal.operations,
        journal.uploads.open,
    )
    for number in (one, two):
        again.drop_file(number)
        again.drop_file(number)
    for key in (long, "gone", "never was"):
        again.drop_delete(key)
    again.drop_operation(three)
    again.uploads.over(long, "u" * 2000)
    again.uploads.over("k", "1")
    assert not again.files
    await again.commit()
    last = reopened(again)
    assert not last.files
    assert not last.deletes
    assert not last.operations
    assert last.uploads.open == {("k", "2")}
    last.close()


async def test_a_record_is_noted_as_it_was_then(journal: Journal) -> None:
    one = journal.new_id()
    noted = record()
    journal.put_file(one, noted)
    noted.size = 99
    await journal.commit()
    again = reopened(journal)
    assert again.files[one].size == 5
    again.close()


async def test_inline_content_stays_until_it_is_replaced_or_dropped(journal: Journal, tmp_path: Path) -> None:
    one, two = journal.new_id(), journal.new_id()
    journal.put_file(one, record(), b"first")
    journal.put_file(two, record(), b"")
    assert journal.inline(one) == b"first"
    assert journal.inline(99) is None
    async with halted(journal) as proceed:
        assert journal.inline(one) == b"first", "what is being committed must be visible"
        journal.put_file(one, record(), b"second")
        assert journal.inline(one) == b"second"
        proceed()
    await journal.commit()
    assert journal.inline(one) == b"second"
    assert journal.inline(two) == b""
    again = reopened(journal)
    assert again.files[one].has_inline
    assert again.inline(one) == b"second"
    again.put_file(one, again.files[one])
    assert again.inline(one) == b"second", "the record says that it stays"
    again.put_file(one, record())
    assert again.inline(one) is None
    again.drop_file(two)
    assert again.inline(two) is None
    await again.commit()
    assert not list(again._file.records(Table.INLINE))
    again.close()


async def test_numbers_are_never_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ID_BLOCK", 10)
    used: set[int] = set()
    journal = Journal(tmp_path / "j0")
    for number in range(1, 8):
        taken = [journal.new_id() for _ in range(number)]
        if number % 2:
            await journal.commit()
        taken += [journal.new_id() for _ in range(5)]
        assert taken == sorted(set(taken))
        assert taken[0] > 0
        assert not used & set(taken)
        used |= set(taken)
        after = crashed(journal, tmp_path / f"j{number}")
        journal.close()
        journal = after
    journal.close()


async def test_numbers_that_could_be_used_again_are_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ID_BLOCK", 10)
    journal = Journal(tmp_path / "j")
    taken = []

    def take_all() -> None:
        while True:
            taken.append(journal.new_id())

    with pytest.raises(OSError, match="cannot reserve"):
        take_all()
    assert 10 <= len(taken) <= 20
    await journal.commit()
    assert journal.new_id() == taken[-1] + 1
    journal.close()


async def test_nothing_waits_where_nothing_was_noted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal._file, "commit", full)
    await journal.commit()


async def test_one_transaction_serves_all_who_wait(journal: Journal) -> None:
    commits: list[int] = []
    real = journal._file.commit
    durable: set[int] = set()

    def commit(rows: dict) -> None:
        real(rows)
        commits.append(len(rows))
        durable.update(U64.unpack(key)[0] for _, key in rows)

    async def note(number: int) -> None:
        journal.put_file(number, record())
        await journal.commit()
        assert number in durable

    async with trio.open_nursery() as nursery, halted(journal_with_a_note(journal)) as proceed:
        journal._file.commit = commit  # type: ignore[method-assign]
        for number in range(100, 200):
            nursery.start_soon(note, number)
        await trio.testing.wait_all_tasks_blocked()
        assert not durable
        proceed()
    assert commits == [100]


def journal_with_a_note(journal: Journal) -> Journal:
    journal.put_file(journal.new_id(), record())
    return journal


async def test_who_comes_while_its_notes_are_committed_waits_for_that(journal: Journal) -> None:
    done = False

    async def wait() -> None:
        nonlocal done
        await journal.commit()
        done = True

    async with trio.open_nursery() as nursery, halted(journal_with_a_note(journal)) as proceed:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        proceed()
    assert done


@pytest.mark.expected_logs("journal cannot be written")
async def test_a_failing_commit_is_told_to_its_waiters_and_tried_again(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_INTERVAL_S", 0.001)
    failed: list[int] = []

    async def note(number: int) -> None:
        journal.put_file(number, record(f"k{number}"), b"content")
        with pytest.raises(OSError, match="No space") as caught:
            await journal.commit()
        assert caught.value.errno == errno.ENOSPC
        failed.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "commit", full)
        async with trio.open_nursery() as nursery:
            for number in range(1, 21):
                nursery.start_soon(note, number)
        assert sorted(failed) == list(range(1, 21))
        assert journal.failing
        journal.drop_file(3)
        journal.put_file(4, record("newer"))
        assert journal.inline(5) == b"content"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.committer)
        await until(lambda: not journal.uncommitted)
        nursery.cancel_scope.cancel()
    assert journal.failing is None
    again = reopened(journal)
    assert set(again.files) == set(range(1, 21)) - {3}
    assert again.files[4] == record("newer")
    assert [again.inline(number) for number in (3, 4, 5)] == [None, None, b"content"]
    again.close()


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


async def test_what_others_commit_is_not_committed_in_the_background(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    monkeypatch.setattr(module, "COMMIT_DELAY_S", 0.4)
    commits = 0
    commit = journal._file.commit

    def counted(rows: Records) -> None:
        nonlocal commits
        commits += 1
        commit(rows)

    monkeypatch.setattr(journal._file, "commit", counted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.committer)
        for _ in range(20):
            journal.put_file(journal.new_id(), record())
            await trio.sleep(0.05)
            journal.put_file(journal.new_id(), record())
            await journal.commit()
        journal.put_file(journal.new_id(), record())
        assert commits == 20
        await until(lambda: not journal.uncommitted)
        assert commits == 21
        nursery.cancel_scope.cancel()


async def test_notes_are_committed_in_the_background(journal: Journal, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.committer)
        for number in range(3):
            one = journal.new_id()
            journal.put_file(one, record())
            await trio.sleep(0.001)
            with trio.fail_after(60):
                await until(lambda: not journal.uncommitted)
            after = crashed(journal, tmp_path / f"copy{number}")
            assert one in after.files
            after.close()
        nursery.cancel_scope.cancel()


async def test_a_waiter_that_is_cancelled_does_not_take_the_others_along(journal: Journal) -> None:
    outcomes = []
    async with trio.open_nursery() as nursery, halted(journal_with_a_note(journal)) as proceed:

        async def lead(scope: trio.CancelScope) -> None:
            with scope:
                journal.put_file(50, record())
                await journal.commit()
            outcomes.append("led")

        async def follow() -> None:
            await journal.commit()
            outcomes.append("followed")

        scope = trio.CancelScope()
        nursery.start_soon(lead, scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        proceed()
    assert sorted(outcomes) == ["followed", "led"]
    assert not journal.uncommitted


@pytest.mark.expected_logs("journal cannot be written", "failed in an unexpected way")
async def test_a_commit_that_fails_otherwise_does_not_pass_for_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.put_file(1, record())

    def broken(rows: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "commit", broken)
        with pytest.raises(OSError, match="internal error"):
            await journal.commit()
    assert journal.uncommitted
    await journal.commit()
    assert not journal.uncommitted


@pytest.mark.expected_logs("journal cannot be written")
async def test_a_lack_of_threads_ends_a_commit_and_not_all(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    journal.put_file(1, record())
    with monkeypatch.context() as patched:
        patched.setattr(trio.lowlevel, "start_thread_soon", none_left)
        with pytest.raises(OSError, match="can't start new thread"):
            await journal.commit()
    await journal.commit()
    assert journal.is_durable(1)
    assert not journal.uncommitted


@pytest.mark.expected_logs("journal cannot be written")
async def test_lmdb_that_gave_up_is_opened_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.put_file(1, record())
    real = journal._file.commit

    def panic(rows: dict) -> None:
        if not journal._file.damaged:
            raise journal._file._error(lmdb.PanicError("MDB_PANIC: Update of meta page failed"))
        real(rows)

    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "commit", panic)
        before = journal._file._env
        with pytest.raises(OSError, match="MDB_PANIC"):
            await journal.commit()
    assert journal._file._env is not before
    assert not journal._file.damaged
    await journal.commit()
    again = reopened(journal)
    assert 1 in again.files
    again.close()


async def test_what_waits_is_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS_BOUND", 3)
    monkeypatch.setattr(module, "INLINE_BOUND", 100)
    for number in range(1, 4):
        journal.put_file(number, record())
        journal.put_delete(str(number), DeleteRecord(None, 0, 1.0))
    before = journal.uncommitted
    with pytest.raises(OSError, match="holds 3 records") as caught:
        journal.put_file(4, record())
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="holds 3 records"):
        journal.put_delete("4", DeleteRecord(None, 0, 1.0))
    assert journal.uncommitted == before
    journal.put_file(3, record("changed"), b"x" * 90)
    journal.put_delete("3", DeleteRecord("v", 0, 1.0))
    journal.failing = "made up"
    journal.put_file(3, record("changed"), b"y" * 100)
    with pytest.raises(OSError, match="cannot be written"):
        journal.put_file(2, record("changed"), b"x" * 20)
    assert journal.inline(2) is None
    journal.failing = None
    journal.drop_file(1)
    journal.put_file(4, record())
    await journal.commit()
    journal.failing = "made up"
    journal.put_file(2, record("changed"), b"x" * 100)
    journal.failing = None
    assert set(journal.files) == {2, 3, 4}


async def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, expected_logs: list[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("needs to mount a tmpfs")
    expected_logs.append("journal cannot be written")
    try:
        journal = Journal(disk / "j")
        ballast = disk / "ballast"
        journal.put_file(1, record(), b"first")
        await journal.commit()
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        for number in range(2, 20):
            journal.put_file(number, record(), bytes(10_000))
        for _ in range(3):
            with pytest.raises(OSError, match="journal") as caught:
                await journal.commit()
            assert caught.value.errno == errno.ENOSPC
            assert journal.inline(1) == b"first"
            assert journal.inline(19) == bytes(10_000)
        ballast.unlink()
        await journal.commit()
        journal = reopened(journal)
        assert set(journal.files) == set(range(1, 20))
        assert journal.inline(19) == bytes(10_000)
        journal.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=20)


def test_an_unknown_format_is_refused_with_one_line(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "j")
    file.commit({(Table.META, b"format"): U64.pack(99)})
    file.close()
    with pytest.raises(IndexFormatError) as caught:
        Journal(tmp_path / "j")
    assert "format 99" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "not uploaded" in str(caught.value)


@pytest.mark.parametrize("damage", ["no database", "a row that makes no sense", "a key that makes no sense"])
def test_a_damaged_journal_is_refused_with_one_line(tmp_path: Path, damage: str) -> None:
    if damage == "no database":
        (tmp_path / "j").mkdir()
        (tmp_path / "j" / "data.mdb").write_bytes(b"not a database" * 1000)
    else:
        file = JournalFile(tmp_path / "j")
        file.commit({(Table.FILES, U64.pack(1) if "row" in damage else b"k"): b"\xc1"})
        file.close()
    with pytest.raises(IndexFormatError) as caught:
        Journal(tmp_path / "j")
    assert f"run: mv {tmp_path}/j {tmp_path}/j.damaged, and mount again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_journal_is_private(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.mkdir()
    path.chmod(0o755)
    Journal(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


@pytest.mark.expected_logs("journal cannot be written")
async def test_what_is_to_come_after_a_commit_does(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    journal.after_commit(lambda: done.append("nothing to wait for"))
    assert done.pop()
    async with trio.open_nursery() as nursery, halted(journal_with_a_note(journal)) as proceed:
        journal.after_commit(lambda: done.append("running"))
        journal.put_file(2, record("two"))
        journal.after_commit(lambda: done.append("next"))
        nursery.start_soon(journal.commit)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        proceed()
    assert done == ["running", "next"]
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "commit", full)
        journal.put_file(3, record("three"))
        journal.after_commit(lambda: done.append("third"))
        with pytest.raises(OSError, match="No space"):
            await journal.commit()
    assert len(done) == 2
    await journal.commit()
    assert done[2:] == ["third"]


async def test_closing_waits_for_the_commit_that_runs(tmp_path: Path) -> None:
    """Nobody may wait for it any more: LMDB must not be closed under it."""
    journal = Journal(tmp_path / "j")
    begun, free = threading.Event(), threading.Event()
    commit = journal._file._commit

    def slow(changes: Records) -> None:
        begun.set()
        free.wait(120)
        commit(changes)

    journal._file._commit = slow  # type: ignore[method-assign]
    journal.put_file(7, record())
    journal.when_durable(lambda _error: None)
    await trio.to_thread.run_sync(begun.wait)
    threading.Timer(0.1, free.set).start()
    journal.close()
    again = Journal(journal.path)
    assert 7 in again.files
    again.close()


async def test_one_that_waits_and_fails_keeps_no_other_from_hearing(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_error: OSError | None) -> None:
        raise RuntimeError("a mistake")

    journal.put_file(7, record())
    journal.when_durable(failing)
    await journal.commit()
    assert journal.is_durable(7)
    assert [entry.levelname for entry in caplog.records] == ["ERROR"]
    caplog.clear()


@pytest.fixture
def estates() -> Iterator[list[Estate]]:
    """Of two mounts."""
    fds = [os.memfd_create(f"estate-{number}") for number in range(2)]
    yield [Estate(fd) for fd in fds]
    for fd in fds:
        os.close(fd)


def stream(estate: Estate, *, continued: bool = False) -> Stream:
    return Stream(estate.trail, stream_of(0, JOURNAL), estate.identity, continued=continued)


@pytest.mark.expected_logs("was not the last to be used with the cache directory")
@pytest.mark.parametrize("by", ["a mount with a successor", "a mount without one", "a mount that found the copy alone"])
def test_the_trail_of_one_mount_is_not_taken_up_in_a_journal_that_another_has_used(
    tmp_path: Path, estates: list[Estate], by: str
) -> None:
    (tmp_path / "cache").mkdir()
    copy = JournalCopy(tmp_path / "cache")
    own, other = estates
    first = Journal(tmp_path / "j", stream(own), copy)
    first.put_file(7, record("own"))  # not committed: it is in the trail alone
    first._file.close()
    other_path = tmp_path / ("k" if "copy" in by else "j")
    between = Journal(other_path, None if "without" in by else stream(other), copy)
    assert not between.files
    between._file.commit({(Table.FILES, U64.pack(7)): encode(record("other"))})
    between.close()
    for _ in range(2):
        with pytest.raises(IndexFormatError, match="has been used by another mount since"):
            Journal(tmp_path / "j", stream(own, continued=True), copy)
    lasting.give_back_the_rest()
    again = Journal(tmp_path / "j", None, copy)
    assert [each.key for each in again.files.values()] == ["other"]
    again.close()


@pytest.mark.parametrize("lost", [False, True])
def test_the_trail_is_taken_up_in_the_mounts_own_journal(tmp_path: Path, estates: list[Estate], lost: bool) -> None:
    """Also where that was lost, and begins anew: nobody else can have used it."""
    first = Journal(tmp_path / "j", stream(estates[0]))
    first.put_file(7, record("own"))
    first._file.close()
    if lost:
        shutil.rmtree(tmp_path / "j")
    again = Journal(tmp_path / "j", stream(estates[0], continued=True))
    assert again.files[7].key == "own"
    again.close()
