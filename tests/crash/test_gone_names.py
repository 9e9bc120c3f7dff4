"""Names that were removed or renamed just before a kill, and a next mount that cannot ask the store about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.types import WriteMode
from tests.crash.lives import DEFAULT_MODE, Tree, User, explain, in_bucket, placed, seen, tree_of
from tests.crash.test_unfinished_moves import is_away
from tests.support.harness import AWAY, BEGINNING_S, Mount, Options, mounted, snapshot

pytestmark = [AWAY, pytest.mark.expected_logs("cannot be removed yet", "could not be pushed")]

FILE, OTHER = (b"content", DEFAULT_MODE), (b"other", DEFAULT_MODE)
STORED: Tree = {"stored": FILE, "more": OTHER, "s": None, "s/1": FILE}
Change = Callable[[User], Awaitable[None]]


async def made(u: User) -> None:
    """Make what the store does not have."""
    await u.create("a", FILE[0])
    await u.create("b", OTHER[0])
    await u.mkdir("d")
    await u.create("d/x", FILE[0])
    await u.mkdir("e")


CHANGES: dict[str, Change] = {
    "unlink": lambda u: u.unlink("a"),
    "rename": lambda u: u.rename("a", "new"),
    "rename over": lambda u: u.rename("a", "b"),
    "rename into a directory": lambda u: u.rename("a", "d/a"),
    "whiteout": lambda u: u.rename("a", "new", 4),
    "rmdir": lambda u: u.rmdir("e"),
    "stored file": lambda u: u.unlink("stored"),
}


async def again_and_again(u: User) -> None:
    """Names that go, come back, and go on."""
    await u.rename("a", "new")
    await u.rename("new", "a")
    await u.rename("a", "d/a")
    await u.unlink("b")
    await u.create("b", FILE[0])
    await u.rename("b", "last")
    await u.rename("d", "moved")
    await u.rename("moved/a", "b")


LOCAL: dict[str, Change] = {"directory": lambda u: u.rename("d", "e/d"), "again and again": again_and_again}
"""With the store away no directory is renamed."""
CASES = [*(("async-through", change) for change in CHANGES), *(("must-cache", change) for change in LOCAL)]


def options(mode: WriteMode) -> Options:
    return Options(write_mode=mode, flusher=False)


async def names_of(m: Mount) -> dict[str, int]:
    return {path: await m.inode(path) for path in await seen(m)}


@pytest.mark.parametrize(("mode", "change"), CASES)
async def test_they_stay_gone_though_the_store_cannot_be_asked(tmp_path: Path, mode: WriteMode, change: str) -> None:
    """The index had the name, and not yet that it was gone; the journal had nothing more to say of it."""
    async with mounted(tmp_path / "life", placed(STORED), options(mode)) as m:
        user = User(m, dict(await seen(m)))
        is_away(m, mode == "async-through")
        await made(user)
        await m.index.flush()
        await (CHANGES | LOCAL)[change](user)
        numbers = await names_of(m)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        is_away(m, False)
    o = options(mode)
    o.beginning_s, o.on_built = BEGINNING_S + 10, lambda m: is_away(m, True)
    async with mounted(tmp_path / "killed", killed, o) as m:
        found = await seen(m)
        assert found == user.now, explain(f"the tree after {change}", found, [user.now])
        kept = {path for path, inode in numbers.items() if await m.inode(path) == inode}
        if change in ("rename", "directory"):
            assert kept == set(numbers), "inode numbers stay"
        is_away(m, False)
        await m.drain()
        assert tree_of(m.driver) == (STORED if mode == "must-cache" else in_bucket(user.now))
        assert await seen(m) == user.now


async def test_what_the_store_has_done_just_before(tmp_path: Path) -> None:
    """Nothing is left of that in the journal, and what the index says of it is not committed."""
    async with mounted(tmp_path / "life", placed(STORED), options("cache-through")) as m:
        user = User(m, dict(await seen(m)))
        await m.index.flush()
        await user.unlink("more")
        await user.rename("stored", "new")
        await user.rename("s", "t")
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        shown = set(await names_of(m))
    o = options("cache-through")
    o.beginning_s, o.on_built = BEGINNING_S + 10, lambda m: is_away(m, True)
    async with mounted(tmp_path / "killed", killed, o) as m:
        assert {name.decode() for name, _ in m.names.after(ROOT_INODE, b"", 100)} == {
            path for path in shown if "/" not in path
        }
        is_away(m, False)
        assert await seen(m) == user.now


async def test_after_a_power_cut_the_index_lacks_its_last_commit(tmp_path: Path) -> None:
    """Its meta page is written with the commit, and synced with the next one."""
    async with mounted(tmp_path / "life", placed({}), options("must-cache")) as m:
        user = User(m, dict(await seen(m)))
        await made(user)
        await m.index.flush()
        before = snapshot(m, tmp_path / "before")
        await user.unlink("a")
        await m.index.flush()
        await user.unlink("b")
        await user.rename("d", "moved")
        await m.journal.commit()
        snapshot(m, tmp_path / "killed")
    (tmp_path / "killed" / "index").rename(tmp_path / "newer")
    (tmp_path / "before" / "index").rename(tmp_path / "killed" / "index")
    o = options("must-cache")
    o.beginning_s, o.on_built = BEGINNING_S + 10, lambda m: is_away(m, True)
    async with mounted(tmp_path / "killed", before, o) as m:
        assert await seen(m) == user.now


async def test_what_could_not_be_made_again_is_not_made_of_a_later_name(tmp_path: Path) -> None:
    """A name went twice within one commit of the index: the second time it is not there at a restart, but later it is."""
    must_cache = options("must-cache")
    async with mounted(tmp_path / "one", placed({}), must_cache) as m:
        user = User(m, dict(await seen(m)))
        await user.create("b", FILE[0])
        await m.index.flush()
        await user.unlink("b")
        await user.create("b", FILE[0])
        await user.unlink("b")
        await m.journal.commit()
        driver = snapshot(m, tmp_path / "two")
    for number, (name, after) in enumerate((("two", "three"), ("three", "four")), 1):
        o = options("must-cache")
        o.beginning_s = BEGINNING_S + 10 * number
        async with mounted(tmp_path / name, driver, o) as m:
            user = User(m, dict(await seen(m)))
            if name == "two":
                assert user.now == {}
                await user.create("b", OTHER[0])
            assert await seen(m) == {"b": OTHER}
            await m.index.flush()
            await m.journal.commit()
            driver = snapshot(m, tmp_path / after)


async def test_the_journal_does_not_fill_up_with_them(tmp_path: Path) -> None:
    """They go with further changes, once the index has them."""
    async with mounted(tmp_path / "life", placed({}), options("async-through")) as m:
        user = User(m, dict(await seen(m)))
        is_away(m, True)
        for number in range(40):
            await user.create(f"f{number}", b"x")
        await m.index.flush()
        for number in range(20):
            await user.unlink(f"f{number}")
        assert len(m.journal.names.changes) == 20
        for number in range(20, 40):
            await m.index.flush()
            await user.unlink(f"f{number}")
        assert len(m.journal.names.changes) <= 4
        for number in range(40, 80):  # which the index never had on disk
            await user.create(f"f{number}", b"x")
            await user.unlink(f"f{number}")
        assert len(m.journal.names.changes) <= 4
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        is_away(m, False)
    async with mounted(tmp_path / "killed", killed, Options(write_mode="async-through")) as m:
        assert await seen(m) == {}
