from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from luxfuse.index import bulk, purging
from luxfuse.index.names import Attributes, Changes, Entry, Found, Names
from luxfuse.index.numbers import FIRST_INODE
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import Table
from luxfuse.types import Kind
from tests.support.harness import until

NOW = 1_800_000_000.0
DIR = 1


def file(name: bytes, version: str = "v1", size: int = 1) -> Found:
    return Found(name, Kind.FILE, size, version, 5)


def directory(name: bytes) -> Found:
    return Found(name, Kind.DIRECTORY)


class Tree:
    """Names over an index in a temporary directory, with the listing protocol of the lister."""

    def __init__(self, path: Path) -> None:
        self.store = IndexStore(path)
        self.now_s = NOW + 1000
        self.names = Names(self.store, lambda: self.now_s)

    async def list(self, found: list[Found], at_s: float, parts: int = 1, into: int = DIR) -> Changes:
        serial = self.names.listings.begin(into)
        total = Changes()
        size = -(-max(1, len(found)) // parts)
        batches = [found[i : i + size] for i in range(0, len(found), size)] or [[]]
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            changes = await self.names.merge(into, serial, batch + (total.deferred if last else []), at_s, last=last)
            total.names += changes.names
            total.shadowed += changes.shadowed
            total.deferred += changes.deferred
        total.names += (await self.names.complete(into, serial, at_s)).names
        self.names.listings.end(into)
        return total

    def assign(self, found: Found, at_s: float, now_s: float | None = None) -> Entry:
        entry = self.names.assign(DIR, found.name, found, at_s, None, at_s if now_s is None else now_s)
        assert entry is not None
        return entry

    async def shown(self) -> dict[bytes, Entry]:
        await self.store.flush()
        return dict(self.names.after(DIR, b"", 10_000))

    def entry(self, name: bytes, parent: int = DIR) -> Entry:
        entry = self.names.get(parent, name)
        assert entry is not None
        assert self.names.locate(entry.inode) == (parent, name), "an inode in use cannot be found"
        return entry

    async def grow(self, path: str, files: int, at_s: float) -> list[int]:
        """Make directories below the root, as by listings, with files in each; returns the directories' inodes."""
        parent, inodes = DIR, []
        for name in path.split("/"):
            names = [file(b"%d" % number) for number in range(files if inodes else 0)]
            await self.list([*names, directory(name.encode())], at_s, into=parent)
            parent = self.entry(name.encode(), parent).inode
            inodes.append(parent)
        await self.list([file(b"%d" % number) for number in range(files)], at_s, into=parent)
        return inodes

    async def purge(self) -> None:
        """Let the purger do all that is to do."""
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.names.purger.run)
                await until(lambda: not self.rows(Table.REMOVED))
                await self.store.flush()
                nursery.cancel_scope.cancel()

    def rows(self, table: Table) -> list[bytes]:
        return [key for key, _ in self.store.committed_items(table, b"", b"", 100_000)]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("luxfuse.index.purging.PURGE_DELAY_S", 0.01)
    tree = Tree(tmp_path / "i")
    yield tree
    tree.store.close()


async def test_inodes_stay_from_listing_to_listing(tree: Tree) -> None:
    found = [file(b"a"), file(b"b"), directory(b"d"), Found(b"l", Kind.SYMLINK, 3, "v", 1)]
    await tree.list(found, NOW)
    before = {name: entry.inode for name, entry in (await tree.shown()).items()}
    assert set(before) == {b"a", b"b", b"d", b"l"}
    assert len(set(before.values())) == 4
    assert min(before.values()) >= FIRST_INODE
    changes = await tree.list(found, NOW + 100)
    assert not changes.names
    assert {name: entry.inode for name, entry in (await tree.shown()).items()} == before
    assert tree.entry(b"a").checked_s == NOW + 100


async def test_a_new_version_is_a_new_inode_and_the_old_number_is_forgotten(tree: Tree) -> None:
    await tree.list([file(b"a", "v1"), file(b"b")], NOW)
    old = tree.entry(b"a").inode
    changes = await tree.list([file(b"a", "v2", 7), file(b"b")], NOW + 1)
    assert changes.names == [b"a"]
    assert tree.entry(b"a").inode != old
    assert tree.entry(b"a").size == 7
    assert tree.names.locate(old) is None
    assert tree.names.former_name(old) == b"a"
    later = tree.assign(file(b"a", "v3"), NOW + 2)
    assert later.inode not in (old,)
    assert tree.names.locate(later.inode) == (DIR, b"a")


