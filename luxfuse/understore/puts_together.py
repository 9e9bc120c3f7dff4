"""Small objects that are put at about the same time go together, in one turn of a thread, where the driver can do that.

A put costs the event loop mostly the hop to a thread, and the thread the interpreter lock. Those that begin in the same
turn of the loop share both. Each is still a write of its own: `Calls.call` makes it, with a deadline, tries and conditions
of its own, and only an attempt of it is made here. It holds a slot among all writes until it has ended, and ends when its
own request does, whatever becomes of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from luxfuse.errors import StoreError
from luxfuse.types import Buffer, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.late import Write
from luxfuse.understore.small_puts import MOST_BYTES, MOST_PUTS, PutAnswer, SmallPut, put_small, puts_small
from luxfuse.understore.statistics import RequestCounters

log = logging.getLogger(__name__)

LEAST_PUTS = 2
"""One alone costs less as usual."""

Sums = dict[int, int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that is to be put; ``read``, in a thread, returns its content and the checksums of its pages."""

    key: str
    size: int
    read: Callable[[], tuple[Buffer, Sums]]
    metadata: Mapping[str, str]
    expect: str | None


class _Attempt:
    """One attempt at one of them."""

    __slots__ = ("alone", "answer", "awaited", "ended", "failure", "sums", "wanted", "write")

    def __init__(self, wanted: Wanted, write: Write) -> None:
        self.wanted = wanted
        self.write = write
        self.ended = trio.Event()
        self.answer = PutAnswer()
        self.failure: Exception | None = None
        """Why its content cannot be read."""
        self.sums: Sums = {}
        self.awaited = True
        """Whether it is waited for: nobody else would free a slot that it keeps."""
        self.alone = False
        """Whether no other came along; then it keeps its slot."""


class Slot:
    """The slot of an attempt that goes alone, for the one call to a thread that makes it; to trio it is a limiter.

    Else it would wait for a slot again, behind all others. At the end of its block it is free if no thread was started.
    """

    def __init__(self, limiter: trio.CapacityLimiter, holder: object) -> None:
        self._limiter, self._holder = limiter, holder
        self._taken = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if not self._taken:
            self._limiter.release_on_behalf_of(self._holder)

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        """Take the slot over."""
        self._taken = True

    def release_on_behalf_of(self, _borrower: object) -> None:
        """The thread has ended."""
        self._limiter.release_on_behalf_of(self._holder)


class PutsTogether:
    """The small puts of one store."""

    def __init__(self, driver: Callable[[], UnderStore], limiter: trio.CapacityLimiter, counters: RequestCounters) -> None:
        """``limiter``: of all writes."""
        self._driver = driver
        self._limiter = limiter
        self._counters = counters
        self._gathered: list[_Attempt] = []

    def takes(self, wanted: Wanted) -> bool:
        """Whether an object may be put so."""
        return wanted.size <= MOST_BYTES and puts_small(self._driver())

    async def put(self, wanted: Wanted, write: Write) -> tuple[ObjectInfo, Sums] | Slot | None:
        """Make one attempt at an object; a slot, or None: it has to be put as usual, in that slot, or another.

        Raises `StoreError`, and what ``read`` raises.

        Cancelled, it is left to its thread as any other write (`late`).
        """
        attempt = _Attempt(wanted, write)
        await self._limiter.acquire_on_behalf_of(attempt)
        self._gathered.append(attempt)
        if len(self._gathered) == MOST_PUTS:
            self._send()
        elif len(self._gathered) == 1:  # those that begin in this turn of the loop come along
            trio.lowlevel.current_trio_token().run_sync_soon(self._send)
        try:
            await attempt.ended.wait()
        except trio.Cancelled:
            attempt.awaited = False
            if attempt.alone:
                self._limiter.release_on_behalf_of(attempt)
            raise
        if attempt.alone:
            return Slot(self._limiter, attempt)
        if attempt.failure is not None:
            raise attempt.failure
        seconds, info, error = attempt.answer
        if error is not None:
            raise error
        if info is None:
            self._counters.attempts["put"] += seconds is not None
            return None
        return info, attempt.sums

    def _send(self) -> None:
        attempts, self._gathered = self._gathered, []
        if len(attempts) < LEAST_PUTS:
            for attempt in attempts:
                attempt.alone = attempt.awaited
            self._end(attempts)
            return
        token = trio.lowlevel.current_trio_token()

        def end(ended: Sequence[_Attempt]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._end, ended)

        try:
            trio.lowlevel.start_thread_soon(lambda: _put_all(self._driver(), attempts, end), lambda _nothing: None)
        except RuntimeError:  # no thread can be started: as usual, which says so
            self._end(attempts)

    def _end(self, attempts: Sequence[_Attempt]) -> None:
        for attempt in attempts:
            if not attempt.alone:
                self._limiter.release_on_behalf_of(attempt)
            if attempt.answer.seconds is not None:
                self._counters.took("put", attempt.answer.seconds)
            attempt.ended.set()


def _put_all(driver: UnderStore, attempts: Sequence[_Attempt], end: Callable[[Sequence[_Attempt]], Any]) -> None:
    """Put them, in a thread; ``end`` is called for each of them once, with those that have ended together."""
    left = dict.fromkeys(attempts)

    def ended(some: Sequence[_Attempt]) -> None:
        for attempt in some:
            attempt.write.running = False
            del left[attempt]
        end(some)

    def tell(answers: Sequence[tuple[int, PutAnswer]]) -> None:
        for number, answer in answers:
            read[number][0].answer = answer
        ended([read[number][0] for number, _ in answers])

    try:
        read = [(attempt, put) for attempt in attempts if (put := _begin(attempt)) is not None]
        if len(read) < len(attempts):
            ended([attempt for attempt in attempts if all(attempt is not each for each, _ in read)])
        put_small(driver, [put for _, put in read], tell)
    except StoreError:
        pass  # each meets it again, as usual
    except Exception:
        log.exception("putting several objects at once failed in an unexpected way")
    finally:
        if left:
            ended(list(left))


def _begin(attempt: _Attempt) -> SmallPut | None:
    """Read what is to be put; None: it cannot be read, or nobody waits for it any more, and its file may be closed."""
    wanted = attempt.wanted
    attempt.write.running = True  # first: what gives it up looks at this
    if attempt.write.given_up:
        return None
    try:
        data, attempt.sums = wanted.read()
    except Exception as exc:  # noqa: BLE001 (it is raised where the attempt is waited for)
        attempt.failure = exc
        return None
    return SmallPut(wanted.key, data, wanted.metadata, wanted.expect)
