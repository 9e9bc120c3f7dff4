"""What the kernel is told to forget, and what it is given, without one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from luxfuse.cache.descriptors import NoDescriptors
from luxfuse.fuse import kernel as module
from luxfuse.fuse.inheritance import Inheritance, Slot
from luxfuse.fuse.kernel import KernelSide


class Told:
    """Stands in for the call that tells the kernel; holds it until released."""

    def __init__(self) -> None:
        self.names: list[tuple[int, bytes | None]] = []
        self.may_go = threading.Event()

    def __call__(self, batch: list[tuple[int, bytes | None]]) -> None:
        assert self.may_go.wait(120)
        self.names += batch


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(module, "_invalidate", told)
    return told


async def settled(side: KernelSide, meanwhile: Callable[[], None], names: int) -> bool:
    for number in range(names):
        side.invalidate_entry(1, b"%d" % number)
    results = []

    async def settle() -> None:
        results.append(await side.forgotten())

    async with trio.open_nursery() as background:
        background.start_soon(side.invalidate)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(settle)
            await wait_all_tasks_blocked(0.01)
            assert not results, "it did not wait"
            meanwhile()
        background.cancel_scope.cancel()
    return results[0]


async def test_settling_waits_for_what_was_queued_before(told: Told) -> None:
    side = KernelSide()
    assert await side.forgotten(), "there is nothing to wait for"
    assert await settled(side, told.may_go.set, 1000)
    assert told.names == [(1, b"%d" % number) for number in range(1000)]
    assert await side.forgotten()


async def test_inodes_are_forgotten_in_turn_with_names(told: Told) -> None:
    side = KernelSide()
    side.invalidate_inode(7)
    assert await settled(side, told.may_go.set, 1)
    assert told.names == [(7, None), (1, b"0")]


async def test_names_that_were_dropped_are_not_waited_for(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INVALIDATIONS_BOUND", 10)
    side = KernelSide()
    assert await settled(side, told.may_go.set, 25)
    assert told.names == [(1, b"%d" % number) for number in range(15, 25)]


async def test_settling_ends_at_its_deadline(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_DEADLINE_S", 0.05)
    side = KernelSide()
    side.invalidate_entry(1, b"a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.invalidate)
        assert not await side.forgotten()
        told.may_go.set()
        assert await side.forgotten()
        nursery.cancel_scope.cancel()


def test_an_inode_that_is_registered_stays_so(tmp_path: Path, expected_logs: list[str]) -> None:
    expected_logs.append("a mistake in luxfuse: inode .* was to be registered twice")
    side, inode = KernelSide(), 1 << 41
    side.serves_bytes = True
    with (tmp_path / "file").open("wb+") as file:
        assert side.register(inode, file.fileno(), 0, 60)
        assert not side.register(inode, file.fileno(), 0, 60)
    assert side.is_registered(inode)
    assert side.retire(inode, only_idle=True)


@pytest.mark.expected_logs("no descriptors are left")
def test_a_lack_of_descriptors_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    side = KernelSide()
    side.serves_bytes = True
    monkeypatch.setattr(module.passthrough, "register", fail)
    monkeypatch.setattr(module.passthrough, "lend", fail)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for inode in range(5):
        assert not side.register(inode, fd, 0, 1.0)
        with pytest.raises(NoDescriptors):
            side.lend(inode, fd)
    os.close(fd)
    assert len(caplog.messages) <= 1


def test_what_nobody_takes_over_is_closed_and_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    closed: list[int] = []
    slots = {inode: Slot(inode + 10, inode, inode + 20, 1, opens, 0) for inode, opens in ((1, 0), (2, 1), (3, 1), (4, 1))}
    side = KernelSide(Inheritance(slots=slots, passed_over=(Slot(19, 2, 29, 1, 0, 0),)))
    monkeypatch.setattr(module.passthrough, "give_back", given.append)
    monkeypatch.setattr(side, "_close", closed.append)
    side.disinherit(3)
    assert not given, "the device is not known yet"
    side.end_inheritance()
    assert (sorted(given), sorted(closed)) == ([11, 13, 19], [21, 23, 29])
    for _ in range(2):  # of a volume that is attached later, fails, and is tried again
        side.disinherit(4)
        assert not side.inherit(4, -1, 0, retired=True)
    side.end_inheritance()
    assert (given[3:], closed[3:]) == ([14], [24])


def test_an_inode_that_cannot_be_taken_over_is_given_back(
    monkeypatch: pytest.MonkeyPatch, expected_logs: list[str]
) -> None:
    expected_logs += ["inode 2, which is open, cannot be taken over: Cannot allocate memory"]

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    given: list[int] = []
    side = KernelSide(Inheritance(slots={2: Slot(12, 2, 0, 1, 1, 0)}))
    monkeypatch.setattr(module.passthrough, "inherit", refuse)
    monkeypatch.setattr(module.passthrough, "give_back", given.append)
    assert not side.inherit(2, -1, 0, retired=True)
    side.end_inheritance()
    assert given == [12]
