"""The backlogs of several volumes, as one."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from pathlib import Path

import pytest

from luxfuse.errors import AccessDenied
from luxfuse.orders.backlog import Backlog, Progress
from luxfuse.orders.backlogs import Backlogs
from luxfuse.types import WriteMode
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted
from tests.unit.orders.test_backlog import backlog_of, last, make

ASYNC = WriteMode.ASYNC_THROUGH


@pytest.fixture(autouse=True)
def _failures_are_logged(expected_logs: list[str]) -> None:
    expected_logs.append("cannot be brought to the under-store yet")


def both(outer: Mount, inner: Mount) -> Backlogs:
    members = [("", backlog_of(outer)), ("d/m", backlog_of(inner))]
    return Backlogs(lambda: members)


async def test_counts_drains_and_persists_all(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    stores = FakeStore(), FakeStore()
    async with (
        mounted(tmp_path / "outer", stores[0], write_mode=ASYNC) as outer,
        mounted(tmp_path / "inner", stores[1], write_mode=ASYNC) as inner,
    ):
        backlogs = both(outer, inner)
        await make(outer, "a", b"1")
        await make(inner, "b", b"22")
        await make(inner, "c", b"333")
        tally = backlogs.tally()
        assert (tally.files, tally.bytes, tally.due) == (3, 6, 3)
        assert tally.since_s == min(backlog_of(outer).tally().since_s or 0, backlog_of(inner).tally().since_s or 0)
        for path in ("", "d", "d/m", "d/m/b", "a"):
            assert backlogs.has_changes(path), path
        assert not backlogs.has_changes("d/m/a")
        step = await last(backlogs.drain())
        assert (step.files, step.done) == (0, True)
        assert set(stores[0].objects) == {"a"}
        assert set(stores[1].objects) == {"b", "c"}
        await make(outer, "x", b"1")
        await make(inner, "y", b"1")
        await make(inner, "z", b"1")
        await last(backlogs.persist(["d/m/y"]))
        assert "y" in stores[1].objects
        await last(backlogs.persist([""]))
        assert "x" in stores[0].objects
        assert "z" in stores[1].objects


async def test_errors_name_the_volume(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    refusing = FakeStore()
    async with (
        mounted(tmp_path / "outer", FakeStore(), write_mode=ASYNC) as outer,
        mounted(tmp_path / "inner", refusing, write_mode=ASYNC) as inner,
    ):
        backlogs = both(outer, inner)
        refusing.fail_next(1000, lambda: AccessDenied("403"), kind="put")
        await make(outer, "a", b"1")
        await make(inner, "b", b"1")
        found = []
        async with aclosing(backlogs.persist([""])) as steps:
            async for step in steps:
                found.append(step)
        assert found[-1].failures == ("d/m/b: 403",)
        assert [step.done for step in found[:-1]] == [False] * (len(found) - 1)
        error = backlogs.tally().error
        assert error is not None
        assert error.startswith("d/m: b: ")
        seen: Progress | None = None
        async with aclosing(backlogs.drain()) as drains:
            async for seen in drains:
                assert not seen.done
                if seen.error:
                    break
        assert seen is not None
        assert (seen.files, seen.error) == (1, error)
        refusing._failures.clear()


@pytest.mark.parametrize("detached", [0, 1])
async def test_what_is_detached_by_force_is_not_waited_for(tmp_path: Path, detached: int) -> None:
    """Nothing of it is brought up any more, so it would be waited for without end."""
    members: list[tuple[str, Backlog]] = []
    async with contextlib.AsyncExitStack() as stack:
        for place in ("m", "n"):
            (tmp_path / place).mkdir()
            driver = FakeStore()
            m = await stack.enter_async_context(mounted(tmp_path / place, driver, write_mode=ASYNC))
            if len(members) == detached:
                driver.hold("put", "put_file")
                stack.callback(driver.release)
            await make(m, "a", b"1")
            members.append((place, backlog_of(m)))
        stuck = members[detached][1]
        steps = []
        async with aclosing(Backlogs(lambda: members).persist([""])) as found:
            async for step in found:
                steps.append(step)
                members[:] = [each for each in members if each[1] is not stuck]
    assert [step.done for step in steps] == [*[False] * (len(steps) - 1), True]
    assert steps[-1].failures == (f"{'mn'[detached]}: it was detached meanwhile, or failed",)
