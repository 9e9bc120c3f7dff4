"""Small files from other nodes, several with one request as soon as there is more to do than threads.

A request costs about half a millisecond of processor time on both sides together, as much as the bytes of some such files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from luxfuse.core.members import NodeInfo, Want
from luxfuse.errors import LuxError, PeerFailed, PeerRefused, Refusal
from luxfuse.peers.client import Fetched, Result
from luxfuse.peers.wire import want_bytes
from luxfuse.workers import Workers

log = logging.getLogger(__name__)

MOST_THREADS = 32
MOST_WANTS = 16
"""Of one request."""
MOST_BYTES = 2 << 20
"""Of one request, unless it is for one want."""
MOST_WAITING = 4096
"""Wants that wait for a thread; more are refused at once."""

Keep = Callable[[Fetched], Any]
"""Takes the pages, in the thread that got them; its result, or the `LuxError` that it raises, is the outcome."""
Done = Callable[[Any, LuxError | None], None]
"""The outcome, or why there is none; called in the event loop, must not raise."""
Outcome = tuple[Any, LuxError | None]


class Fetcher(Protocol):
    """The part of a `luxfuse.peers.client.Client` that is needed."""

    def fetch(self, member: NodeInfo, wants: Sequence[Want], *, fetch: bool, timeout_s: float) -> list[Result]:
        """Return what becomes of each want. Blocks. Raises `PeerRefused`, `PeerFailed`."""


class _Batch:
    """Wants that go to one node with one request. It takes more of them until a thread has begun with it."""

    def __init__(self, member: NodeInfo, fetch: bool, later: bool) -> None:
        self.member = member
        self.fetch = fetch
        self.later = later
        self.wants: list[Want] = []
        self.keeps: list[Keep] = []
        self.dones: list[Done] = []
        self.total_bytes = 0
        self.give_up_at_s = 0.0
        self.begun = False

    def add(self, want: Want, keep: Keep, done: Done, size_bytes: int) -> None:
        """Take one more want."""
        self.wants.append(want)
        self.keeps.append(keep)
        self.dones.append(done)
        self.total_bytes += size_bytes


class Batches:
    """Fetches in worker threads. Create and use it in the event loop; `submit` never waits."""

    def __init__(self, client: Fetcher, threads: int = MOST_THREADS) -> None:
        self._client = client
        self._workers = Workers(threads)
        self._lock = threading.Lock()
        self._last: dict[tuple[str, bool, bool], _Batch] = {}
        """The batch of each node, kind and urgency that may take more."""
        self._under_way = 0
        self._waiting = 0

    @property
    def width(self) -> int:
        """How many requests are made at once, if there are as many."""
        return self._workers.width

    def submit(
        self, member: NodeInfo, want: Want, keep: Keep, done: Done, *, fetch: bool, timeout_s: float, later: bool = False
    ) -> None:
        """Fetch the pages of a want from a node, let ``keep`` take them, and then call ``done``.

        ``fetch``: see `luxfuse.peers.client.Client.fetch`. The time counts from now on. ``later``: others that wait go
        first. Raises ValueError for a want that cannot be asked for.
        """
        size_bytes = want_bytes(want)
        if self._waiting >= MOST_WAITING:
            done(None, PeerRefused(Refusal.BUSY, "too many pages are waited for"))
            return
        self._waiting += 1
        give_up_at_s = time.monotonic() + timeout_s
        order = want, keep, done, size_bytes
        if self._under_way >= self._workers.width and self._joins((member, fetch, later), order, give_up_at_s):
            return
        batch = _Batch(member, fetch, later)
        batch.give_up_at_s = give_up_at_s
        batch.add(*order)
        self._last[member.name, fetch, later] = batch
        self._under_way += 1
        self._workers.submit(partial(self._run, batch), partial(self._ended, batch), size_bytes, later=later)

    def _joins(self, which: tuple[NodeInfo, bool, bool], order: tuple[Want, Keep, Done, int], give_up_at_s: float) -> bool:
        """Put a want into the node's last batch, if that waits for a thread and has room for it."""
        member, fetch, later = which
        batch = self._last.get((member.name, fetch, later))
        if batch is None or batch.member != member:
            return False
        with self._lock:
            if batch.begun or len(batch.wants) >= MOST_WANTS or batch.total_bytes + order[-1] > MOST_BYTES:
                return False
            batch.add(*order)
            batch.give_up_at_s = min(batch.give_up_at_s, give_up_at_s)
            return True

    def _run(self, batch: _Batch) -> list[Outcome]:
        """In a thread: make the request, and let what comes be taken."""
        with self._lock:
            batch.begun = True
        left_s = batch.give_up_at_s - time.monotonic()
        if left_s <= 0:
            raise PeerFailed(f"node {batch.member.name} was not asked in time")
        results = self._client.fetch(batch.member, batch.wants, fetch=batch.fetch, timeout_s=left_s)
        return [_kept(result, keep) for result, keep in zip(results, batch.keeps, strict=True)]

    def _ended(self, batch: _Batch, outcomes: list[Outcome] | None, error: BaseException | None) -> None:
        self._under_way -= 1
        self._waiting -= len(batch.wants)
        key = batch.member.name, batch.fetch, batch.later
        if self._last.get(key) is batch:
            del self._last[key]
        if error is not None and not isinstance(error, LuxError):
            log.error("pages could not be fetched from another node", exc_info=error)
            error = PeerFailed(f"node {batch.member.name}: unexpected error, see the log")
        for number, done in enumerate(batch.dones):
            done(*(outcomes[number] if outcomes is not None else (None, error)))

    def close(self) -> None:
        """Let the threads end once they are idle."""
        self._workers.close()


def _kept(result: Result, keep: Keep) -> Outcome:
    if not isinstance(result, Fetched):
        return None, result
    try:
        return keep(result), None
    except LuxError as exc:
        return None, exc
