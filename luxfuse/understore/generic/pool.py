"""File system objects of fsspec for many threads: a shared one where its client allows that, or else one at a time each.

A client is dropped when its connection failed, with all that are idle, as they had the same server; an operation that only
reads is then done once more, with a new one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.library_failures import failure

MOST = 8
"""Connections to a server if its client takes one thread at a time; OpenSSH refuses more than ten at once that log in."""

REFUSED_S = 60.0
"""So long no further connection is asked for after the server has refused one."""

THREAD_SAFE = frozenset(["memory", "file", "local", "webhdfs", "webdav", "dav"])
"""Protocols whose file systems any number of threads may use: no client, one of requests, or httpx's. So may those that
run in fsspec's own event loop (`async_impl`). Of all others nothing is known, or (FTP, SFTP) that they take one thread."""

T = TypeVar("T")
Operation = Callable[[Any], T]


class FileSystems:
    """The file system objects of one source. `run` is for any thread."""

    def __init__(
        self,
        first: Any,
        *,
        timeout_s: float,
        prepare: Callable[[Any], None] = lambda _filesystem: None,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """More are made as ``first`` was, if that takes one thread at a time. ``timeout_s``: how long to wait for one.

        ``prepare`` is called with each, and first.
        """
        self._shared = is_thread_safe(first)
        self._first = first
        self._prepare = prepare
        prepare(first)
        self._timeout_s = timeout_s
        self._clock = clock
        self._changed = threading.Condition()
        self._connecting = threading.Lock()
        self._idle = [first]
        self._since_s: dict[int, float] = {}
        """When those that are in use were taken, by `id`."""
        self._making = 0
        self._refused_s = 0.0
        self._bound = most
        self._most = most
        self._closed = False

    def run(self, operation: Operation[T], *, again: bool) -> T:
        """Return ``operation(file system)``; ``again``: do it once more if a connection that was made before is dead."""
        if self._shared:
            return operation(self._idle[0])
        while True:
            instance, is_new = self._take()
            try:
                result = operation(instance)
            except BaseException as exc:
                if not _breaks(exc):
                    self._give_back(instance)
                    raise
                self._drop(instance)
                if is_new or not again:
                    raise
                again = False
            else:
                self._give_back(instance)
                return result

    def _take(self) -> tuple[Any, bool]:
        """Return a file system that is nobody else's now, and whether it has just been made."""
        deadline_s = self._clock() + self._timeout_s
        while True:
            with self._changed:
                while not self._idle and len(self._since_s) + self._making >= self._most:
                    self._look_again()
                    left_s = deadline_s - self._clock()
                    if left_s <= 0 or self._closed:
                        raise StoreUnavailable(f"all {self._most} connections are busy")
                    self._changed.wait(min(left_s, self._timeout_s / 10))
                if self._idle:
                    instance = self._idle.pop()
                    self._since_s[id(instance)] = self._clock()
                    return instance, False
                self._making += 1
            if (made := self._connect(deadline_s)) is not None:
                return made, True

    def _connect(self, deadline_s: float) -> Any:
        """Make a file system; None if the server takes no further one beside those that are in use."""
        made = None
        try:
            if not self._connecting.acquire(timeout=max(0, deadline_s - self._clock())):
                raise StoreUnavailable("no connection was made in time")
            try:
                made = like(self._first)
                self._prepare(made)
            finally:
                self._connecting.release()
        except Exception:
            with self._changed:
                if not self._since_s or self._clock() >= deadline_s:
                    raise
                self._most = len(self._since_s)
                self._refused_s = self._clock()
        finally:
            with self._changed:
                self._making -= 1
                if made is not None:
                    self._since_s[id(made)] = self._clock()
                self._changed.notify_all()
        return made

    def _look_again(self) -> None:
        """Let others take the places of those that a thread has had for very long: it may hang for ever.

        And try again after a while whether the server takes more.
        """
        if self._most < self._bound and self._clock() - self._refused_s >= REFUSED_S:
            self._most = self._bound
        lost_s = self._clock() - 3 * self._timeout_s
        for number in [number for number, since_s in self._since_s.items() if since_s < lost_s]:
            del self._since_s[number]

    def _give_back(self, instance: Any) -> None:
        with self._changed:
            known = self._since_s.pop(id(instance), None) is not None
            if known and not self._closed:
                self._idle.append(instance)
                instance = None
            self._changed.notify()
        if instance is not None:
            close(instance)

    def _drop(self, instance: Any) -> None:
        with self._changed:
            self._since_s.pop(id(instance), None)
            dropped, self._idle = [instance, *self._idle], []
            self._most = self._bound
            self._changed.notify_all()
        for each in dropped:
            close(each)

    def close(self) -> None:
        """Close those that are idle now, and the others when they are given back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for instance in idle:
            close(instance)


def is_thread_safe(filesystem: Any) -> bool:
    """Whether threads may share a file system object."""
    protocol = filesystem.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    return bool(filesystem.async_impl) or not names.isdisjoint(THREAD_SAFE)


def like(filesystem: Any) -> Any:
    """Return a new file system with the arguments of another one, and connections of its own."""
    made = type(filesystem)(*filesystem.storage_args, skip_instance_cache=True, **filesystem.storage_options)
    return without_listings(made)


def without_listings(filesystem: Any) -> Any:
    """Switch off the cache of listings that a file system object may have; its name in constructors differs."""
    cache: Any = getattr(filesystem, "dircache", None)
    if hasattr(cache, "use_listings_cache"):
        cache.use_listings_cache = False
    return filesystem


def close(filesystem: Any) -> None:
    """Close the connections of a file system; those of most clients have a method for it somewhere."""
    client = getattr(filesystem, "client", None)
    for owner in (filesystem, getattr(client, "http", None), client, getattr(filesystem, "ftp", None)):
        if callable(ending := getattr(owner, "close", None)):
            with contextlib.suppress(Exception):  # it is broken, as a rule: there is nothing to do about it
                ending()
            return


def _breaks(exc: BaseException) -> bool:
    """Whether a client is not to be used after ``exc``: it is no answer of the server's, so its connection may be dead."""
    return not isinstance(exc, Exception) or isinstance(failure(exc, ""), StoreUnavailable)
