"""A rename that a kill or the store interrupts, and others write under its names: what is newer stays, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.errors import LuxError, StoreRejected
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import ABSENT
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.noted import Over
from luxfuse.vfs.moves.objects import ObjectMoves
from luxfuse.vfs.recovery import moves
from tests.crash.lives import DEFAULT_MODE, Killer, Tree, User, placed, reborn, seen, tree_of
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, until

EXCHANGE = 2
OURS, UNDER, THEIRS = b"ours " * 1000, b"what was there", b"theirs"
FIXED_NS = 10**18
Act = Callable[[User], Awaitable[None]]

THEIRS_STAYS = pytest.mark.expected_logs("was written by somebody else since")


def renaming(old: str, new: str, flags: int = 0) -> Act:
    async def act(user: User) -> None:
        await user.m.fs.rename(*(await user.place(old)), *(await user.place(new)), flags)

    return act


async def killed_at(path: Path, tree: Tree, act: Act, step: str, time: int = 1) -> tuple[Killer, Options]:
    """Do something, and take a copy at a step."""
    killer, options = Killer(path / "kills", lambda s, n: (s, n) == (step, time)), Options(write_mode="async-through")
    async with mounted(path / "life", placed(tree), options) as m:
        await seen(m)
        with killer.watching(m, lambda: ([], False)):
            await act(User(m, dict(tree)))
    assert len(killer.kills) == 1, killer.times
    return killer, options


async def comes_out_as(killer: Killer, options: Options, wanted: Tree, kept: list[bytes]) -> None:
    """Recover, and compare tree, bucket and what was set aside."""
    async with reborn(killer.kills[0], options) as m:
        await all_is(m, wanted, kept)


async def all_is(m: Mount, wanted: Tree, kept: list[bytes]) -> None:
    await m.drain()
    m.clock.advance(1000)
    assert await seen(m) == wanted
    assert tree_of(m.driver) == wanted
    found = [p.read_bytes() for p in m.recovered.directory.iterdir()] if m.recovered.count() else []
    assert sorted(found) == sorted(kept)


def a_file(data: bytes) -> tuple[bytes, int]:
    return data, DEFAULT_MODE


@THEIRS_STAYS
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", ["move.committed", "move.copied"])
async def test_a_file(tmp_path: Path, there: bool, step: str) -> None:
    tree: Tree = {"a": a_file(OURS), **({"b": a_file(UNDER)} if there else {})}
    killer, options = await killed_at(tmp_path, tree, renaming("a", "b"), step)
    killer.kills[0].driver.place("b", THEIRS)
    await comes_out_as(killer, options, {"b": a_file(THEIRS)}, [OURS])


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("step", ["move.committed", "move.copied", "move.deleted"])
async def test_what_nobody_else_wrote_is_replaced_and_not_copied_again(tmp_path: Path, step: str, described: bool) -> None:
    tree: Tree = {"a": a_file(OURS), "b": a_file(UNDER)}

    async def act(user: User) -> None:
        if described:  # then it has a time of its own, by which a copy is known
            await user.chmod("a", DEFAULT_MODE)
            await user.m.drain()
        await renaming("a", "b")(user)

    killer, options = await killed_at(tmp_path, tree, act, step)
    driver = killer.kills[0].driver
    await comes_out_as(killer, options, {"b": a_file(OURS)}, [])
    assert driver.counts["copy"] == (step == "move.committed")


@pytest.mark.parametrize("over", [None, Over(None), Over(ABSENT, ((FIXED_NS, len(OURS)),))])
@pytest.mark.parametrize("step", ["move.committed", "move.copied"])
async def test_what_looks_like_the_file_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, over: Over | None
) -> None:
    """As large, and of the same time: so are files that are made with a fixed time. ``over``: noted instead."""
    driver, metadata = FakeStore(), {"mode": str(0o100000 | DEFAULT_MODE), "mtime": str(FIXED_NS // 10**9)}
    driver.place("a", OURS, metadata)
    driver.place("b", OURS[::-1], metadata)
    if over is not None:
        monkeypatch.setattr(ObjectMoves, "_over", lambda *_: over.noted())
    killer, options = Killer(tmp_path / "kills", lambda s, n: (s, n) == (step, 1)), Options(write_mode="async-through")
    async with mounted(tmp_path / "life", driver, options) as m:
        await seen(m)
        with killer.watching(m, lambda: ([], False)):
            await renaming("a", "b")(User(m, {"a": a_file(OURS), "b": a_file(OURS[::-1])}))
    await comes_out_as(killer, options, {"b": a_file(OURS)}, [])


@THEIRS_STAYS
@pytest.mark.expected_logs("cannot be finished yet, and its names")
async def test_what_is_kept_aside_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the store refuses to remove what was renamed."""
    monkeypatch.setattr(moves, "FIRST_PAUSE_S", 0.01)
    killer, options = await killed_at(tmp_path, {"a": a_file(OURS)}, renaming("a", "b"), "move.committed")
    driver = killer.kills[0].driver
    driver.place("b", THEIRS)
    driver.fail_next(3, lambda: StoreRejected("fake: 403"), "delete")
    async with reborn(killer.kills[0], options) as m:
        await until(lambda: not m.namespace.unfinished)
        assert driver.counts["delete"] > 3
        await all_is(m, {"b": a_file(THEIRS)}, [OURS])


