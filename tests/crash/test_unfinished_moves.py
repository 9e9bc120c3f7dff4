"""A rename that a kill has interrupted, while the store is away: its names wait, and all else goes on."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs import unfinished
from luxfuse.vfs.recovery import moves
from luxfuse.vfs.unfinished import Unfinished
from tests.crash.lives import DEFAULT_MODE, Kill, Killer, Tree, User, explain, in_bucket, placed, seen, tree_of
from tests.crash.test_write_matrix import CASES, NEW, OLD, QUIET, Case
from tests.support.harness import AWAY, BEGINNING_S, Mount, Options, mounted, snapshot, until

KILLS = 2
"""Of each case, drawn from those that leave a rename unfinished."""
ALWAYS = {
    "rename_over", "rename_over_and_leave_a_whiteout", "rename_a_directory_with_dirty_children",
    "exchange_dirty_files", "exchange_a_file_and_a_directory",
}  # fmt: skip
RENAMES = [
    pytest.param(c, id=c.name, marks=() if c.name in ALWAYS else pytest.mark.slow)
    for c in CASES
    if c.name.startswith(("rename", "exchange", "save"))
]

pytestmark = [AWAY, pytest.mark.expected_logs(*QUIET, "cannot be finished yet, and its names")]


def options() -> Options:
    return Options(write_mode="async-through")


def is_away(m: Mount, away: bool) -> None:
    """Let the store answer nothing, and be known for it; or everything again."""
    m.driver.flaky(float(away), 1)
    if away:
        m.store.presence.found_away(None)
    else:
        m.store.presence.answered()


async def killed(path: Path, case: Case) -> list[Kill]:
    """Do the change, and take copies at all steps of its moves."""
    driver, killer = placed({**case.tree, "beside": (b"beside", DEFAULT_MODE)}), Killer(path / "kills")
    killer.wanted = lambda step, _: step.startswith(("move", "exchange"))
    async with mounted(path / "life", driver, options()) as m:
        user = User(m, dict(await seen(m)))
        if case.before is not None:
            await case.before(user)
        with killer.watching(m, lambda: (user.states, user.unclosed)):
            await case.act(user)
    return killer.kills


async def is_said_or_waits(m: Mount, name: bytes) -> None:
    try:
        await m.fs.lookup(ROOT_INODE, name)
    except Unfinished:
        return
    except LuxError:
        assert not m.namespace.unfinished.covers(ROOT_INODE, name)
        return
    assert not m.namespace.unfinished.covers(ROOT_INODE, name)


async def goes_on(m: Mount) -> None:
    """Use the tree while the store is away."""
    with trio.fail_after(60):
        for name in m.names.after(ROOT_INODE, b"", 100):
            await is_said_or_waits(m, name[0])
        assert await m.read_all("beside") == b"beside"
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"fresh")
        await m.kernel.write(m.fs, handle, 0, NEW)
        await m.kernel.close(m.fs, handle)


async def comes_out_right(m: Mount, kill: Kill, *, fresh: bool = False) -> None:
    """The store answers again: everything is as after any other kill."""
    await until(lambda: not m.namespace.unfinished)
    m.clock.advance(1)
    found = await seen(m)
    states: list[Tree] = [{**state, "fresh": (NEW, DEFAULT_MODE)} if fresh else state for state in kill.states]
    assert found in states, explain(f"the tree after {kill.step}", found, states)
    await m.drain()
    assert tree_of(m.driver) == in_bucket(found), kill.step
    m.clock.advance(1000)
    assert await seen(m) == found, kill.step
    assert not m.journal.operations


@pytest.mark.parametrize("case", RENAMES)
async def test_a_mount_without_the_store(tmp_path: Path, case: Case) -> None:
    kills = [kill for kill in await killed(tmp_path, case) if os.listdir(kill.path)]
    random.Random(case.name).shuffle(kills)
    o, waited = options(), 0
    o.beginning_s = BEGINNING_S + 10
    for kill in kills:
        o.on_built = lambda m: is_away(m, True) if m.journal.operations else None
        async with mounted(kill.path, kill.driver, o) as m:
            if not m.journal.operations:
                continue
            waited += 1
            assert m.namespace.unfinished
            await goes_on(m)
            again = snapshot(m, kill.path / "again")
            is_away(m, False)
            await comes_out_right(m, kill, fresh=True)
        again.flaky(0, 0)
        o.on_built = None
        async with mounted(kill.path / "again", again, o) as m:  # killed once more, before the store was back
            await comes_out_right(m, kill, fresh=True)
        if waited == KILLS:
            break
    assert waited == KILLS or case.name not in ALWAYS


@pytest.mark.expected_logs("was being written when the last run ended")
async def test_what_was_renamed_while_it_was_written_to(tmp_path: Path) -> None:
    """It was never closed: the name gets the content that was closed last, once the store has moved that."""
    driver = placed({"a": (OLD, DEFAULT_MODE), "beside": (b"beside", DEFAULT_MODE)})
    async with mounted(tmp_path / "life", driver, options()) as m:
        await seen(m)
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_RDWR)
        await m.kernel.write(m.fs, handle, 0, NEW)
        await m.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        await m.kernel.close(m.fs, handle)
    o = options()
    o.beginning_s, o.on_built = BEGINNING_S + 10, lambda m: is_away(m, True)
    async with mounted(tmp_path / "killed", killed, o) as m:
        for name in (b"a", b"b"):
            with pytest.raises(Unfinished):
                await m.fs.lookup(ROOT_INODE, name)
        assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [NEW]
        is_away(m, False)
        await comes_out_right(
            m, Kill("", tmp_path, killed, [{"b": (OLD, DEFAULT_MODE), "beside": (b"beside", 0o644)}], True)
        )


async def test_what_asks_for_a_name_has_the_rename_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try by itself may be a minute away, though the store has long been well again."""
    case = next(case for case in CASES if case.name == "rename_over")
    kill = next(kill for kill in await killed(tmp_path, case) if kill.step.startswith("move.committed"))
    monkeypatch.setattr(moves, "FIRST_PAUSE_S", moves.LONGEST_OUTAGE_RETRY_S)
    monkeypatch.setattr(unfinished, "HURRY_S", 1000.0)
    o = options()
    o.beginning_s, o.on_built = BEGINNING_S + 10, lambda m: is_away(m, True)
    async with mounted(kill.path, kill.driver, o) as m:
        with pytest.raises(Unfinished):
            await m.fs.lookup(ROOT_INODE, b"b")
        m.store.presence.on_back.clear()
        is_away(m, False)
        monkeypatch.setattr(unfinished, "HURRY_S", 0.0)
        await m.fs.lookup(ROOT_INODE, b"b")
        await comes_out_right(m, kill)


async def test_a_store_that_is_back_while_a_try_fails_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.name == "rename_over")
    kill = next(kill for kill in await killed(tmp_path, case) if kill.step.startswith("move.committed"))
    for name in ("FIRST_PAUSE_S", "URGENT_RETRY_S", "LONGEST_OUTAGE_RETRY_S"):
        monkeypatch.setattr(moves, name, 1000.0)
    real, tries = moves.MovedObjects.make, 0

    async def make(self: moves.MovedObjects, *arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries > 1:
            return await real(self, *arguments)
        for told in self._store.presence.on_back:
            told()
        raise StoreUnavailable("it was asked before it was back")

    monkeypatch.setattr(moves.MovedObjects, "make", make)
    o = options()
    o.beginning_s = BEGINNING_S + 10
    async with mounted(kill.path, kill.driver, o) as m:
        await comes_out_right(m, kill)
    assert tries == 2
