"""Names that were changed here: what the store says of them, and merges that run meanwhile."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from luxfuse.index import held as module
from luxfuse.index.entries import decode_entry
from luxfuse.index.held import HeldNames
from luxfuse.index.names import Attributes, Changes, Entry, Found
from luxfuse.index.uncommitted import U64, Table
from luxfuse.types import Kind
from tests.unit.index.test_names import DIR, NOW, Tree, directory, file


@pytest.fixture
def tree(tmp_path: Path):
    tree = Tree(tmp_path / "i")
    yield tree
    tree.store.close()


def create(tree: Tree, name: bytes, kind: Kind = Kind.FILE, parent: int = DIR) -> Entry:
    return tree.names.create(parent, name, kind, attributes=None, mtime_ns=5, checked_s=tree.now_s)


async def check(tree: Tree) -> dict[bytes, Entry]:
    """INODES has exactly the numbers in use, each leading to its name, before and after everything is forgotten."""
    await tree.store.flush()
    for _ in range(2):
        rows = {}
        for key, value in tree.store.committed_items(Table.NAMES, b"", b"", 100_000):
            entry = decode_entry(value)
            assert tree.names.locate(entry.inode) == (U64.unpack(key[:8])[0], key[8:])
            assert tree.names.get(U64.unpack(key[:8])[0], key[8:]) == entry
            assert tree.names.former_name(entry.inode) is None, "a number in use is remembered as a former one"
            rows[U64.pack(entry.inode)] = key
        assert dict(tree.store.committed_items(Table.INODES, b"", b"", 100_000)) == rows
        tree.names._forget_decoded()
    return await tree.shown()


async def test_while_held_a_listing_changes_nothing(tree: Tree) -> None:
    await tree.list([file(b"changed"), file(b"removed"), file(b"other")], NOW)
    changed = tree.entry(b"changed").inode
    for name in (b"changed", b"removed", b"made"):
        tree.names.hold(DIR, name)
        assert tree.names.is_held(DIR, name)
    tree.names.erase(DIR, b"removed")
    made = create(tree, b"made").inode
    tree.now_s += 5000
    changes = await tree.list([file(b"changed", "v2"), directory(b"removed"), file(b"other")], tree.now_s - 1)
    assert changes == Changes()
    changes = await tree.list([file(b"removed"), directory(b"made")], tree.now_s)
    assert (changes.names, changes.shadowed) == ([b"other"], 0)
    shown = await check(tree)
    assert {name: entry.inode for name, entry in shown.items()} == {b"changed": changed, b"made": made}
    assert shown[b"changed"].version == "v1"


async def test_while_held_a_look_up_changes_nothing(tree: Tree) -> None:
    await tree.list([file(b"changed"), file(b"removed"), file(b"kept")], NOW)
    entry = tree.entry(b"changed")
    for name in (b"changed", b"removed", b"kept"):
        tree.names.hold(DIR, name)
    tree.names.erase(DIR, b"removed")
    answer = tree.names.assign(DIR, b"changed", file(b"changed", "v2"), NOW + 9, None, NOW + 9)
    assert answer == entry
    assert answer is not None
    assert answer.version == "v1"
    assert tree.names.assign(DIR, b"removed", file(b"removed"), NOW + 9, None, NOW + 9) is None
    assert tree.names.remove(DIR, b"kept", NOW + 9, NOW + 9) == tree.entry(b"kept")
    assert set(await check(tree)) == {b"changed", b"kept"}


@pytest.mark.parametrize("asked", ["before", "at", "after"])
async def test_once_settled_only_what_was_asked_for_later_counts(tree: Tree, asked: str) -> None:
    await tree.list([file(b"changed"), file(b"removed"), file(b"kept")], NOW)
    settled_s = tree.now_s
    for name in (b"changed", b"removed", b"kept"):
        tree.names.hold(DIR, name)
    tree.names.erase(DIR, b"removed")
    for name in (b"changed", b"removed", b"kept"):
        tree.names.settle(DIR, name)
        assert not tree.names.is_held(DIR, name)
    tree.now_s += 10
    at_s = settled_s + {"before": -1, "at": 0, "after": 1}[asked]
    changes = await tree.list([file(b"changed", "v2"), file(b"removed")], at_s)
    shown = {name: entry.version for name, entry in (await check(tree)).items()}
    if asked == "after":
        assert shown == {b"changed": "v2", b"removed": "v1"}
        assert sorted(changes.names) == [b"changed", b"kept"]
    else:
        assert shown == {b"changed": "v1", b"kept": "v1"}
        assert not changes.names


async def test_settling_what_is_not_held_does_nothing(tree: Tree) -> None:
    tree.names.settle(DIR, b"a")
    assert (await tree.list([file(b"a")], NOW)).names == []
    assert set(await tree.shown()) == {b"a"}


def nowhere(inode: bytes) -> None:
    return None


def test_settled_names_are_remembered_for_a_while_and_boundedly(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = NOW
    names = HeldNames(lambda: now_s)
    keys = [U64.pack(number // 5 + 1) + b"%d" % number for number in range(200)]
    names.hold(keys[0])
    for key in keys[1:10]:
        names.hold(key)
        names.settle(key, nowhere)
    names.hold(keys[3])
    assert names.ignores(keys[5], NOW)
    now_s += module.REMEMBERED_S + 1
    names.hold(keys[10])
    names.settle(keys[10], nowhere)
    assert len(names) == 3, "held, held again, and the one just settled"
    assert names.holds(keys[0])
    assert names.holds(keys[3])
    assert not names.ignores(keys[5], NOW)
    monkeypatch.setattr(module, "REMEMBERED", 5)
    for key in keys[100:]:
        names.hold(key)
        names.settle(key, nowhere)
    assert len(names) <= 2 + 5
    assert names.ignores(keys[199], now_s)
    names.settle(keys[0], nowhere)
    names.settle(keys[3], nowhere)
    assert not names.directories(nowhere)


def test_a_time_to_come_counts_for_nothing() -> None:
    """The clock was set back after a name was settled."""
    now_s = NOW
    names = HeldNames(lambda: now_s)
    key = U64.pack(DIR) + b"a"
    names.hold(key)
    names.settle(key, nowhere)
    now_s -= 1000
    assert not names.ignores(key, now_s)
    names.hold(key)
    assert names.ignores(key, now_s)


@pytest.mark.parametrize("way", ["gone in a listing", "gone", "a file in a listing", "a file"])
async def test_a_directory_stays_while_a_name_below_it_is_held(tree: Tree, way: str) -> None:
    """Another client has removed it while a file in it is written here."""
    top, below = await tree.grow("a/b", 3, NOW)
    await tree.grow("c", 3, NOW)
    tree.names.hold(below, b"new")
    new = create(tree, b"new", parent=below).inode
    tree.names.hold(below, b"1")
    tree.names.erase(below, b"1")

    async def told() -> None:
        tree.now_s += 10
        at_s = tree.now_s - 5
        if way == "gone in a listing":
            await tree.list([], at_s)
        elif way == "a file in a listing":
            await tree.list([file(b"a")], at_s)
        elif way == "gone":
            tree.names.remove(DIR, b"a", at_s, tree.now_s)
        else:
            tree.names.assign(DIR, b"a", file(b"a"), at_s, None, tree.now_s)
        await tree.store.flush()

    for _ in range(2):
        await told()
        assert tree.entry(b"a").inode == top
        assert tree.names.locate(below) == (top, b"b")
        assert tree.entry(b"new", below).inode == new
        tree.names.settle(below, b"1")
    if "listing" in way:
        assert b"c" not in await tree.shown(), "what has nothing held below it goes"
        await tree.purge()
    tree.names.settle(below, b"new")
    tree.now_s += 1
    asked_before = tree.now_s - 2
    assert tree.names.remove(DIR, b"a", asked_before, tree.now_s) == tree.entry(b"a"), "as asked for before"
    await told()
    assert tree.names.locate(top) is None
    await tree.purge()
    await check(tree)
    assert tree.names.locate(new) is None


async def test_what_is_made_here_replaces_what_had_the_name(tree: Tree) -> None:
    (old,) = await tree.grow("a", 3, NOW)
    attributes = Attributes(mode=0o640, atime_ns=1, ctime_ns=2, xattrs={"user.a": b"\0x"})
    made = tree.names.create(DIR, b"a", Kind.FILE, attributes=attributes, size=3, version="v", mtime_ns=7, checked_s=NOW)
    assert made.inode > old
    assert tree.names.locate(old) is None
    assert tree.names.former_name(old) == b"a"
    await tree.store.flush()
    tree.names._forget_decoded()
    assert tree.entry(b"a") == Entry(made.inode, Kind.FILE, 3, "v", 7, NOW, made.listing, attributes, -NOW)
    await tree.purge()
    assert set(await check(tree)) == {b"a"}


async def test_a_removed_directory_takes_along_what_was_below_it(tree: Tree) -> None:
    (top,) = await tree.grow("a", 3, NOW)
    tree.names.erase(DIR, b"a")
    tree.names.erase(DIR, b"never was")
    assert tree.names.get(DIR, b"a") is None
    assert tree.names.former_name(top) == b"a"
    await tree.store.flush()
    await tree.purge()
    assert await check(tree) == {}
    assert not tree.rows(Table.NAMES)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("target", ["none", "file", "directory"])
async def test_a_moved_directory_keeps_its_number_and_what_is_below(tree: Tree, committed: bool, target: str) -> None:
    top, below = await tree.grow("a/b", 3, NOW)
    create(tree, b"new", parent=below)
    other = create(tree, b"other", Kind.DIRECTORY).inode
    replaced = None
    if target != "none":
        replaced = create(tree, b"z", Kind.FILE if target == "file" else Kind.DIRECTORY, parent=other).inode
    children = {b"0", b"1", b"2", b"new"}
    if committed:
        await tree.store.flush()
    for name in (b"b", b"z"):
        tree.names.hold(top if name == b"b" else other, name)
    assert tree.names.move(top, b"b", other, b"z").inode == below
    assert tree.names.get(top, b"b") is None
    assert tree.names.locate(below) == (other, b"z")
    assert tree.names.former_name(below) is None
    if replaced is not None:
        assert tree.names.locate(replaced) is None
        assert tree.names.former_name(replaced) == b"z"
    await tree.list([file(b"0"), directory(b"b")], tree.now_s, into=top)
    await tree.list([], tree.now_s, into=other)
    await check(tree)
    assert {name for name, _ in tree.names.after(below, b"", 10)} == children
    assert tree.entry(b"z", other).inode == below
    assert [name for name, _ in tree.names.after(top, b"", 10)] == [b"0"]
    await tree.purge()
    await check(tree)
    assert {name for name, _ in tree.names.after(below, b"", 10)} == children


async def test_a_name_can_be_moved_onto_itself_but_not_from_nowhere(tree: Tree) -> None:
    made = create(tree, b"a")
    assert tree.names.move(DIR, b"a", DIR, b"a") is made
    with pytest.raises(KeyError):
        tree.names.move(DIR, b"b", DIR, b"a")
    assert set(await check(tree)) == {b"a"}


async def test_two_names_can_be_exchanged_by_three_moves(tree: Tree) -> None:
    a, b = create(tree, b"a").inode, create(tree, b"b", Kind.DIRECTORY).inode
    await tree.store.flush()
    tree.names.move(DIR, b"a", DIR, b"tmp")
    tree.names.move(DIR, b"b", DIR, b"a")
    tree.names.move(DIR, b"tmp", DIR, b"b")
    assert {name: entry.inode for name, entry in (await check(tree)).items()} == {b"a": b, b"b": a}


async def test_a_directory_made_here_is_known_to_be_empty(tree: Tree) -> None:
    made = create(tree, b"d", Kind.DIRECTORY).inode
    before = tree.names.listings.begin(DIR)
    tree.names.listings.note_empty(made)
    listing = tree.names.listings.of(made)
    assert listing is not None
    assert (listing.fetched_s, listing.entries) == (tree.now_s, 0)
    assert listing.serial > before
    assert tree.names.listings.begin(made) > listing.serial


async def test_what_is_changed_shows_in_listings_before_it_is_committed(tree: Tree) -> None:
    names = [b"%02d" % number for number in range(50)]
    await tree.list([file(name) for name in names], NOW)
    for name in names[:20]:
        tree.names.erase(DIR, name)
    tree.names.move(DIR, b"20", DIR, b"99")
    moved_to = tree.entry(b"30")
    moved_to.size = 77
    tree.names.put(DIR, b"30", moved_to)
    create(tree, b"98")
    create(tree, b"29a")
    create(tree, b"9", parent=moved_to.inode)
    assert [name for name, _ in tree.names.after(DIR, b"", 5)] == names[21:26], "removed ones must not count"
    assert [name for name, _ in tree.names.after(DIR, b"29", 2)] == [b"29a", b"30"]
    assert dict(tree.names.after(DIR, b"29a", 1))[b"30"].size == 77
    expected = [*names[21:30], b"29a", *names[30:], b"98", b"99"]
    assert [name for name, _ in tree.names.after(DIR, b"", 100)] == expected
    await tree.store.flush()
    assert [name for name, _ in tree.names.after(DIR, b"", 100)] == expected


@pytest.mark.parametrize("seed", range(20))
async def test_listings_are_the_same_whatever_is_committed(tree: Tree, seed: int) -> None:
    """Names are made, changed and removed; now and then some are committed, or a commit fails."""
    rng = random.Random(seed)
    expected: dict[bytes, int] = {}
    commit = tree.store._commit

    def fail(*_: object) -> None:
        raise OSError(28, "no space")

    for _ in range(200):
        name = b"%02d" % rng.randrange(40)
        action = rng.choice(["create", "create", "erase", "put", "commit", "fail"])
        if action == "create":
            expected[name] = create(tree, name).inode
        elif action == "erase":
            tree.names.erase(DIR, name)
            expected.pop(name, None)
        elif action == "put" and name in expected:
            tree.names.put(DIR, name, tree.entry(name))
        elif action == "commit" and rng.random() < 0.3:
            await tree.store.flush()
        elif action == "fail" and tree.store.uncommitted:
            tree.store._commit = fail  # type: ignore[method-assign, assignment]
            with pytest.raises(OSError, match="no space"):
                await tree.store.flush()
            tree.store._commit = commit  # type: ignore[method-assign]
        start, limit = b"%02d" % rng.randrange(40), rng.randrange(1, 50)
        found = [(name, entry.inode) for name, entry in tree.names.after(DIR, start, limit)]
        assert found == [item for item in sorted(expected.items()) if item[0] > start][:limit]


async def test_a_listing_shows_what_is_just_being_committed(tree: Tree) -> None:
    create(tree, b"a")
    create(tree, b"c")
    entered, proceed, commit = threading.Event(), threading.Event(), tree.store._commit

    def slow(*arguments: object) -> object:
        entered.set()
        proceed.wait(120)
        return commit(*arguments)  # type: ignore[arg-type]

    tree.store._commit = slow  # type: ignore[method-assign, assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.store.flush)
        await trio.to_thread.run_sync(entered.wait)
        try:
            create(tree, b"b")
            tree.names.erase(DIR, b"c")
            create(tree, b"a")
            assert [name for name, _ in tree.names.after(DIR, b"", 9)] == [b"a", b"b"]
        finally:
            proceed.set()
    assert [name for name, _ in tree.names.after(DIR, b"", 9)] == [b"a", b"b"]


async def test_a_change_that_the_index_does_not_take_is_not_made(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    await tree.list([file(b"a"), file(b"b")], NOW)
    before = {name: entry.inode for name, entry in (await tree.shown()).items()}

    def refuse(rows: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tree.store, "apply", refuse)
        calls: list[Callable[[], object]] = [
            lambda: create(tree, b"a"),
            lambda: tree.names.erase(DIR, b"a"),
            lambda: tree.names.move(DIR, b"a", DIR, b"b"),
        ]
        for call in calls:
            with pytest.raises(OSError, match="No space"):
                call()
    assert {name: entry.inode for name, entry in (await check(tree)).items()} == before


def test_rows_of_the_last_release_are_read() -> None:
    class OldAttributes(msgspec.Struct, frozen=True, array_like=True):
        mode: int | None = None
        uid: int | None = None
        gid: int | None = None
        mtime_ns: int | None = None

    class OldEntry(msgspec.Struct, array_like=True):
        inode: int
        kind: Kind
        size: int
        version: str
        mtime_ns: int
        checked_s: float
        listing: int = 0
        attributes: OldAttributes | None = None

    old = OldEntry(20, Kind.FILE, 5, "v", 6, NOW, 3, OldAttributes(0o600, 1, 2, 7))
    expected = Entry(20, Kind.FILE, 5, "v", 6, NOW, 3, Attributes(0o600, 1, 2, 7))
    assert decode_entry(msgspec.msgpack.encode(old)) == expected


@asynccontextmanager
async def half_done(tree: Tree, when: str, found: list[Found], at_s: float) -> AsyncIterator[None]:
    """A listing of `DIR` whose transaction stands still in the writer thread: at its start, or before its commit."""
    entered, proceed = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = tree.store._commit

    def commit(rows, function):
        def halted(txn):
            if when == "start":
                token.run_sync_soon(entered.set)
                assert proceed.wait(120)
            result = function(txn)
            if when == "end":
                token.run_sync_soon(entered.set)
                assert proceed.wait(120)
            return result

        tree.store._commit = real  # type: ignore[method-assign]
        return real(rows, halted)

    async with trio.open_nursery() as nursery:
        serial = tree.names.listings.begin(DIR)

        async def run() -> None:
            await tree.names.merge(DIR, serial, found, at_s)
            await tree.names.complete(DIR, serial, at_s)
            tree.names.listings.end(DIR)

        await tree.store.flush()
        tree.store._commit = commit  # type: ignore[method-assign, assignment]
        nursery.start_soon(run)
        try:
            await entered.wait()
            yield
        finally:
            proceed.set()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("when", ["start", "end"])
@pytest.mark.parametrize("change", ["create", "create over", "erase", "move", "move over", "put", "hold", "hold absent"])
async def test_a_merge_that_runs_does_not_undo_what_is_changed_meanwhile(
    tree: Tree, change: str, when: str, cached: bool
) -> None:
    await tree.list([file(b"a"), file(b"b"), directory(b"d")], NOW)
    a, b, d = (tree.entry(name).inode for name in (b"a", b"b", b"d"))
    if not cached:
        tree.names._forget_decoded()
    found = [file(b"a", "v2"), file(b"b", "v2"), file(b"d", "v2"), file(b"new")]
    expected = {}
    async with half_done(tree, when, found, NOW + 20):
        tree.now_s = NOW + 30
        for name in (b"a", b"b", b"d", b"new"):
            tree.names.hold(DIR, name)
        expected = {b"a": a, b"b": b, b"d": d}
        if change == "create":
            expected[b"new"] = create(tree, b"new").inode
        elif change == "create over":
            expected[b"a"] = create(tree, b"a").inode
        elif change == "erase":
            for name in (b"a", b"d"):
                tree.names.erase(DIR, name)
                del expected[name]
        elif change == "move":
            tree.names.move(DIR, b"d", DIR, b"new")
            expected = {b"a": a, b"b": b, b"new": d}
        elif change == "move over":
            tree.names.move(DIR, b"a", DIR, b"b")
            tree.names.move(DIR, b"d", DIR, b"a")
            expected = {b"a": d, b"b": a}
        elif change == "put":
            entry = tree.entry(b"a")
            entry.size = 99
            tree.names.put(DIR, b"a", entry)
    shown = await check(tree)
    assert {name: entry.inode for name, entry in shown.items()} == expected
    if change == "put":
        assert shown[b"a"].size == 99
    gone = {a, b, d} - set(expected.values())
    assert all(tree.names.former_name(inode) is not None for inode in gone)
    await tree.store.flush()
    if tree.rows(Table.REMOVED):
        await tree.purge()
    assert {name: entry.inode for name, entry in (await check(tree)).items()} == expected


@pytest.mark.parametrize("seed", range(8))
async def test_any_changes_during_any_listings_win(tree: Tree, seed: int) -> None:
    """A model: what was done here to a held name is what shows, whatever runs at the same time."""
    rng = random.Random(seed)
    names = [b"n%d" % number for number in range(6)]
    mine: dict[bytes, int | None] = {}

    def change() -> None:
        name, other = rng.sample(names, 2)
        for touched in (name, other):
            if not tree.names.is_held(DIR, touched):
                tree.names.hold(DIR, touched)
                entry = tree.names.get(DIR, touched)
                mine[touched] = entry.inode if entry else None
        action = rng.choice(["create", "erase", "move", "put"])
        if action == "create":
            mine[name] = create(tree, name, rng.choice([Kind.FILE, Kind.DIRECTORY])).inode
        elif action == "erase":
            tree.names.erase(DIR, name)
            mine[name] = None
        elif mine[name] is not None and action == "move":
            tree.names.move(DIR, name, DIR, other)
            mine[other], mine[name] = mine[name], None
        elif mine[name] is not None:
            tree.names.put(DIR, name, tree.entry(name))
        for touched, inode in mine.items():
            entry = tree.names.get(DIR, touched)
            assert (entry.inode if entry else None) == inode

    def listed() -> list[Found]:
        kinds = [directory, file, lambda name: file(name, f"v{rng.randrange(3)}")]
        return [rng.choice(kinds)(name) for name in names if rng.random() < 0.7]

    for _ in range(30):
        tree.now_s += 1
        if rng.random() < 0.7:
            async with half_done(tree, rng.choice(["start", "end"]), listed(), tree.now_s):
                tree.now_s += 1
                for _ in range(rng.randrange(4)):
                    change()
        else:
            change()
        if rng.random() < 0.3 and mine:
            name = rng.choice(sorted(mine))
            tree.names.settle(DIR, name)
            del mine[name]
            await tree.list(listed(), tree.now_s + 0.5)
        shown = {name: entry.inode for name, entry in (await check(tree)).items()}
        for name, inode in mine.items():
            assert shown.get(name) == inode