@THEIRS_STAYS
async def test_a_file_that_is_written_between_the_look_and_the_copy(tmp_path: Path) -> None:
    tree: Tree = {"a": a_file(OURS), "b": a_file(UNDER)}
    killer, options = await killed_at(tmp_path, tree, renaming("a", "b"), "move.committed")
    driver = killer.kills[0].driver
    copy = driver.copy

    def late(source: str, target: str, **arguments: object) -> object:
        if target == "b" and driver.objects["b"][0] == UNDER:
            driver.place("b", THEIRS)
        return copy(source, target, **arguments)  # type: ignore[arg-type]

    driver.copy = late  # type: ignore[method-assign,assignment]
    await comes_out_as(killer, options, {"b": a_file(THEIRS)}, [OURS])


@THEIRS_STAYS
async def test_the_link_that_a_file_replaces(tmp_path: Path) -> None:
    tree: Tree = {"a": a_file(OURS), "b": "elsewhere"}
    killer, options = await killed_at(tmp_path, tree, renaming("a", "b"), "move.copied")
    driver = killer.kills[0].driver
    driver.place("b.rclonelink", b"theirs")
    async with reborn(killer.kills[0], options) as m:
        await m.drain()
    assert {key: what[0] for key, what in driver.objects.items()} == {"b": OURS, "b.rclonelink": b"theirs"}


@THEIRS_STAYS
@pytest.mark.parametrize(
    "step", ["move-directory.committed", "move-directory.copied-one", "move-directory.names-committed"]
)
async def test_a_directory(tmp_path: Path, step: str) -> None:
    tree: Tree = {"d": None, "d/1": a_file(OURS), "d/2": a_file(b"two")}
    killer, options = await killed_at(tmp_path, tree, renaming("d", "e"), step)
    killer.kills[0].driver.place("e/1", THEIRS)
    await comes_out_as(killer, options, {"e": None, "e/1": a_file(THEIRS), "e/2": a_file(b"two")}, [OURS])


async def test_a_directory_that_is_somebodys_data(tmp_path: Path) -> None:
    tree: Tree = {"d": None, "d/1": a_file(OURS)}
    killer, options = await killed_at(tmp_path, tree, renaming("d", "e"), "move-directory.committed")
    driver = killer.kills[0].driver
    driver.place("e/", THEIRS)
    await comes_out_as(killer, options, {"e": None, "e/1": a_file(OURS)}, [])
    assert driver.objects["e/"][0] == THEIRS


