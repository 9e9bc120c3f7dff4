"""The copy of the journal beside the staging files, and which of the two is believed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.errors import IndexFormatError
from luxfuse.index import journal_copy
from luxfuse.index.journal import DeleteRecord, Journal
from luxfuse.index.journal_copy import JournalCopy
from tests.unit.index.test_journal import record


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture
def opened(tmp_path: Path, cache: Path) -> Iterator[list[Journal]]:
    made: list[Journal] = []
    yield made
    for journal in made:
        journal.close()


def open_in(cache: Path, state: Path, opened: list[Journal]) -> Journal:
    """End the run before, and begin one with this state directory."""
    while opened:
        opened.pop().close()
    opened.append(Journal(state / "journal", copy=JournalCopy(cache)))
    return opened[0]


async def fill(journal: Journal) -> tuple[int, ...]:
    """Note one of everything, and commit."""
    small, large, link = (journal.new_id() for _ in range(3))
    journal.put_file(small, record("small"), b"12345")
    journal.put_file(large, record("large", size=16_000), bytes(16_000))
    journal.put_file(link, record("link.rclonelink"), b"target")
    journal.put_delete("gone", DeleteRecord("v", 0, 1.0))
    journal.uploads.begun("large", "upload", {"mode": "420"})
    await journal.commit()
    dropped = journal.new_id()
    journal.put_file(dropped, record("dropped"))
    await journal.commit()
    journal.drop_file(dropped)
    await journal.commit()
    return small, large, link


@pytest.mark.expected_logs("was not the last to be used with the cache directory")
async def test_a_lost_state_directory_is_made_good_by_the_copy(tmp_path: Path, cache: Path, opened: list[Journal]) -> None:
    journal = open_in(cache, tmp_path / "first", opened)
    small, large, link = await fill(journal)
    identity, files, deletes = journal.identity, dict(journal.files), dict(journal.deletes)
    journal = open_in(cache, tmp_path / "second", opened)
    files[large].has_inline = False  # it is in its staging file
    assert journal.files == files
    assert journal.deletes == deletes
    assert journal.identity == identity
    assert journal.uploads.open == {("large", "upload")}
    assert [journal.inline(number) for number in (small, large, link)] == [b"12345", None, b"target"]
    assert journal.new_id() > link


@pytest.mark.expected_logs("was not the last to be used with the cache directory")
async def test_the_one_that_was_used_last_is_believed(tmp_path: Path, cache: Path, opened: list[Journal]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    journal = open_in(cache, first, opened)
    small, large, link = await fill(journal)
    journal = open_in(cache, second, opened)
    journal.drop_file(small)
    journal.put_file(large, record("large elsewhere"))
    await journal.commit()
    assert set(open_in(cache, first, opened).files) == {large, link}, "the first knows of an older state"
    assert opened[0].files[large].key == "large elsewhere"
    opened[0].drop_file(link)
    await opened[0].commit()
    # A copy that is older than the journal, as a kill between the two leaves it, is not believed.
    old = (cache / journal_copy.FILE_NAME).read_bytes()
    open_in(cache, first, opened).drop_file(large)
    await opened[0].commit()
    opened.pop().close()
    (cache / journal_copy.FILE_NAME).write_bytes(old)
    assert open_in(cache, first, opened).files == {}


@pytest.mark.expected_logs("was not the last to be used with the cache directory")
async def test_what_was_cut_short_is_left_out(tmp_path: Path, cache: Path, opened: list[Journal]) -> None:
    journal = open_in(cache, tmp_path / "state", opened)
    number = journal.new_id()
    journal.put_file(number, record("kept"))
    await journal.commit()
    whole = (cache / journal_copy.FILE_NAME).read_bytes()
    journal.put_file(number, record("later"))
    await journal.commit()
    longer = (cache / journal_copy.FILE_NAME).read_bytes()
    opened.pop().close()
    assert longer.startswith(whole)
    garbled = longer[:-3] + b"xyz"
    for round_, left in enumerate((longer[:-1], longer[: len(whole) + 3], whole, garbled)):
        (cache / journal_copy.FILE_NAME).write_bytes(left)
        journal = open_in(cache, tmp_path / f"new{round_}", opened)
        assert journal.files[number].key == "kept"
        opened.pop().close()


@pytest.mark.parametrize("zeros", [1, 8, 5000])
async def test_zeros_that_a_power_cut_left_at_its_end_are_nothing(
    tmp_path: Path, cache: Path, opened: list[Journal], zeros: int
) -> None:
    journal = open_in(cache, tmp_path, opened)
    await fill(journal)
    opened.pop().close()
    before = JournalCopy(cache).read()
    with (cache / "journal.copy").open("ab") as file:
        file.write(bytes(zeros))
    assert JournalCopy(cache).read() == before
    assert set(open_in(cache, tmp_path, opened).deletes) == {"gone"}


async def test_nothing_readable_is_nothing(tmp_path: Path, cache: Path, opened: list[Journal]) -> None:
    for round_, left in enumerate((b"", b"luxfuse", b"garbage" * 100, journal_copy.MAGIC)):
        (cache / journal_copy.FILE_NAME).write_bytes(left)
        assert open_in(cache, tmp_path / f"new{round_}", opened).files == {}


async def test_it_stays_small_and_is_made_again_where_it_was_removed(
    tmp_path: Path, cache: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_copy, "LEAST_BYTES", 4096)
    path = cache / journal_copy.FILE_NAME
    journal = open_in(cache, tmp_path / "state", opened)
    number, sizes = journal.new_id(), []
    for round_ in range(200):
        journal.put_file(number, record("k" * 100, stamp=round_))
        await journal.commit()
        sizes.append(path.stat().st_size)
    assert max(sizes) < 4096 + 1024
    assert sum(after < before for before, after in itertools.pairwise(sizes)) > 5
    path.unlink()
    journal.put_file(number, record("k", stamp=500))
    await journal.commit()
    found = JournalCopy(cache).read()
    assert found is not None
    assert len([key for table, key in found.records if table == 1]) == 1


@pytest.mark.expected_logs("the copy of the journal")
async def test_a_disk_that_takes_no_copy_keeps_nobody_from_the_journal(
    tmp_path: Path, cache: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_in(cache, tmp_path / "state", opened)
    first, second = journal.new_id(), journal.new_id()
    journal.put_file(first, record("a"))
    await journal.commit()

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(journal_copy, "_write", full)
        for _ in range(3):
            journal.put_file(second, record("b"))
            await journal.commit()
    assert len(caplog.records) == 1
    assert JournalCopy(cache).read() is None, "a copy that lacks something is worse than none"
    journal.drop_file(first)
    await journal.commit()
    found = JournalCopy(cache).read()
    assert found is not None
    assert [key[-1] for table, key in found.records if table == 1] == [second]
    shutil.rmtree(tmp_path / "state")


async def test_a_copy_of_another_version_is_refused(tmp_path: Path, cache: Path, opened: list[Journal]) -> None:
    open_in(cache, tmp_path / "state", opened)
    opened.pop().close()
    path = cache / journal_copy.FILE_NAME
    path.write_bytes(path.read_bytes().replace(b" 2\n", b" 3\n", 1))
    with pytest.raises(IndexFormatError, match="of another version") as caught:
        open_in(cache, tmp_path / "other", opened)
    assert ".damaged" not in str(caught.value), "the journal is not to blame"
    assert b" 3\n" in path.read_bytes()[:30]
