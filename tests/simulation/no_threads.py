"""Threads that are none: what would run in one runs at once, in the event loop, and its end is told some turns later. How
many is drawn from a seed, so a run is the same each time, and costs no switches between threads.

Time is virtual, too: it goes on where all wait. Logs and reserves of files are small, as each life makes and copies them.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import outcome
import pytest
import trio
import trio.testing

from luxfuse import workers
from luxfuse.index import growth, journal_log

T = TypeVar("T")
MOST_TURNS = 3
SMALL_BYTES = 64 << 10


class NoThreads:
    """Starts what is to run in threads."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"turns {seed}")

    def start(self, function: Callable[[], Any], deliver: Callable[[Any], object], _name: str | None = None) -> None:
        """As `trio.lowlevel.start_thread_soon`."""
        result = outcome.capture(function)
        self._later(trio.lowlevel.current_trio_token(), self._rng.randrange(MOST_TURNS), lambda: deliver(result))

    def submit(
        self, job: workers.Job, done: workers.Done, _size_bytes: int,
        _seconds: Sequence[float] | None = None, *, later: bool = False,
    ) -> None:  # fmt: skip
        """As `Workers.submit`."""

        def deliver(result: Any) -> None:
            if isinstance(result, outcome.Error):
                done(None, result.error)
            else:
                done(result.value, None)

        self.start(job, deliver)

    async def run_sync(
        self, function: Callable[..., T], *arguments: Any, abandon_on_cancel: bool = False, limiter: object = None
    ) -> T:
        """As `trio.to_thread.run_sync`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        result = outcome.capture(function, *arguments)
        for _ in range(self._rng.randrange(MOST_TURNS)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return result.unwrap()

    def _later(self, token: trio.lowlevel.TrioToken, turns: int, call: Callable[[], object]) -> None:
        if turns:
            token.run_sync_soon(self._later, token, turns - 1, call)
        else:
            token.run_sync_soon(call)


@contextmanager
def without_threads(seed: int) -> Iterator[None]:
    """Let nothing run in threads for the block."""
    none = NoThreads(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trio.lowlevel.start_thread_soon", none.start)
        patch.setattr("trio._threads.start_thread_soon", none.start)
        patch.setattr("trio.to_thread.run_sync", none.run_sync)
        patch.setattr(workers.Workers, "submit", none.submit)
        patch.setattr(journal_log, "LOG_BYTES", SMALL_BYTES)
        patch.setattr(growth, "STEP_BYTES", SMALL_BYTES)
        yield


def run(seed: int, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run a simulation in virtual time."""
    with without_threads(seed):
        return trio.run(function, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))