@THEIRS_STAYS
@pytest.mark.parametrize(
    ("time", "key", "wanted", "kept"),
    [
        (2, "a", {"a": THEIRS, "b": OURS}, [UNDER]),  # before the second object is copied to where the first one was
        (3, "b", {"a": UNDER, "b": THEIRS}, [OURS]),
    ],
)
async def test_an_exchange(tmp_path: Path, time: int, key: str, wanted: dict[str, bytes], kept: list[bytes]) -> None:
    tree: Tree = {"a": a_file(OURS), "b": a_file(UNDER)}
    killer, options = await killed_at(tmp_path, tree, renaming("a", "b", EXCHANGE), "exchange.committed", time)
    killer.kills[0].driver.place(key, THEIRS)
    await comes_out_as(killer, options, {name: a_file(data) for name, data in wanted.items()}, kept)


class Refusing(FakeStore):
    """Refuses one copy, before which somebody else writes."""

    refused = theirs = ""

    def copy(self, source: str, target: str, **arguments: object) -> object:  # type: ignore[override]
        if source == self.refused:
            self.refused = ""
            self.place(self.theirs, THEIRS)
            raise StoreRejected("fake: 400")
        return super().copy(source, target, **arguments)  # type: ignore[arg-type]


@pytest.mark.expected_logs("was written by somebody else since")
@pytest.mark.parametrize(
    ("refused", "theirs", "wanted", "kept"),
    [
        ("b", "a", {"a": THEIRS, "b": UNDER}, [OURS]),  # the first one is out of the way then, and cannot come back
        ("between", "b", {"a": OURS, "b": THEIRS}, [UNDER]),
    ],
)
async def test_an_exchange_that_is_undone(
    tmp_path: Path, refused: str, theirs: str, wanted: dict[str, bytes], kept: list[bytes]
) -> None:
    driver = Refusing(objects=placed({"a": a_file(OURS), "b": a_file(UNDER)}).objects)
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        await seen(m)
        driver.theirs = theirs
        driver.refused = refused if refused != "between" else f".luxfuse-exchange-{m.journal._next_id:x}"
        with pytest.raises(LuxError):
            await m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", EXCHANGE)
        assert not driver.refused
        await all_is(m, {name: a_file(data) for name, data in wanted.items()}, kept)


@THEIRS_STAYS
@pytest.mark.expected_logs("was being written when the last run ended")
async def test_a_file_that_was_open_for_writing(tmp_path: Path) -> None:
    """What it was closed with last is not where others have written since: it is kept, and not removed."""
    tree: Tree = {"a": a_file(OURS), "b": a_file(UNDER)}

    async def act(user: User) -> None:
        handle = await user.open("a", os.O_RDWR)
        await user.m.kernel.write(user.m.fs, handle, 0, b"new")
        await user.m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        await user.m.kernel.close(user.m.fs, handle)

    killer, options = await killed_at(tmp_path, tree, act, "move-dirty.committed")
    killer.kills[0].driver.place("b", THEIRS)
    await comes_out_as(killer, options, {"b": a_file(THEIRS)}, [b"new" + OURS[3:], OURS])


async def test_copies_are_compared_by_small_pieces_and_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read for that is outside of the memory limit, and a directory may have many large files."""
    large = bytes(3 << 20)
    tree: Tree = {"d": None, **{f"d/{number}": a_file(large) for number in range(8)}}
    driver = FakeStore()
    for path, what in tree.items():
        driver.place(path if what else f"{path}/", large if what else b"")
    killer, options = Killer(tmp_path / "kills", lambda s, _: s == "move-directory.copied"), Options()
    async with mounted(tmp_path / "life", driver, options) as m:
        await seen(m)
        with killer.watching(m, lambda: ([], False)):
            await renaming("d", "e")(User(m, dict(tree)))
    reading = most = largest = 0
    read = Store.read

    async def counted(store: Store, key: str, start: int, end: int, version: str | None = None) -> object:
        nonlocal reading, most, largest
        reading += 1
        most, largest = max(most, reading), max(largest, end - start)
        try:
            return await read(store, key, start, end, version)  # type: ignore[arg-type]
        finally:
            reading -= 1

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", counted)
        async with reborn(killer.kills[0], options) as m:
            await until(lambda: not m.namespace.unfinished)
    assert (most, largest) == (2, 1 << 20)
    assert {key: what[0] for key, what in killer.kills[0].driver.objects.items()} == {
        "e/": b"",
        **{f"e/{number}": large for number in range(8)},
    }