async def test_a_name_that_is_gone_goes_with_its_inode(tree: Tree) -> None:
    await tree.list([file(b"a"), file(b"b")], NOW)
    gone = tree.entry(b"a").inode
    changes = await tree.list([file(b"b")], NOW + 1)
    assert changes.names == [b"a"]
    assert tree.names.get(DIR, b"a") is None
    assert tree.names.locate(gone) is None
    tree.names.remove(DIR, b"b", NOW + 2, NOW + 2)
    assert tree.names.get(DIR, b"b") is None
    assert await tree.shown() == {}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("first", ["file", "directory"])
async def test_a_directory_wins_its_name_and_keeps_its_inode(tree: Tree, parts: int, first: str) -> None:
    both = [file(b"x"), directory(b"x")] if first == "file" else [directory(b"x"), file(b"x")]
    changes = await tree.list(both, NOW, parts)
    assert changes.shadowed == 1
    inode = tree.entry(b"x").inode
    assert tree.entry(b"x").kind is Kind.DIRECTORY
    for number in range(1, 4):
        changes = await tree.list(both, NOW + number, parts)
        assert tree.entry(b"x").inode == inode, "the directory's inode changes with every listing"
        assert not changes.names
    changes = await tree.list([file(b"x")], NOW + 10, parts)
    assert tree.entry(b"x").kind is Kind.FILE
    assert changes.shadowed == 0


async def test_a_file_wins_over_a_link(tree: Tree) -> None:
    await tree.list([Found(b"x", Kind.SYMLINK, 1, "l", 1), file(b"x")], NOW)
    inode = tree.entry(b"x").inode
    assert tree.entry(b"x").kind is Kind.FILE
    await tree.list([Found(b"x", Kind.SYMLINK, 1, "l", 1), file(b"x")], NOW + 1)
    assert tree.entry(b"x").inode == inode


async def test_a_name_looked_up_during_a_listing_survives_it(tree: Tree) -> None:
    serial = tree.names.listings.begin(DIR)
    tree.assign(file(b"new"), NOW + 1)
    await tree.names.merge(DIR, serial, [file(b"a")], NOW)
    await tree.names.complete(DIR, serial, NOW)
    tree.names.listings.end(DIR)
    assert set(await tree.shown()) == {b"a", b"new"}
    assert await tree.list([file(b"a")], NOW + 2)
    assert set(await tree.shown()) == {b"a"}


async def test_a_newer_lookup_is_not_undone_by_an_older_listing(tree: Tree) -> None:
    await tree.list([file(b"a", "v1")], NOW)
    serial = tree.names.listings.begin(DIR)
    newer = tree.assign(file(b"a", "v3"), NOW + 11)
    await tree.names.merge(DIR, serial, [file(b"a", "v2")], NOW + 10)
    await tree.names.complete(DIR, serial, NOW + 10)
    tree.names.listings.end(DIR)
    assert tree.entry(b"a").version == "v3"
    assert tree.entry(b"a").inode == newer.inode
    assert tree.entry(b"a").checked_s == NOW + 11


async def test_a_slow_lookup_does_not_undo_a_newer_listing(tree: Tree) -> None:
    await tree.list([file(b"a", "v2"), file(b"b", "v2")], NOW + 10)
    inode = tree.entry(b"a").inode
    assert tree.assign(file(b"a", "v1"), NOW + 5, NOW + 12).inode == inode
    assert tree.entry(b"a").version == "v2"
    same = tree.assign(file(b"a", "v2"), NOW + 5, NOW + 12)
    assert same.checked_s == NOW + 10
    kept = tree.names.remove(DIR, b"b", NOW + 5, NOW + 12)
    assert kept is not None
    assert tree.entry(b"b").version == "v2"
    # An entry from the future (the clock was set back) is no argument.
    assert tree.assign(file(b"a", "v3"), NOW + 5, NOW + 6).version == "v3"
    assert tree.names.remove(DIR, b"b", NOW + 5, NOW + 6) is None


