"""An index that is damaged is set aside, when it is opened or once that was noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.errors import IndexDamaged, IndexFormatError
from luxfuse.index import lifecycle
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.index.objects import Objects
from luxfuse.index.soundness import ASIDE, LOOKED_AT, open_index
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import U64, Table

GARBAGE = b"\xc1 is no msgpack"


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(lifecycle, "BOOT_ID", path)
    return path


async def opened(path: Path) -> tuple[IndexStore, list[str]]:
    notes: list[str] = []
    return await open_index(path, notes.append), notes


async def left(path: Path, records: dict[tuple[Table, bytes], bytes], *, clean: bool) -> None:
    """Use an index, and leave these records in it."""
    store, _ = await opened(path)
    await lifecycle.begin(store)
    store.apply(dict(records))
    await store.flush()
    if clean:
        await lifecycle.end(store)
    store.close()


def listing(count: int) -> dict[tuple[Table, bytes], bytes]:
    """So many sound records, in front of what begins with 0xff."""
    return {(Table.INODES, U64.pack(i)): U64.pack(ROOT_INODE) + b"name" for i in range(count)}


@pytest.mark.expected_logs("is damaged")
@pytest.mark.parametrize("table", [Table.NAMES, Table.LISTINGS, Table.OBJECTS])
async def test_a_record_that_cannot_be_read_is_found_when_it_is_opened(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "index"
    await left(path, {(table, bytes(16)): GARBAGE}, clean=True)
    store, notes = await opened(path)
    assert f"a record of {table.name.lower()} cannot be read" in notes[0]
    assert store.get(table, bytes(16)) is None
    assert (tmp_path / ("index" + ASIDE) / "data.mdb").exists()
    store.close()


@pytest.mark.expected_logs("is damaged")
@pytest.mark.parametrize(("clean", "rebooted", "found"), [(False, True, True), (True, True, False), (False, False, False)])
async def test_everything_is_read_once_the_machine_went_down_with_it(
    tmp_path: Path, boot: Path, clean: bool, rebooted: bool, found: bool
) -> None:
    path = tmp_path / "index"
    behind = {(Table.INODES, b"\xff"): b"a key that is too short"}
    await left(path, listing(2 * LOOKED_AT) | behind, clean=clean)
    if rebooted:
        boot.write_text("second\n")
    store, notes = await opened(path)
    assert bool(notes) is found
    assert (store.get(Table.INODES, b"\xff") is None) is found
    store.close()


@pytest.mark.expected_logs("is damaged")
async def test_damage_that_shows_later_makes_the_next_start_set_it_aside(tmp_path: Path) -> None:
    path = tmp_path / "index"
    store, _ = await opened(path)
    names, objects = Names(store), Objects(store)
    store.apply({(Table.NAMES, U64.pack(ROOT_INODE) + b"x"): GARBAGE, (Table.OBJECTS, bytes(16)): GARBAGE})
    await store.flush()
    assert store.doubted is None
    assert objects.load(bytes(16)) is None  # as good as not cached
    assert store.doubted is not None
    with pytest.raises(IndexDamaged):  # and not: there is no such name
        names.get(ROOT_INODE, b"x")
    with pytest.raises(IndexDamaged):
        names.after(ROOT_INODE, b"", 10)
    store.close()
    store, notes = await opened(path)
    assert "as was seen when it was last used" in notes[0]
    store.close()
    store, notes = await opened(path)
    assert notes == []
    store.close()


async def test_an_unknown_version_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "index"
    await left(path, {(Table.META, b"format"): U64.pack(99)}, clean=True)
    with pytest.raises(IndexFormatError, match="has format 99") as caught:
        await opened(path)
    assert not isinstance(caught.value, IndexDamaged)
    assert (path / "data.mdb").exists()
