"""Tells the holders of replicas which of them they need not keep any more.

To drop a replica of a file that is in the store is best effort, repeated: a holder that does not hear of it asks by
itself (`Needed`), and one that uploads a file that the store has finds that out. To drop that of a *removed* file is
waited for, for a moment: a holder that does not hear of it would bring the file back, should we die; if it does that
while we live, it is removed again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from luxfuse.cluster.members import Members, present
from luxfuse.cluster.replica_paths import BATCH, ORDERS_PATH
from luxfuse.core.replicas import Drop, FileId, Outcome, State, Write, decode_answer, encode
from luxfuse.errors import LuxError, NotReplicated
from luxfuse.peers.client import Rpc

log = logging.getLogger(__name__)

RELEASES_BOUND = 100_000
RELEASE_RETRIES = 20
"""How often a holder is told to drop something; after that it has to ask."""
RETRACT_DEADLINE_S = 2.0


@dataclass(slots=True)
class _Release:
    """A holder is to drop its replica up to ``generation``; ``removed``: because the file is."""

    generation: int
    removed: bool
    tries: int = 0


class Releases:
    """The replicas of one under-store of which holders are still to be told."""

    def __init__(self, members: Members, rpc: Rpc, on_brought: Callable[[Outcome], Awaitable[None]]) -> None:
        """``on_brought``: a holder has brought a file to the store that was removed here."""
        self._members = members
        self._rpc = rpc
        self._on_brought = on_brought
        self._releases: defaultdict[str, dict[FileId, _Release]] = defaultdict(dict)
        """By holder."""
        self._unaware: dict[str, None] = {}
        """The holders that may have replicas of removed files."""

    def release(self, file: FileId, generation: int, holders: Sequence[str], *, removed: bool) -> None:
        """Let holders drop their replicas of a file up to ``generation``, soon. ``removed``: nobody wants it any more."""
        for name in holders:
            releases = self._releases[name]
            if file not in releases and len(releases) >= RELEASES_BOUND:
                releases.pop(next(iter(releases)))  # it will ask
            if removed:
                self._unaware[name] = None
            before = releases.get(file)
            releases[file] = _Release(generation, removed or (before is not None and before.removed))

    async def retract(self) -> None:
        """Wait a moment until holders have dropped removed files; those that do not answer are told later."""

        async def tell(name: str) -> None:
            releases = self._releases[name]
            left = len(releases) + 1
            while 0 < len(releases) < left:
                left = len(releases)
                await self._tell(name)
            if not any(release.removed for release in releases.values()):
                self._unaware.pop(name, None)

        if not self._unaware:
            return
        with trio.move_on_after(RETRACT_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for name in list(self._unaware):
                    nursery.start_soon(tell, name)

    async def tell_holders(self) -> None:
        """Tell each holder which replicas it may drop."""
        async with trio.open_nursery() as nursery:
            for name, releases in self._releases.items():
                if releases:
                    nursery.start_soon(self._tell, name)

    async def _tell(self, name: str) -> None:
        releases = self._releases[name]
        member = self._members.member(name)
        batch = dict(list(releases.items())[:BATCH])
        if not batch:
            return
        try:
            if member is None or not present(member):
                raise NotReplicated("it is not here")
            writes = tuple(Write(file, release.generation) for file, release in batch.items())
            body = encode(Drop(writes))
            answer = decode_answer(await self._rpc.request(member.info.address, ORDERS_PATH, body, name=name))
        except (LuxError, ValueError) as exc:
            self._tell_again(name, batch, exc)
            return
        busy = {outcome.write.file for outcome in answer.outcomes if outcome.state is State.TAKEN}
        for file, release in batch.items():
            if file not in busy and releases.get(file) is release:
                del releases[file]
        for outcome in answer.outcomes:
            told = batch.get(outcome.write.file)
            if told is not None and told.removed and outcome.effective:
                await self._on_brought(outcome)

    def _tell_again(self, name: str, batch: Mapping[FileId, _Release], why: Exception) -> None:
        releases = self._releases[name]
        for file, release in batch.items():
            release.tries += 1
            if releases.get(file) is release and release.tries >= RELEASE_RETRIES and not release.removed:
                del releases[file]
                log.info("node %s is not told any more to drop a replica: %s", name, why)