async def test_a_listing_corrects_what_is_known_from_the_future(tree: Tree) -> None:
    """As after the clock was set back."""
    await tree.list([file(b"same"), file(b"changed", "v1"), file(b"gone")], NOW)
    tree.assign(file(b"looked-up"), NOW)
    inode = tree.entry(b"same").inode
    tree.now_s = NOW - 100
    changes = await tree.list([file(b"same"), file(b"changed", "v2")], NOW - 101)
    assert sorted(changes.names) == [b"changed", b"gone", b"looked-up"]
    shown = await tree.shown()
    assert set(shown) == {b"same", b"changed"}
    assert shown[b"changed"].version == "v2"
    assert {entry.checked_s for entry in shown.values()} == {NOW - 101}
    assert tree.entry(b"same").inode == inode


async def test_entries_of_a_listing_that_failed_do_not_pass_for_ones_of_the_next(tree: Tree) -> None:
    await tree.list([], NOW)
    serial = tree.names.listings.begin(DIR)
    await tree.names.merge(DIR, serial, [file(b"gone"), directory(b"becomes-file")], NOW + 1)
    tree.names.listings.end(DIR)
    await tree.list([file(b"becomes-file"), file(b"other")], NOW + 2)
    shown = await tree.shown()
    assert set(shown) == {b"becomes-file", b"other"}
    assert shown[b"becomes-file"].kind is Kind.FILE


async def test_a_lookup_and_a_merge_at_the_same_time_leave_a_usable_inode(tree: Tree) -> None:
    """The loop records the old version while the writer thread is merging the new one."""
    await tree.list([file(b"a", "v1")], NOW)
    serial = tree.names.listings.begin(DIR)
    entered, proceed = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slowly():
        token.run_sync_soon(entered.set)
        assert proceed.wait(120)
        yield file(b"a", "v2")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.names.merge, DIR, serial, slowly(), NOW + 10)
        await entered.wait()
        tree.assign(file(b"a", "v1"), NOW + 11)
        proceed.set()
    tree.names.listings.end(DIR)
    await tree.store.flush()
    tree.entry(b"a")


async def test_inode_numbers_are_never_used_again_also_after_restarts(tmp_path: Path) -> None:
    used: set[int] = set()
    for round_number in range(4):
        tree = Tree(tmp_path / "i")
        found = [file(b"same")] + [file(f"r{round_number}-{n}".encode()) for n in range(round_number % 3)]
        await tree.list(found, NOW + round_number)
        if round_number == 0:
            same = tree.entry(b"same").inode
        assert tree.entry(b"same").inode == same, "inode numbers are kept over a restart"
        fresh = {entry.inode for name, entry in (await tree.shown()).items() if name != b"same"}
        if round_number % 2:
            fresh.add(tree.assign(file(b"looked-up", f"v{round_number}"), NOW + round_number).inode)
        assert not fresh & used
        assert same not in fresh
        assert all(inode >= FIRST_INODE for inode in fresh)
        used |= fresh
        await tree.store.flush()
        tree.store.close()


async def test_a_number_noted_during_a_merge_is_not_lower_than_the_merge_took(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "i")
    serial = tree.names.listings.begin(DIR)
    first, proceed = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    real = tree.names._numbers.new
    calls = 0

    def slow_new_inode() -> int:
        nonlocal calls
        calls += 1
        number = real()
        if calls == 1:
            token.run_sync_soon(first.set)
            assert proceed.wait(120)
        return number

    tree.names._numbers.new = slow_new_inode  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.names.merge, DIR, serial, [file(b"a"), file(b"b"), file(b"c")], NOW)
        await first.wait()
        looked_up = tree.assign(file(b"x"), NOW).inode
        proceed.set()
    tree.names.listings.end(DIR)
    used = {tree.entry(name).inode for name in (b"a", b"b", b"c")} | {looked_up}
    assert len(used) == 4
    await tree.store.flush()
    tree.store.close()
    tree = Tree(tmp_path / "i")
    assert tree.assign(file(b"later"), NOW).inode not in used
    tree.store.close()


async def test_attributes_of_a_lookup_outlive_a_listing(tree: Tree) -> None:
    attributes = Attributes(mode=0o600)
    tree.names.assign(DIR, b"a", file(b"a"), NOW, attributes, NOW)
    await tree.list([file(b"a")], NOW + 1)
    assert tree.entry(b"a").attributes == attributes
    await tree.list([file(b"a", "v2")], NOW + 2)
    assert tree.entry(b"a").attributes is None


