"""Exchanges of names that the store fails in the middle of: undone at once, later, or finished by a restart."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError, StoreRejected, StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.moves import taking_back
from tests.crash.lives import Late, Tree, User, hasty, moved, placed, seen, tree_of
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, Options, mounted, snapshot, until

BEFORE: Tree = {
    "a": (b"a" * 5000, 0o644), "b": (b"b" * 3000, 0o755), "d": None, "d/1": (b"1", 0o644), "d/2": (b"2" * 700, 0o600),
    "e": None, "e/3": (b"3", 0o644),
}  # fmt: skip
EXCHANGES = pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", "d"), ("d", "a"), ("d", "e")])
FAILING = 12
"""More requests than an exchange here has."""
OPTIONS = Options(write_mode="async-through")


class Faulty(FakeStore):
    """Once it is ``armed``, it refuses requests that change something, from one on, and as many as are said."""

    armed = False
    passing = failing = 0

    def _request(self, kind: str) -> None:
        super()._request(kind)
        if self.armed and kind in ("copy", "delete"):
            self.passing -= 1
            if self.passing < 0 and self.failing > 0:
                self.failing -= 1
                raise StoreRejected("fake: 400")


def faulty(passing: int, failing: int) -> Faulty:
    driver = Faulty(objects=placed(BEFORE).objects)
    driver.passing, driver.failing = passing, failing
    return driver


async def exchange(m: Mount, driver: Faulty, first: str, second: str) -> bool:
    """Whether it succeeded."""
    await seen(m)
    user, driver.armed = User(m, dict(BEFORE)), True
    try:
        await m.fs.rename(*(await user.place(first)), *(await user.place(second)), 2)
    except LuxError:
        return False
    finally:
        if not driver.failing:
            driver.armed = False
    return True


def leftovers(driver: FakeStore) -> list[str]:
    return [key for key in driver.objects if "luxfuse-exchange" in key]


@EXCHANGES
async def test_one_that_fails_once_is_undone_at_once(tmp_path: Path, first: str, second: str) -> None:
    results = []
    for passing in range(FAILING):
        driver = faulty(passing, 1)
        async with mounted(tmp_path / str(passing), driver, OPTIONS) as m:
            results.append(await exchange(m, driver, first, second))
            wanted = moved(BEFORE, first, second, exchange=True) if results[-1] else BEFORE
            assert tree_of(driver) == wanted, passing
            assert not leftovers(driver)
            assert await seen(m) == wanted, passing
            assert not m.journal.operations
    assert results[:6] == [False] * 6
    assert results[-1]


@EXCHANGES
@pytest.mark.expected_logs("and cannot be undone yet", "finishing the exchange")
async def test_one_that_cannot_be_undone_yet_is_undone_later_or_finished_by_a_restart(
    tmp_path: Path, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_back, "PAUSE_S", 0.05)
    after = moved(BEFORE, first, second, exchange=True)
    for passing in range(1, 6):
        driver = faulty(passing, 10**6)
        place = tmp_path / str(passing)
        async with mounted(place / "life", driver, OPTIONS) as m:
            assert not await exchange(m, driver, first, second)
            assert m.journal.operations
            await m.journal.commit()
            killed = snapshot(m, place / "killed")
            driver.failing = 0
            await until(lambda m=m: not m.journal.operations)
            assert tree_of(driver) == BEFORE, passing
            assert not leftovers(driver)
            assert await seen(m) == BEFORE
        async with mounted(place / "killed", killed, OPTIONS) as m:
            assert tree_of(killed) == after, passing
            assert not leftovers(killed)
            assert await seen(m) == after


@EXCHANGES
@AWAY
@pytest.mark.expected_logs("and cannot be undone yet")
async def test_while_one_cannot_be_undone_changes_of_its_names_fail_instead_of_waiting(
    tmp_path: Path, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_back, "PAUSE_S", 0.2)
    driver = faulty(1, 10**6)
    async with mounted(tmp_path, driver, OPTIONS) as m:
        assert not await exchange(m, driver, first, second)
        user = User(m, dict(BEFORE))
        places = [await user.place(path) for path in (first, second)]
        entries = [await m.fs.lookup(*place) for place in places]
        with hasty(m, 0.5), trio.fail_after(120):  # a request that takes longer than that fails as well
            await m.kernel.close(m.fs, (await m.kernel.create(m.fs, ROOT_INODE, b"ab"))[0])
            await m.fs.unlink(ROOT_INODE, b"ab")  # it only begins with the same letter
            for place, entry in zip(places, entries, strict=True):
                if not stat.S_ISDIR(entry.mode):
                    with pytest.raises(StoreUnavailable, match="cannot be undone yet"):
                        await m.fs.unlink(*place)
                with pytest.raises(StoreUnavailable, match="cannot be undone yet"):
                    await m.fs.rename(*place, ROOT_INODE, b"elsewhere", 0)
        driver.failing = 0
        await until(lambda: not m.journal.operations)
        assert await seen(m) == BEFORE
        await m.fs.rename(*places[0], ROOT_INODE, b"elsewhere", 0)


@AWAY
@pytest.mark.parametrize("kind", ["copy", "delete"])
@pytest.mark.expected_logs("and cannot be undone yet")
async def test_one_of_which_a_request_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It would remove, or replace, what was brought back meanwhile."""
    monkeypatch.setattr(taking_back, "PAUSE_S", 0.02)
    driver = Late(objects=placed(BEFORE).objects)
    async with mounted(tmp_path, driver, OPTIONS) as m:
        await seen(m)
        user, driver.kind = User(m, dict(BEFORE)), kind
        with hasty(m, 0.5), pytest.raises(StoreUnavailable):
            await m.fs.rename(*(await user.place("a")), *(await user.place("b")), 2)
        await trio.sleep(0.2)  # several tries to undo it
        assert m.journal.operations
        driver.gate.set()
        await until(lambda: not m.journal.operations)
        assert tree_of(driver) == BEFORE
        assert not leftovers(driver)
        assert await seen(m) == BEFORE
