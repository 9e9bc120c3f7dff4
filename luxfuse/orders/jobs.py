"""Orders that take long run as jobs of the mount, and are watched from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

import trio

POLL_S = 0.1
P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Job(Protocol[P_co]):
    """Something that runs, and ends."""

    ended: trio.Event

    def progress(self) -> P_co:
        """Return how far it is."""


async def watch(job: Job[P]) -> AsyncGenerator[P, None]:
    """Yield how far a job is until it has ended, at last as it ended."""
    while not job.ended.is_set():
        yield job.progress()
        with trio.move_on_after(POLL_S):
            await job.ended.wait()
    yield job.progress()