async def test_forgetting_a_listing_keeps_its_entries(tree: Tree) -> None:
    await tree.list([file(b"a")], NOW)
    before = tree.names.listings.of(DIR)
    assert before is not None
    assert (before.fetched_s, before.entries) == (NOW, 1)
    tree.names.listings.forget(DIR)
    after = tree.names.listings.of(DIR)
    assert after is not None
    assert after.fetched_s == 0
    assert set(await tree.shown()) == {b"a"}


async def test_names_come_in_byte_order_from_any_position(tree: Tree) -> None:
    names = [b"B", b"a", b"a\x01", b"a.b", b"ab", "ä".encode(), b"z" * 255]
    await tree.list([file(name) for name in names], NOW)
    await tree.names.merge(DIR + 1, 1, [file(b"other directory")], NOW)
    assert [name for name, _ in tree.names.after(DIR, b"", 100)] == sorted(names)
    assert [name for name, _ in tree.names.after(DIR, b"a", 2)] == [b"a\x01", b"a.b"]
    assert tree.names.after(DIR, b"\xff", 2) == []


async def test_a_listing_that_cannot_be_committed_retires_no_numbers(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    await tree.list([file(b"a"), file(b"b")], NOW)
    a, b = tree.entry(b"a").inode, tree.entry(b"b").inode
    real = tree.store._commit

    def full_at_the_end(changes: object, function: Callable[[Transaction], object]) -> object:
        def wrapper(txn: Transaction) -> None:
            function(txn)
            raise OSError(errno.ENOSPC, "No space left on device")

        return real(changes, wrapper)  # type: ignore[arg-type]

    monkeypatch.setattr(tree.store, "_commit", full_at_the_end)
    serial = tree.names.listings.begin(DIR)
    with pytest.raises(OSError, match="No space"):
        await tree.names.merge(DIR, serial, [file(b"a", "v2")], NOW + 1)
    with pytest.raises(OSError, match="No space"):
        await tree.names.complete(DIR, serial, NOW + 1)
    tree.names.listings.end(DIR)
    assert tree.names.former_name(a) is tree.names.former_name(b) is None
    assert tree.entry(b"a").inode == a
    monkeypatch.undo()
    await tree.list([file(b"a", "v2")], NOW + 2)
    assert (tree.names.former_name(a), tree.names.former_name(b)) == (b"a", b"b")


async def test_only_the_loop_changes_what_the_loop_reads(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    real = tree.names._retire

    def retire(inode: int, name: bytes) -> None:
        threads.add(threading.current_thread())
        real(inode, name)

    monkeypatch.setattr(tree.names, "_retire", retire)
    await tree.list([file(b"a"), file(b"b"), file(b"c")], NOW)
    await tree.list([file(b"a", "v2"), file(b"c")], NOW + 1)
    tree.names.remove(DIR, b"c", NOW + 2, NOW + 2)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("way", ["listing", "look-up", "becomes a file", "becomes a file in a listing"])
async def test_what_was_below_a_removed_directory_is_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(purging, "PURGE_RECORDS", 7)
    monkeypatch.setattr(purging, "PURGE_PAUSE_S", 0)
    tops = await tree.grow("a/b/c", 20, NOW)
    child = tree.names.after(tops[1], b"", 1)[0][1].inode
    assert len(tree.rows(Table.NAMES)) == 3 + 60
    if way == "listing":
        await tree.list([file(b"x")], NOW + 1)
    elif way == "look-up":
        tree.names.remove(DIR, b"a", NOW + 1, NOW + 1)
    elif way == "becomes a file":
        tree.assign(file(b"a"), NOW + 1)
    else:
        await tree.list([file(b"a")], NOW + 1)
    await tree.store.flush()
    await tree.purge()
    left = [b"x"] if way == "listing" else [] if way == "look-up" else [b"a"]
    assert list(await tree.shown()) == left
    assert len(tree.rows(Table.NAMES)) == len(tree.rows(Table.INODES)) == len(left)
    assert all(key[-1] == DIR for key in tree.rows(Table.LISTINGS))
    assert tree.names.locate(child) is None
    assert tree.names.get(tops[1], b"1") is None


async def test_a_purge_goes_on_after_a_restart_and_keeps_to_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "PURGE_RECORDS", 10)
    tree = Tree(tmp_path / "i")
    await tree.grow("a/b", 100, NOW)
    await tree.list([], NOW + 1)
    before = len(tree.rows(Table.NAMES))
    more = await tree.store.run(lambda txn: bulk.purge(txn, bulk.removed(txn, 10)[0], 10))
    assert more, "one transaction does everything"
    assert before - len(tree.rows(Table.NAMES)) <= 10
    tree.store.close()
    tree = Tree(tmp_path / "i")
    await tree.purge()
    assert tree.rows(Table.NAMES) == tree.rows(Table.INODES) == []
    tree.store.close()


async def test_a_directory_that_came_back_keeps_what_is_below_it(tree: Tree) -> None:
    old, _ = await tree.grow("a/b", 3, NOW)
    await tree.list([], NOW + 1)
    back, below = await tree.grow("a/b", 3, NOW + 2)
    assert back != old
    inodes = [entry.inode for _, entry in tree.names.after(below, b"", 10)]
    await tree.purge()
    assert [entry.inode for _, entry in tree.names.after(below, b"", 10)] == inodes
    assert tree.names.listings.of(below) is not None
    assert len(tree.rows(Table.NAMES)) == len(tree.rows(Table.INODES)) == 2 + 6
    assert tree.names.after(old, b"", 10) == []


async def test_a_directory_whose_number_a_lookup_gave_back_is_not_purged(tree: Tree) -> None:
    """As when the loop confirms a directory while the writer thread merges a listing that has a file of its name."""
    (top,) = await tree.grow("a", 3, NOW)
    await tree.list([], NOW + 1)
    tree.store.put(Table.INODES, top.to_bytes(8, "big"), DIR.to_bytes(8, "big") + b"a")
    await tree.purge()
    assert len(tree.names.after(top, b"", 10)) == 3


async def test_what_is_recorded_in_a_directory_after_it_went_is_forgotten_too(tree: Tree) -> None:
    (top,) = await tree.grow("a", 3, NOW)
    await tree.list([], NOW + 1)
    await tree.purge()
    tree.names.assign(top, b"late", file(b"late"), NOW + 2, None, NOW + 2)
    await tree.store.flush()
    await tree.purge()
    await tree.list([file(b"later")], NOW + 3, into=top)
    assert tree.names.after(top, b"", 10)
    await tree.purge()
    assert tree.rows(Table.NAMES) == tree.rows(Table.INODES) == []
    assert tree.names.listings.of(top) is None


async def test_the_last_part_and_the_end_are_one_transaction(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    serial = tree.names.listings.begin(DIR)
    first = await tree.names.merge(DIR, serial, [file(b"b"), directory(b"d")], NOW, last=False)
    assert first.was_empty
    tree.assign(file(b"asked meanwhile"), NOW + 1)
    commits = 0
    run = tree.store.run

    async def counted(function: Callable[[Transaction], Changes]) -> Changes:
        nonlocal commits
        commits += 1
        return await run(function)

    tree.store.run = counted  # type: ignore[method-assign, assignment]
    await tree.names.complete(DIR, serial, NOW, [file(b"a"), file(b"d")], fresh=first.was_empty)
    tree.names.listings.end(DIR)
    assert commits == 1
    shown = await tree.shown()
    assert list(shown) == [b"a", b"asked meanwhile", b"b", b"d"]
    assert shown[b"d"].kind is Kind.DIRECTORY
    listing = tree.names.listings.of(DIR)
    assert listing is not None
    assert listing.entries == 4


async def test_what_was_there_before_goes_though_the_whole_listing_is_one_part(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    await tree.list([file(b"a"), file(b"old")], NOW)
    serial = tree.names.listings.begin(DIR)
    changes = await tree.names.complete(DIR, serial, NOW + 10, [file(b"a"), file(b"new")])
    tree.names.listings.end(DIR)
    assert changes.names == [b"old"]
    assert list(await tree.shown()) == [b"a", b"new"]
    listing = tree.names.listings.of(DIR)
    assert listing is not None
    assert listing.entries == 2
