"""Time that goes on where the loop waits and no thread works."""

from __future__ import annotations

import threading
import time

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fake_store import FakeStore
from tests.support.harness import until
from tests.support.virtual_time import virtual_time


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


async def test_an_answer_is_waited_for_until_the_loop_has_taken_it_in(mock_clock: MockClock) -> None:
    answered = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 100)
        await trio.testing.wait_all_tasks_blocked()
        began_s = trio.current_time()
        trio.lowlevel.start_thread_soon(lambda: None, lambda _: answered.set())
        assert answered.wait(120)
        time.sleep(0.05)  # what its thread does behind that
        mock_clock._autojump()
        assert trio.current_time() == began_s
        await trio.testing.wait_all_tasks_blocked()
        mock_clock._autojump()
        assert trio.current_time() >= began_s + 100


async def test_what_is_released_does_not_hang(mock_clock: MockClock) -> None:
    """Though its thread may not have noticed yet."""
    driver = FakeStore()
    driver.place("a", b"content")
    driver.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, driver.head, "a")
        await until(lambda: FakeStore.hanging == 1)
        driver.release()
        assert FakeStore.hanging == 0
