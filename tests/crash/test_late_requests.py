"""A DELETE or COPY that was not answered in time is carried out by its thread later: it spoils nothing made since."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.vfs import writeback
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.recovery import moves
from tests.crash.lives import DEFAULT_MODE, Killer, Late, Tree, User, hasty, placed, seen, tree_of
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, Options, mounted, until
from tests.support.late_requests import given_up

OLD, NEW = b"old" * 1000, b"new" * 2000
BEFORE: Tree = {"a": (OLD, DEFAULT_MODE), "beside": (b"beside", DEFAULT_MODE)}
TIMEOUT_S = 0.3
PATIENCE_S = 1.0
"""What is not to happen gets so long for it."""

pytestmark = AWAY


def late(driver: FakeStore, kind: str) -> Late:
    found = Late(objects=driver.objects)
    found.kind = kind
    return found


def hurry(m: Mount) -> None:
    m.writeback.pace.urgent = True
    m.writeback.hurry()


async def comes_late(driver: Late) -> None:
    """Give what came after the request time to go before it, and then let that have its effect."""
    with trio.move_on_after(PATIENCE_S):
        await until(lambda: driver.objects.get("a", (b"",))[0] == NEW, 2 * PATIENCE_S)
    driver.gate.set()
    await until(driver.made.is_set)


async def test_a_name_that_is_made_anew_outlives_a_late_delete(tmp_path: Path) -> None:
    driver = late(placed(BEFORE), "delete")
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        with hasty(m, TIMEOUT_S):
            await user.unlink("a")
            hurry(m)
            await until(lambda: m.store.counters.statistics().timeouts > 0)
        await user.create("a", NEW)
        hurry(m)
        await comes_late(driver)
        await m.drain()
        assert tree_of(driver) == {**BEFORE, "a": (NEW, DEFAULT_MODE)}


@pytest.mark.expected_logs("was written by somebody else meanwhile")
async def test_a_name_that_is_made_outlives_a_late_copy_to_it(tmp_path: Path) -> None:
    driver = late(placed({"b": (OLD, DEFAULT_MODE), "beside": (b"beside", DEFAULT_MODE)}), "copy")
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        with hasty(m, TIMEOUT_S), pytest.raises(StoreUnavailable):
            await user.rename("b", "a")
        await user.create("a", NEW)
        hurry(m)
        await comes_late(driver)
        await m.drain()
        assert tree_of(driver)["a"] == (NEW, DEFAULT_MODE)


@pytest.mark.parametrize("free", [False, True])
async def test_what_a_late_copy_brought_is_removed(tmp_path: Path, free: bool) -> None:
    """It is ours, whatever its version is."""
    driver = late(placed({"b": (OLD, DEFAULT_MODE)}), "copy")
    driver.place("a" if not free else "b", OLD)
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        with hasty(m, TIMEOUT_S), pytest.raises(StoreUnavailable):
            await user.rename("b", "a")
        if not free:
            await user.unlink("a")
        hurry(m)
        await trio.sleep(PATIENCE_S / 2)
        driver.gate.set()
        await until(driver.made.is_set)
        await m.drain()
        assert set(driver.objects) == {"b"}


@pytest.mark.expected_logs("finishing the move", "cannot be finished yet")
async def test_a_rename_that_a_restart_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old name is free as soon as the rename is finished, and what is made there stays."""
    monkeypatch.setattr(moves, "FIRST_PAUSE_S", 0.02)
    first, killer = placed(BEFORE), Killer(tmp_path / "kills")
    killer.wanted = lambda step, _: step == "move.copied"
    async with mounted(tmp_path / "life", first, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        with killer.watching(m, lambda: (user.states, user.unclosed)):
            await user.rename("a", "b")
    (kill,) = killer.kills
    driver = late(kill.driver, "delete")
    o = Options(write_mode="async-through", beginning_s=30)
    o.on_built = lambda m: setattr(m.store, "_timeout_s", TIMEOUT_S)
    async with mounted(kill.path, driver, o) as m:
        m.store._timeout_s = 0.5
        user = User(m, {})
        with trio.move_on_after(PATIENCE_S):
            await until(lambda: not m.journal.operations)
        with contextlib.suppress(LuxError):  # it is not finished yet: the name waits for the next try, which is in vain
            await user.create("a", NEW)
            hurry(m)
        m.store._timeout_s = 30.0
        await comes_late(driver)
        await until(lambda: not m.journal.operations)
        if "a" not in await seen(m):
            await user.create("a", NEW)
        await m.drain()
        assert tree_of(driver) == {"a": (NEW, DEFAULT_MODE), "b": (OLD, DEFAULT_MODE), "beside": BEFORE["beside"]}


async def test_what_waits_holds_up_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "CONCURRENT_PUSHES", 1)
    driver = placed({"removed": (OLD, DEFAULT_MODE), **BEFORE})
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        late = given_up(m.store, "a", "new")
        await user.create("new", NEW)
        await user.create("another", NEW)
        await user.unlink("a")
        await user.unlink("removed")
        hurry(m)
        await until(lambda: "another" in driver.objects and "removed" not in driver.objects, 30)
        assert "a" in driver.objects
        assert "new" not in driver.objects
        late.running = False
        await m.drain()
        new = (NEW, DEFAULT_MODE)
        assert tree_of(driver) == {"another": new, "new": new, "beside": BEFORE["beside"]}


@pytest.mark.expected_logs("cannot be brought to the under-store yet")
async def test_a_disk_that_fails_does_not_end_the_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no disk")

    driver = placed(BEFORE)
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user = User(m, dict(await seen(m)))
        late = given_up(m.store, "another")
        await user.create("new", NEW)
        (dirty,) = (d for d in m.dirty if d.key == "new")
        with monkeypatch.context() as broken:
            broken.setattr(Dirty, "content_changed", fail)
            broken.setattr(Dirty, "stamp", property(fail))
            assert not m.writeback.must_wait(dirty)
            m.writeback._note_failed(dirty, StoreUnavailable("no disk"))
        late.running = False
        hurry(m)
        await until(lambda: "new" in driver.objects, 30)


@pytest.mark.expected_logs("was written by somebody else since it was removed here")
@pytest.mark.parametrize("now", [False, True])
async def test_a_removal_is_looked_at_once_it_can_be_made(tmp_path: Path, now: bool) -> None:
    driver = placed({"d/a": (OLD, DEFAULT_MODE), "d/b": (OLD, DEFAULT_MODE)})
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        user, deletes = User(m, dict(await seen(m))), m.writeback.deletes
        late = given_up(m.store, "d/a")
        await user.unlink("d/a")
        async with trio.open_nursery() as nursery:
            if now:
                nursery.start_soon(deletes.make_below, "d/")
            else:
                hurry(m)
            await until(lambda: "d/a" in deletes._waited)
            driver.place("d/a", NEW)
            late.running = False
        await until(lambda: not m.journal.deletes)
        assert driver.objects["d/a"][0] == NEW
