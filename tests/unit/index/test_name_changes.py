"""Names that are removed and moved here: what a restart makes of an index that is older than the journal."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from luxfuse.index.journal_file import Table
from luxfuse.index.name_changes import NameChanges
from luxfuse.index.names import Names
from luxfuse.index.noted_names import NotedNames
from luxfuse.index.store import IndexStore
from luxfuse.types import Kind
from tests.support.seeds import seeds

NOW = 1_800_000_000.0
NAMES = [bytes([letter]) for letter in b"abcdef"]
Tree = dict[tuple[int, bytes], int]


class Life:
    """Names over an index and a journal's table, in which all that is noted is there at once."""

    def __init__(self, path: Path, journal: dict[bytes, bytes]) -> None:
        self.path, self.journal = path, journal
        self.store = IndexStore(path)
        self.noted = NotedNames(self._note)
        self.noted.load(sorted(journal.items()))
        self.names = Names(self.store, lambda: NOW)
        self.names.changes = NameChanges(self.store, self.noted)
        self.names.changes.make_again(self.names)

    def _note(self, _table: Table, key: bytes, value: bytes | None) -> None:
        if value is None:
            del self.journal[key]
        else:
            self.journal[key] = value

    def make(self, parent: int, name: bytes, kind: Kind = Kind.FILE) -> int:
        return self.names.create(parent, name, kind, attributes=None, mtime_ns=1, checked_s=NOW).inode

    def tree(self, directories: list[int]) -> Tree:
        return {
            (directory, name): entry.inode
            for directory in directories for name, entry in self.names.after(directory, b"", 100)
            if entry.kind is Kind.FILE
        }  # fmt: skip

    def killed(self, path: Path) -> Life:
        """The next life, after a kill at this instant."""
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns("lock.mdb"))
        return Life(path, dict(self.journal))


@pytest.mark.parametrize("seed", seeds(12))
async def test_a_restart_makes_what_the_index_lacks(tmp_path: Path, seed: int) -> None:
    """Nothing that is gone is there, and all that the index knew has the name that it had at last."""
    rng = random.Random(seed)
    life = Life(tmp_path / "0", {})
    directories = [1, life.make(1, b"x", Kind.DIRECTORY), life.make(1, b"y", Kind.DIRECTORY)]
    await life.store.flush()
    on_disk: Tree = {}
    for number in range(1, 5):
        for _ in range(rng.randrange(30)):
            place = rng.choice(directories), rng.choice(NAMES)
            what = rng.choice(["make", "move", "move", "erase", "flush"])
            if what == "flush":
                await life.store.flush()
                on_disk = life.tree(directories)
            elif life.names.get(*place) is None:
                life.make(*place)
            elif what == "move":
                life.names.move(*place, rng.choice(directories), rng.choice(NAMES))
            elif what == "erase":
                life.names.erase(*place)
        before, known = life.tree(directories), set(on_disk.values())
        following = life.killed(tmp_path / str(number))
        found = following.tree(directories)
        for place, inode in before.items():
            if inode in known:
                assert found.pop(place) == inode
            else:  # the index never had it: the journal's record of the file, or the store, tells of it
                found.pop(place, None)
        assert not found, f"{found} had gone"
        life.store.abandon()
        life = following
        await life.store.flush()
        on_disk = life.tree(directories)
    life.store.abandon()


async def test_what_the_index_never_had_is_not_noted(tmp_path: Path) -> None:
    life = Life(tmp_path / "0", {})
    life.make(1, b"a")
    life.names.erase(1, b"a")
    life.make(1, b"a")
    life.names.move(1, b"a", 1, b"b")
    assert not life.journal
    await life.store.flush()
    life.names.move(1, b"b", 1, b"c")
    life.names.move(1, b"c", 1, b"d")
    assert len(life.journal) == 2, "the second one is of what the first one leaves"
    life.store.abandon()


async def test_what_the_store_says_is_gone_is_not_noted(tmp_path: Path) -> None:
    life = Life(tmp_path / "0", {})
    life.make(1, b"a")
    await life.store.flush()
    assert life.names.remove(1, b"a", NOW + 1, NOW + 1) is None
    assert not life.journal
    life.store.abandon()
