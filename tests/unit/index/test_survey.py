"""What a look from outside says of indexes and journals, and that it changes nothing."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from luxfuse.cli.checkup.records import check_records
from luxfuse.index import store
from luxfuse.index.journal import DeleteRecord, Journal
from luxfuse.index.leftovers import Origin, write_origin
from luxfuse.index.store import IndexStore
from luxfuse.index.survey import survey
from luxfuse.index.uncommitted import U64


async def two(state: Path) -> None:
    """An index and a journal, of a mount that has ended."""
    index = IndexStore(state / "index/one")
    await index.flush()
    index.close()
    journal = Journal(state / "journal/one")
    write_origin(journal.path, Origin(mountpoint="/m", source="s3://b", source_id="one", cache=str(state / "cache/one")))
    journal._file.make_log()
    for _ in range(2):
        journal.put_delete("gone", DeleteRecord(None, 0, 1.0))
        journal.drop_delete("gone")
        await journal.commit()
    journal.close()


def put_format(path: Path, version: int) -> None:
    with lmdb.open(str(path), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"format", U64.pack(version), db=env.open_db(b"meta", txn=txn))


def garble(path: Path) -> None:
    """The pages that say where all others are."""
    with (path / "data.mdb").open("r+b") as file:
        file.write(b"\xff" * 8192)


def content_of(state: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file()}


def set_aside(path: Path) -> None:
    path.rename(path.with_name("one.damaged"))


CASES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "another journal": (
        lambda state: put_format(state / "journal/one", 99),
        "FAIL", "format 99, this luxfuse knows 2", "use the luxfuse that wrote it",
    ),
    "garbled journal": (lambda state: garble(state / "journal/one"), "FAIL", "cannot be used", "mv {state}/journal/one "),
    "log of the journal": (
        lambda state: (state / "journal/one/log").unlink(), "FAIL", "cannot be used", "mount again",
    ),
    "another index": (
        lambda state: put_format(state / "index/one", 99), "warn", "format 99, this luxfuse knows", "remove it",
    ),
    "garbled index": (lambda state: garble(state / "index/one"), "warn", "damaged (", "a cold cache"),
    "doubted index": (lambda state: (state / "index/one" / store.DOUBTED).touch(), "warn", "damaged, as was seen", "cold"),
    "index set aside": (lambda state: set_aside(state / "index/one"), "warn", "set aside (last written 2", "remove it"),
    "journal set aside": (lambda state: set_aside(state / "journal/one"), "warn", "set aside", "once nothing that was"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_what_cannot_be_used_is_told_with_what_to_do(tmp_path: Path, case: str) -> None:
    await two(tmp_path)
    assert list(survey(tmp_path)) == []
    (sound,) = check_records(str(tmp_path))
    assert sound.state == "ok"
    spoil, state, text, advice = CASES[case]
    spoil(tmp_path)
    before = content_of(tmp_path)
    (finding,) = check_records(str(tmp_path))
    assert (finding.name, finding.state) == ("records", state)
    assert text in finding.text
    assert advice.format(state=tmp_path) in finding.advice
    assert content_of(tmp_path) == before


async def test_what_a_daemon_uses_is_left_to_it(tmp_path: Path) -> None:
    await two(tmp_path)
    garble(tmp_path / "journal/one")
    (tmp_path / "cache/one").mkdir(parents=True)
    with (tmp_path / "cache/one/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(survey(tmp_path)) == []
    assert len(list(survey(tmp_path))) == 1


async def test_what_waits_for_an_upload_is_told(tmp_path: Path) -> None:
    await two(tmp_path)
    journal = Journal(tmp_path / "journal/one")
    journal.put_delete("gone", DeleteRecord(None, 0, 1.0))
    await journal.commit()
    journal.close()
    (finding,) = check_records(str(tmp_path))
    assert (finding.state, finding.text) == ("warn", "not in the under-store: 1 delete, of s3://b")
    assert f"--cache-dir {tmp_path}/cache" in finding.advice


def test_where_nothing_was_mounted_there_is_nothing_to_tell(tmp_path: Path) -> None:
    (finding,) = check_records(str(tmp_path / "nothing"))
    assert finding.state == "ok"
