"""What is seen of a journal from outside."""

from __future__ import annotations

import fcntl
from pathlib import Path

from luxfuse.index.journal import DeleteRecord, FileRecord, Journal, OperationRecord
from luxfuse.index.leftovers import Leftovers, Origin, find, write_origin
from luxfuse.types import Kind, WriteMode


def record(key: str, size: int, *, closed: bool = True, mode: WriteMode = WriteMode.ASYNC_THROUGH) -> FileRecord:
    return FileRecord(
        key=key, kind=Kind.FILE, mode=mode, inode=5, attributes=None, expect="", base_key="", base_version="", base_size=0,
        size=size, stamp=1, closed=closed, content=True, since_s=1.0,
    )  # fmt: skip


def origin_in(tmp_path: Path) -> Origin:
    return Origin(mountpoint="/mnt", source="s3://b", source_id="b", cache=str(tmp_path / "cache"))


async def filled(tmp_path: Path) -> Origin:
    journal = Journal(tmp_path / "journal/one")
    origin = origin_in(tmp_path)
    write_origin(journal.path, origin)
    write_origin(journal.path, origin)
    journal.put_file(1, record("a", 1000))
    journal.put_file(2, record("b", 24))
    journal.put_file(3, record("unclosed", 5, closed=False))
    journal.put_file(4, record("opened", 0, closed=False))
    journal.put_file(5, record("local", 7, mode=WriteMode.MUST_CACHE))
    journal.put_delete("gone", DeleteRecord(None, 0, 1.0))
    journal.put_operation(6, OperationRecord("move", {"source": "x", "target": "y"}, 0, 1.0))
    await journal.commit()
    journal.close()
    return origin


async def test_counts(tmp_path: Path) -> None:
    origin = await filled(tmp_path)
    (left,) = find(tmp_path / "journal")
    assert left == Leftovers(origin=origin, files=2, bytes=1024, unclosed=1, deletes=1, moves=1)
    assert left.any
    assert left.text == "2 changed files (1.0 KiB), 1 unclosed file, 1 delete, 1 unfinished rename"
    assert not Leftovers(origin=origin).any


async def test_one_in_use_is_left_out(tmp_path: Path) -> None:
    origin = await filled(tmp_path)
    Path(origin.cache).mkdir()
    with (Path(origin.cache) / "lock").open("w") as lock:
        assert len(list(find(tmp_path / "journal"))) == 1
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not list(find(tmp_path / "journal"))
    assert len(list(find(tmp_path / "journal"))) == 1


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    journals = tmp_path / "journal"
    assert not list(find(journals))
    (journals / "damaged").mkdir(parents=True)
    (journals / "damaged/origin.json").write_text("{")
    (journals / "empty").mkdir()
    write_origin(journals / "empty", origin_in(tmp_path))
    (journals / "file").touch()
    assert not list(find(journals))
