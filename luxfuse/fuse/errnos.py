"""The one place where the errors of a handler become errnos."""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import trio

from luxfuse import origins
from luxfuse.core.histogram import Histogram
from luxfuse.errors import LuxError, Unforeseen
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.origins import Origins

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

EXPECTED = frozenset(
    {
        *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EXDEV, errno.ENODATA),
        *(errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ERANGE, errno.EFBIG, errno.EBUSY),
        *(errno.EOPNOTSUPP, errno.ESTALE, errno.EINTR),
    }
)
"""Errors that programs provoke every day: neither counted nor logged."""
EXPECTED_OF_FILES = frozenset({errno.EOPNOTSUPP, errno.EFBIG})
"""The same for errors of the cache's own file system."""
MISTAKES = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, 0})
"""Errors that the cache's own file system gives only for mistakes of ours."""


OF_PROGRAMS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EFAULT),
        *(errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EAGAIN),
    }
)
"""Errors of the cache's own file system that say something about the call. What others say is not about the program's
file: a staging directory that is gone is no missing file (ENOENT), one that is read-only no read-only mount (EROFS)."""


UNKNOWN = -1
"""Caller of a request that began before anybody watched."""


class Running:
    """A handler that runs: ``began_s`` is by `time.perf_counter`, ``reported`` whether the log told of it."""

    __slots__ = ("_token", "at_ns", "began_s", "call", "name", "origins", "places", "reported", "task", "thread", "user")

    def __init__(self, name: str, task: trio.lowlevel.Task | None, began_s: float | None = None) -> None:
        """``task`` None: the request is answered without one."""
        self.name = name
        self.task = task
        self.began_s = time.perf_counter() if began_s is None else began_s
        self.reported = False
        self.call: Any = None
        """The handler's coroutine."""
        self.thread = self.user = UNKNOWN
        self.at_ns = 0
        """Whose request it is, and when a lane read it, 0 if that was not noted (`passthrough.caller`); see `watch`."""
        self.origins: Origins | None = None
        self.places: dict[str, float] | None = None
        """Where it has been found to wait, for how many seconds; see `Watchdog`."""

    @property
    def is_watched(self) -> bool:
        """Whether it is known whose it is, and where its bytes come from."""
        return self.thread != UNKNOWN

    @property
    def queued_s(self) -> float:
        """How long it waited before Python looked at it, as far as that is known."""
        return max(0.0, self.began_s - self.at_ns / 1e9) if self.at_ns else 0.0

    def watch(self) -> None:
        """Note whose request it is, at the beginning, and from then on where its bytes come from."""
        self.thread, self.user, self.at_ns = passthrough.caller()
        if self.task is not None:
            self.origins, self._token = origins.watch()

    def forget(self) -> None:
        """End what `watch` began."""
        if self.origins is not None:
            origins.forget(self._token)


Observer = Callable[[Running, tuple[Any, ...], Any, int], None]
"""Told of a handler that has ended, with its arguments, its result and its errno, 0 for none. It raises nothing."""


class Counting(Protocol):
    """A class with handlers as methods. ``latency`` is by handler, ``running`` has those that run now.

    ``errors`` counts unforeseen errors, ``refusals`` foreseen ones: outages, missing rights, no room, a sick disk.
    """

    errors: int
    refusals: int
    latency: dict[str, Histogram]
    running: set[Running]
    observers: list[Observer]
    read_only: bool


def observe(counting: Counting, name: str, began_s: float) -> None:
    """Count a request that is answered, and how long it took since ``began_s``, by `time.perf_counter`."""
    found = counting.latency.get(name)
    if found is None:
        found = counting.latency[name] = Histogram()
    found.observe(time.perf_counter() - began_s)


def ended(counting: Counting, name: str, began_s: float, arguments: tuple[Any, ...], code: int = 0) -> None:
    """As `observe`, of a request that was answered without a task; and tell the observers."""
    observe(counting, name, began_s)
    if counting.observers:
        running = Running(name, None, began_s)
        running.watch()
        for told in counting.observers:
            told(running, arguments, None, code)


def errno_of(counting: Counting, name: str, exc: Exception) -> int:
    """Return the answer to a request that met an error, and count and log it; called where it is handled."""
    if isinstance(exc, LuxError):
        if isinstance(exc, Unforeseen):
            counting.errors += 1
        elif exc.errno not in EXPECTED:
            counting.refusals += 1
        if exc.errno not in EXPECTED:
            log.info("%s: %s", name, exc)
        return exc.errno
    if isinstance(exc, OSError):
        if (exc.errno or 0) in MISTAKES:
            counting.errors += 1
        elif exc.errno not in EXPECTED_OF_FILES:
            counting.refusals += 1
        if exc.errno not in EXPECTED_OF_FILES:
            log.warning("%s: %s", name, exc)
        return exc.errno if exc.errno in OF_PROGRAMS else errno.EIO
    counting.errors += 1
    log.error("%s failed in an unexpected way", name, exc_info=exc)
    return errno.EIO


def guarded(handler: F) -> F:
    """Turn every exception of a handler into an errno: any other than FUSEError would end the mount."""

    @functools.wraps(handler)
    async def wrapper(self: Counting, *args: Any, **kwargs: Any) -> Any:
        running = Running(handler.__name__, trio.lowlevel.current_task())
        self.running.add(running)
        if self.observers:
            running.watch()
        result, code = None, errno.EINTR
        try:
            running.call = handler(self, *args, **kwargs)
            result = await running.call
            code = 0
        except pyfuse3.FUSEError as exc:
            code = exc.errno
            raise
        except Exception as exc:  # noqa: BLE001 (it is logged)
            code = errno_of(self, handler.__name__, exc)
            raise pyfuse3.FUSEError(code) from None
        finally:
            self.running.discard(running)
            observe(self, running.name, running.began_s)
            running.forget()
            for told in self.observers:
                told(running, args, result, code)
        return result

    return wrapper  # type: ignore[return-value]


def changing(handler: F) -> F:
    """As `guarded`; on a read-only mount the answer is EROFS, even after a remount with other flags."""
    inner = guarded(handler)

    @functools.wraps(handler)
    async def wrapper(self: Counting, *args: Any, **kwargs: Any) -> Any:
        if self.read_only:
            raise pyfuse3.FUSEError(errno.EROFS)
        return await inner(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]
