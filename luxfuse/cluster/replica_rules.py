"""The rules of how many nodes hold what (`luxfuse.core.replication`): kept in the index, exchanged with other nodes.

A node that makes or learns a rule gossips a digest of its rules. One that hears another digest asks for the rules;
once a minute each node also asks one at random, so they come to agree even if all that is gossiped is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec
import trio

from luxfuse.cluster.members import Members
from luxfuse.core.members import Member, MemberState
from luxfuse.core.replication import DIGEST_BYTES, PATH_MAX_BYTES, ReplicaRule, ReplicaRules, TooManyRules
from luxfuse.core.rng import Rng
from luxfuse.errors import LuxError
from luxfuse.index.objects import Objects
from luxfuse.peers.client import Rpc

log = logging.getLogger(__name__)

RULES_PATH = "/v1/rules"
DIGEST = b"R"
"""First byte of a digest, among the gossip."""
SOURCE_BYTES = 8
INTERVAL_S = 60.0
PULL_S = 10.0
SPREAD_S = 0.005
"""For each node that lives: so long those wait at most that heard of a rule, so that not all ask at the same instant."""
MOST_SPREAD_S = 2.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, ReplicaRule]).decode


class RulesRefused(LuxError):
    """A rule cannot be made. The text is one line."""


class RuleStore:
    """The rules of one under-store, in memory and in the index."""

    def __init__(self, objects: Objects, clock: Callable[[], float]) -> None:
        """Take up the rules that were kept; if they cannot be read that is logged. ``clock``: wall-clock seconds."""
        self._objects = objects
        self._clock = clock
        self.rules = ReplicaRules()
        if kept := objects.replica_rules():
            try:
                self.rules.merge(_decode(kept), now_us=self._now_us)
            except (msgspec.MsgspecError, ValueError) as exc:
                log.warning("the rules of replicas cannot be read and are learnt from other nodes: %s", exc)

    @property
    def _now_us(self) -> int:
        return int(self._clock() * 1e6)

    async def order(self, paths: Iterable[str], least: int, most: int | None, node: str) -> list[str]:
        """Make a rule for each path, or end it (``least`` 0); returns a line for each that failed. Raises OSError."""
        failures = []
        for path in paths:
            known = self.rules.entries.get(path)
            try:
                if len(path.encode()) > PATH_MAX_BYTES:
                    raise RulesRefused(f"the path is longer than {PATH_MAX_BYTES} bytes")
                if not least and (known is None or known.ended):
                    raise RulesRefused("has no rule of replicas")
                self.rules.set(path, least, most, now_us=self._now_us, node=node)
            except UnicodeEncodeError:
                failures.append(f"{path!r}: is not in UTF-8")
            except (RulesRefused, TooManyRules) as exc:
                failures.append(f"{path or '.'}: {exc}")
        await self._keep()
        return failures

    async def merge(self, entries: Mapping[str, ReplicaRule]) -> bool:
        """Take over newer rules; returns whether there were any. Raises OSError."""
        changed = self.rules.merge(entries, now_us=self._now_us)
        if self.rules.expire(now_us=self._now_us) or changed:
            await self._keep()
        return changed

    async def _keep(self) -> None:
        await self._objects.keep_replica_rules(_encode(self.rules.entries))


class RuleExchange:
    """Brings the rules of all nodes into line. ``stores``: those of this node, by source, as they are at each time."""

    def __init__(
        self, stores: Mapping[bytes, RuleStore], members: Members, rpc: Rpc, rng: Rng, on_change: Callable[[bytes], None]
    ) -> None:
        """``on_change``: called with a source when its rules have changed."""
        self._stores = stores
        self._members = members
        self._rpc = rpc
        self._rng = rng
        self._on_change = on_change
        self._told: dict[bytes, bytes] = {}
        self._to_ask: dict[bytes, str] = {}
        self._wake = trio.Event()
        self.pulls = 0

    def changed(self, source: bytes) -> None:
        """The rules of a source have changed here: let others know."""
        digest = self._stores[source].rules.digest()
        if self._told.get(source) != digest:
            self._told[source] = digest
            self._members.broadcast(DIGEST + source + digest)
        self._on_change(source)

    def heard(self, origin: str, payload: bytes) -> None:
        """Take the gossip of another node; all but digests is for others."""
        if not payload.startswith(DIGEST) or len(payload) != len(DIGEST) + SOURCE_BYTES + DIGEST_BYTES:
            return
        source, digest = payload[1 : 1 + SOURCE_BYTES], payload[1 + SOURCE_BYTES :]
        store = self._stores.get(source)
        if store is not None and store.rules.digest() != digest:
            self._to_ask[source] = origin
            self._wake.set()

    async def answer(self, _peer: str, body: bytes) -> bytes:
        """Answer a request for `RULES_PATH`: a source and a digest; nothing if ours is the same. Raises ValueError."""
        if len(body) != SOURCE_BYTES + DIGEST_BYTES:
            raise ValueError("no request for rules")
        store = self._stores.get(body[:SOURCE_BYTES])
        await trio.lowlevel.checkpoint()
        if store is None or store.rules.digest() == body[SOURCE_BYTES:]:
            return b""
        return _encode(store.rules.entries)

    async def run(self) -> None:
        """Learn the rules of others, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_those_heard)
            nursery.start_soon(self._ask_at_random)

    async def _ask_those_heard(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            spread_s = min(MOST_SPREAD_S, SPREAD_S * len(self._members.alive()))
            await trio.sleep(self._rng.uniform(0, spread_s))
            asked, self._to_ask = self._to_ask, {}
            for source, name in asked.items():
                await self._pull(source, self._members.member(name))

    async def _ask_at_random(self) -> None:
        while True:
            await trio.sleep(INTERVAL_S * self._rng.uniform(0.75, 1.25))
            for source in list(self._stores):
                alive = [
                    member for member in self._members.alive()
                    if member.state is MemberState.ALIVE and source in member.info.sources
                ]  # fmt: skip
                if alive:
                    await self._pull(source, self._rng.choice(alive))

    async def _pull(self, source: bytes, member: Member | None) -> None:
        store = self._stores.get(source)
        if store is None or member is None:
            return
        info = member.info
        body = source + store.rules.digest()
        try:
            answer = await self._rpc.request(info.address, RULES_PATH, body, name=info.name, timeout_s=PULL_S)
            if answer and await store.merge(_decode(answer)) and source in self._stores:
                self.changed(source)
        except (LuxError, OSError, msgspec.MsgspecError, ValueError) as exc:
            log.info("rules of replicas are learnt later from node %s: %s", info.label or info.name, exc)
        self.pulls += 1
