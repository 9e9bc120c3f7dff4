"""Tells the other nodes at once of changes of this one in an under-store, and takes theirs into account.

A notice goes straight to the members that serve the source, as far as there are few, and by gossip to all: a datagram may
be lost. A change of which nothing arrives is found out after ``metadata-ttl``, as any change by a stranger.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from luxfuse.cluster.members import Members
from luxfuse.core.notices import NOTICE, Change, Heard, coalesce, encode

log = logging.getLogger(__name__)

GATHERED_S = 0.005
"""So long changes are gathered, to be told together."""
MOST_PENDING = 10_000
"""Changes that wait to be told: beyond that they are told by directory only."""
TOLD_DIRECTLY = 32
"""Members told directly, at most."""


class Listener(Protocol):
    """Takes changes of an under-store into account: a namespace."""

    def changed_elsewhere(self, change: Change) -> None:
        """Another node has changed a key."""


class Announcements:
    """The notices of one node. ``listener_of`` finds the listener for a source, by its id."""

    def __init__(self, members: Members, listener_of: Callable[[bytes], Listener | None]) -> None:
        self._members = members
        self._listener_of = listener_of
        self._pending: dict[bytes, list[tuple[str, bool]]] = defaultdict(list)
        self._wake = trio.Event()
        self._number = secrets.randbits(60)  # others remember the numbers of this node's life before
        self._heard = Heard()
        self.sent = self.received = self.garbage = 0

    def changed(self, source: bytes, key: str, gone: bool) -> None:
        """This node has changed a key in the store."""
        pending = self._pending[source]
        pending.append((key, gone))
        if len(pending) >= MOST_PENDING:
            self._pending[source] = [(change.key, False) for change in coalesce(pending)]
        self._wake.set()

    async def run(self) -> None:
        """Tell what changes, until cancelled."""
        while True:
            await self._wake.wait()
            await trio.sleep(GATHERED_S)
            self._wake = trio.Event()
            pending, self._pending = self._pending, defaultdict(list)
            for source, changes in pending.items():
                await self._tell(source, coalesce(changes))

    async def _tell(self, source: bytes, changes: Sequence[Change]) -> None:
        interested = [member.info.name for member in self._members.alive() if source in member.info.sources]
        for payload in encode(self._number, source, changes):
            self._number += 1
            self.sent += 1
            self._members.broadcast(payload)
            for name in interested[:TOLD_DIRECTLY]:
                self._members.notify(name, payload)
            await trio.lowlevel.checkpoint()

    def heard(self, origin: str, payload: bytes) -> None:
        """Take the gossip of another node; all but notices is for others."""
        if not payload.startswith(NOTICE):
            return
        try:
            notice = self._heard.take(origin, payload)
        except ValueError as exc:
            self.garbage += 1
            log.info("from node %s: %s", origin, exc)
            return
        listener = self._listener_of(notice.source) if notice is not None else None
        if notice is None or listener is None:
            return
        self.received += 1
        for change in notice.changes:
            listener.changed_elsewhere(change)
