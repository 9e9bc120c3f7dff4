"""Which handlers are given up when, without a kernel: the number of each request and its caller's signals are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from luxfuse.fuse import interrupts
from luxfuse.fuse.interrupts import Interrupted, Interrupts, closing, interruptible

CALLER = 77


class Handlers:
    """Handlers that wait for an event, and note what becomes of them."""

    def __init__(self) -> None:
        self.ending = False
        self.looked = 0
        self.interrupts = Interrupts(self._is_to_end)
        self.event = trio.Event()
        self.outcomes: list[str] = []

    def _is_to_end(self, thread: int, *, closing: bool) -> bool:
        assert thread == CALLER
        self.looked += 1
        return self.ending

    @interruptible
    async def wait(self) -> str:
        """Wait in some task."""
        await self.event.wait()
        return "answer"

    @closing
    async def close(self) -> str:
        """Wait in a task that may be on its way out."""
        await self.event.wait()
        return "closed"

    async def run(self, handler: Callable[[], object]) -> None:
        """Run a handler, and note how it ends."""
        try:
            self.outcomes.append(await handler())  # type: ignore[misc]
        except Interrupted as exc:
            self.outcomes.append(f"errno {exc.errno}")


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say which request it is that begins now."""

    def set_current(unique: int) -> None:
        monkeypatch.setattr(interrupts.passthrough, "current", lambda: (unique, CALLER))

    return set_current


async def idle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_who_is_to_end_gets_eintr_and_nobody_else(begin) -> None:
    handlers = Handlers()
    async with trio.open_nursery() as nursery:
        for unique in (10, 12):
            begin(unique)
            nursery.start_soon(handlers.run, handlers.wait)
            await idle()
        handlers.ending = True
        handlers.interrupts.signalled(12)
        await idle()
        assert handlers.outcomes == ["errno 4"]
        handlers.event.set()
    assert handlers.outcomes == ["errno 4", "answer"]


async def test_a_signal_that_came_while_the_request_was_queued_counts(begin) -> None:
    handlers = Handlers()
    handlers.ending = True
    handlers.interrupts.signalled(10)
    begin(12)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.run, handlers.wait)
        await idle()
        begin(10)
        await handlers.run(handlers.wait)
        assert handlers.outcomes == ["errno 4"]
        handlers.event.set()
    begin(10)
    await handlers.run(handlers.wait)  # another one, were numbers used again
    assert handlers.outcomes == ["errno 4", "answer", "answer"]


async def test_who_has_another_signal_is_looked_at_again(begin, autojump_clock) -> None:
    handlers = Handlers()
    begin(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.interrupts._look_again)
        nursery.start_soon(handlers.run, handlers.wait)
        await trio.sleep(1)
        assert handlers.looked == 0, "nobody was signalled"
        handlers.interrupts.signalled(10)
        await trio.sleep(1)
        assert handlers.outcomes == []
        assert handlers.looked > 5
        handlers.ending = True
        await trio.sleep(1)
        assert handlers.outcomes == ["errno 4"]
        before = handlers.looked
        await trio.sleep(1)
        assert handlers.looked == before, "nobody is watched any more"
        nursery.cancel_scope.cancel()


async def test_who_closes_is_looked_at_without_a_signal(begin, autojump_clock) -> None:
    handlers = Handlers()
    begin(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.interrupts._look_again)
        nursery.start_soon(handlers.run, handlers.close)
        await trio.sleep(1)
        assert handlers.outcomes == []
        handlers.ending = True
        await trio.sleep(1)
        assert handlers.outcomes == ["errno 4"]
        nursery.cancel_scope.cancel()


async def test_nothing_is_remembered_of_what_has_ended(begin) -> None:
    handlers = Handlers()
    handlers.event.set()
    for unique in range(2, 2 * interrupts.EARLY_KEPT + 100, 2):
        begin(unique)
        await handlers.run(handlers.wait)
        handlers.interrupts.signalled(unique)
        handlers.interrupts.signalled(unique + 1_000_000)
    assert handlers.interrupts._waiting == {}
    assert handlers.interrupts._watched == {}
    assert len(handlers.interrupts._early) == interrupts.EARLY_KEPT


async def test_without_a_number_a_handler_just_runs(begin) -> None:
    handlers = Handlers()
    handlers.event.set()
    begin(0)
    await handlers.run(handlers.wait)
    assert handlers.outcomes == ["answer"]
