"""What a successor takes up of an index's changes, from the trail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.estate.memory import Estate
from luxfuse.estate.trail import INDEX, Stream, stream_of
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import Table

STREAM = stream_of(3, INDEX)


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("estate")
    yield made
    os.close(made)


def opened(path: Path, estate: Estate) -> IndexStore:
    return IndexStore(path, Stream(estate.trail, STREAM, estate.identity))


def move(estate: Estate) -> None:
    """Let another volume go on until what rests has moved."""
    before = estate.trail.left(STREAM)
    busy = Stream(estate.trail, 0, estate.identity)
    for _ in range(80):
        busy.append(bytes(1 << 20))
        busy.written(busy.mark())
    assert estate.exact
    moved = estate.trail.left(STREAM)
    assert [payload for _, payload in moved] == [payload for _, payload in before]
    assert moved[0][0] > before[-1][0]


async def test_what_moves_in_the_trail_is_not_made_again_over_later_commits(tmp_path: Path, fd: int) -> None:
    first = Estate(fd)
    first.trail.append(0, b"keeps all behind it in the trail")
    store = opened(tmp_path, first)
    store.put(Table.NAMES, b"a", b"committed")
    store.put(Table.NAMES, b"b", b"committed")
    await store.flush()

    def merge(txn: Transaction) -> None:
        txn.put(Table.NAMES, b"a", b"merged")
        txn.delete(Table.NAMES, b"b")

    await store.run(merge)
    store.put(Table.NAMES, b"c", b"not committed")
    store.abandon()
    for _ in range(2):  # the second one moves what was moved
        move(Estate(fd))
    store = opened(tmp_path, Estate(fd))
    names = [store.get(Table.NAMES, name) for name in (b"a", b"b", b"c")]
    assert names == [b"merged", None, b"not committed"]
    await store.flush()
    assert store.committed_items(Table.META, b"at", b"at", 9) == []
    store.close()
