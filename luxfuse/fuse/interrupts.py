"""Requests whose caller is to end: they are answered with EINTR, instead of when the store has answered.

The kernel tells once of each request whose caller has a signal (``FUSE_INTERRUPT``). libfuse and pyfuse3 do nothing with
it, so a lane notes the request's number. A handler knows its own number: pyfuse3 takes a request and runs its handler up to
the first wait without anything in between.

Whether the signal is a reason to give the request up is for `core.signals` to say, from ``/proc``; as long as it is none,
the thread is looked at again, because the kernel says nothing of a second one. A process that is killed closes its files
on its way out, where it has no signals any more: so callers that wait in a FLUSH are looked at as well.

Work that a request has begun for others, or that cannot be left half done, goes on: it runs in another task, or in a
shielded scope.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from luxfuse.core.signals import is_to_end, was_killed
from luxfuse.errors import LuxError
from luxfuse.fuse.lowlevel import passthrough

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

POLL_S = 0.1
"""How often callers are looked at again."""
LOOKED_AT = 64
"""So many at a time: it takes up to 100 us for each."""
EARLY_KEPT = 8192
"""Interrupts remembered whose requests are still in the queue; others have been answered meanwhile."""


class Interrupted(LuxError):
    """The caller is to end."""

    errno = 4  # EINTR


class TimedOut(LuxError):
    """Nothing can come of the request any more."""

    errno = 110  # ETIMEDOUT


class _Request:
    """A handler's run, which can be given up: a context manager, as a generator costs as much again."""

    __slots__ = ("_interrupts", "closing", "scope", "task", "thread", "timed_out", "unique")

    def __init__(self, interrupts: Interrupts, unique: int, thread: int, *, closing: bool) -> None:
        self._interrupts = interrupts
        self.unique = unique
        self.thread = thread
        self.closing = closing
        self.scope = trio.CancelScope()
        self.task = trio.lowlevel.current_task()
        self.timed_out = False

    def __enter__(self) -> None:
        self.scope.__enter__()
        self._interrupts.began(self)

    def __exit__(self, *exception: Any) -> bool | None:
        self._interrupts.ended(self)
        return self.scope.__exit__(*exception)


def _is_to_end(thread: int, *, closing: bool) -> bool:
    """Whether a thread is to end; False where that cannot be seen, as in another process namespace."""
    try:
        if is_to_end(Path(f"/proc/{thread}/status").read_text()):
            return True
        return closing and was_killed(Path(f"/proc/{thread}/stat").read_text())
    except (OSError, ValueError):
        return False


class Interrupts:
    """The requests of one mount that can be given up."""

    def __init__(self, is_to_end: Callable[..., bool] = _is_to_end) -> None:
        self._is_to_end = is_to_end
        self._waiting: dict[int, _Request] = {}
        self._early: OrderedDict[int, None] = OrderedDict()
        self._watched: dict[int, _Request] = {}
        self._wanted = trio.Event()

    async def run_handler(self, handler: Callable[[], Awaitable[Any]], *, closing: bool) -> Any:
        """Return the answer of a handler; no wait may come before it. ``closing``: as `closing`.

        Raises `Interrupted`, `TimedOut`.
        """
        unique, thread = passthrough.current()
        if not unique or not thread:
            return await handler()
        request = _Request(self, unique, thread, closing=closing)
        with request:
            return await handler()
        raise TimedOut("it took too long") if request.timed_out else Interrupted("the caller is to end")

    def began(self, request: _Request) -> None:
        """A handler runs."""
        self._waiting[request.unique] = request
        if self._early and self._early.pop(request.unique, self) is None:
            self._look(request)
        elif request.closing:
            self._watch(request)

    def ended(self, request: _Request) -> None:
        """A handler has run."""
        self._waiting.pop(request.unique, None)
        self._watched.pop(request.unique, None)

    def time_out(self, task: trio.lowlevel.Task) -> None:
        """End the request that a task handles, if it can be given up."""
        for request in self._waiting.values():
            if request.task is task:
                request.timed_out = True
                request.scope.cancel()

    def signalled(self, unique: int) -> None:
        """The caller of a request has a signal."""
        request = self._waiting.get(unique)
        if request is not None:
            self._look(request)
            return
        self._early[unique] = None
        if len(self._early) > EARLY_KEPT:
            self._early.popitem(last=False)

    def _look(self, request: _Request) -> None:
        if self._is_to_end(request.thread, closing=request.closing):
            request.scope.cancel()
        else:
            self._watch(request)

    def _watch(self, request: _Request) -> None:
        self._watched[request.unique] = request
        self._wanted.set()

    async def run(self) -> None:
        """Listen to the kernel, until cancelled."""
        events_fd = passthrough.interrupts()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_again)
            while True:
                await trio.lowlevel.wait_readable(events_fd)
                for unique in passthrough.take_interrupted():
                    self.signalled(unique)

    async def _look_again(self) -> None:
        while True:
            await self._wanted.wait()
            while self._watched:
                await trio.sleep(POLL_S)
                for unique in list(islice(self._watched, LOOKED_AT)):
                    self._look(self._watched.pop(unique))  # which puts it behind the others
            self._wanted = trio.Event()


class Interruptible(Protocol):
    """A class with handlers as methods."""

    interrupts: Interrupts


def interruptible(handler: F) -> F:
    """End a handler that waits when its caller is to end. Below `guarded`: it raises `Interrupted`."""

    @functools.wraps(handler)
    async def wrapper(self: Interruptible, *args: Any, **kwargs: Any) -> Any:
        return await self.interrupts.run_handler(functools.partial(handler, self, *args, **kwargs), closing=False)

    return wrapper  # type: ignore[return-value]


def closing(handler: F) -> F:
    """As `interruptible`, for requests that a process makes on its way out, too."""

    @functools.wraps(handler)
    async def wrapper(self: Interruptible, *args: Any, **kwargs: Any) -> Any:
        return await self.interrupts.run_handler(functools.partial(handler, self, *args, **kwargs), closing=True)

    return wrapper  # type: ignore[return-value]
