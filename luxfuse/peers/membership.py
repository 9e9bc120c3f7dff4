"""Runs the membership protocol (`luxfuse.core.swim.swim`): over datagrams, and whole states over connections.

All here happens in the event loop, and none of it waits for the network: a datagram that the kernel has no room for is
lost, as it could be on its way; the protocol makes up for that.
"""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from luxfuse.core.addresses import format_address
from luxfuse.core.members import Address, Member, MemberState, NodeInfo
from luxfuse.core.swim.swim import Changed, Effect, Heard, PushPull, Send, Swim
from luxfuse.errors import LuxError
from luxfuse.peers.client import Rpc
from luxfuse.peers.identity import Identity
from luxfuse.peers.join import Seeds
from luxfuse.peers.listening import Unreachable, from_wire, on_wire
from luxfuse.peers.rejections import REASONS, Rejected, Rejections

if TYPE_CHECKING:
    from luxfuse.peers.credentials import Credentials

log = logging.getLogger(__name__)

PUSH_PULL_PATH = "/v1/push-pull"
PUSH_PULL_S = 10.0
MOST_PUSH_PULLS = 16
"""At a time; further ones are left out: the protocol comes back to them."""
MOST_DATAGRAM_BYTES = 2048
DATAGRAMS_A_TURN = 64
"""Taken in before others have their turn in the event loop."""
ALONE_S = 2.0
"""As long as no other node is known, the seeds are tried after this, then after twice as long, and so on, up to ..."""
TOGETHER_S = 60.0
"""... this, and then that often: nodes that we do not know may be among them, after the network was parted."""
WATCH_S = 5.0
NAMESAKE_S = 600.0
"""Said so often."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters, from the start on. ``unsent``: datagrams that could not be sent; ``rejected``: by reason."""

    sent: int
    received: int
    unsent: int
    rejected: dict[str, int]
    push_pulls: int
    failed_push_pulls: int


class Membership:
    """The nodes of the cluster, as far as this one knows."""

    def __init__(
        self,
        swim: Swim,
        credentials: Credentials,
        rpc: Rpc,
        datagrams: socket.socket,
        *,
        info: NodeInfo,
        seeds: Seeds,
        rng: random.Random,
        identity: Identity | None = None,
    ) -> None:
        """``info``: this node. ``datagrams``: does not block; closed at the end. ``identity``: gets each new
        incarnation."""
        self._swim = swim
        self._credentials = credentials
        self._rpc = rpc
        self._socket = datagrams
        self._info = info
        self._seeds = seeds
        self._rng = rng
        self._identity = identity
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._acting = False
        self._push_pulls = 0
        self._counts = {"sent": 0, "received": 0, "unsent": 0, "push_pulls": 0, "failed_push_pulls": 0}
        self._silent: set[Address] = set()
        self._states: dict[str, MemberState] = {}
        self.rejections = Rejections()
        self.on_change: list[Callable[[Member], None]] = []
        """Called when a node came, said something else of itself, changed its state, or was forgotten."""
        self.on_heard: list[Callable[[str, bytes], None]] = []
        """Called with the name of a node and what it broadcast, or told us alone."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._receive)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._join)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._nursery = None
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    @property
    def info(self) -> NodeInfo:
        """This node, as it describes itself."""
        return self._info

    def members(self) -> list[Member]:
        """Return the other nodes, those included that have died or left lately."""
        return self._swim.members()

    def alive(self) -> list[Member]:
        """Return the other nodes that can be asked for something."""
        return self._swim.alive()

    def member(self, name: str) -> Member | None:
        """Return a node by its name."""
        return self._swim.member(name)

    def broadcast(self, payload: bytes) -> None:
        """Let all nodes hear ``payload``, at most 1,000 bytes, within seconds, each once; best effort.

        Raises ValueError if it is longer.
        """
        self._swim.broadcast(payload, trio.current_time())
        self._act()

    def notify(self, name: str, payload: bytes) -> None:
        """Let one node hear ``payload``, at most 1,000 bytes, at once; best effort. Raises ValueError if it is longer."""
        self._swim.notify(name, payload)
        self._act()

    def update(self, info: NodeInfo) -> None:
        """Tell all nodes something else of ourselves."""
        self._info = info
        self._swim.update(info, trio.current_time())
        self._act()

    async def leave(self) -> None:
        """Say good-bye. Later datagrams are ignored; cancel `run` then."""
        self._swim.leave(trio.current_time())
        self._act()
        await trio.lowlevel.checkpoint()

    async def handle_push_pull(self, peer: str, state: bytes) -> bytes:
        """Answer a request for `PUSH_PULL_PATH`: take over what the other node knows, return what we know.

        Raises ValueError if it is garbage.
        """
        if peer != self._credentials.name:  # ourselves, by another of our addresses
            self._swim.merge(state, trio.current_time())
            self._act()
        return self._swim.push_pull()

    def statistics(self) -> Statistics:
        """Return counters."""
        return Statistics(rejected=dict(self.rejections.counts), **self._counts)

    def _act(self) -> None:
        """Do what the protocol wants done. A callback may call us again: then the outer call goes on with it."""
        if self._acting:
            return
        self._acting = True
        try:
            while effects := self._swim.take():
                for effect in effects:
                    self._do(effect)
        finally:
            self._acting = False
        self._wake.set()  # the next tick may be due earlier

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(address, payload):
                self._send(address, payload)
            case PushPull(address):
                self._start_push_pull(address)
            case Changed(member):
                self._log_change(member)
                for changed in self.on_change:
                    changed(member)
            case Heard(origin, payload):
                for heard in self.on_heard:
                    heard(origin, payload)

    def _log_change(self, member: Member) -> None:
        """Log a change of state, but not of what a node says of itself."""
        name, state = member.info.name, member.state
        if self._states.get(name) != state:
            where = format_address(member.info.address)
            log.info("node %s at %s: %s", member.info.label or name, where, state.name.lower())
        self._states[name] = state
        if self._swim.member(name) is None:
            del self._states[name]

    def _send(self, address: Address, payload: bytes) -> None:
        try:
            self._socket.sendto(self._credentials.seal(payload), on_wire(self._socket.family, address))
        except (OSError, Unreachable) as exc:
            self._counts["unsent"] += 1
            log.debug("a datagram for %s was not sent: %s", format_address(address), exc)
        else:
            self._counts["sent"] += 1

    async def _receive(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(DATAGRAMS_A_TURN):
                try:
                    datagram, sender = self._socket.recvfrom(MOST_DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError as exc:
                    log.debug("no datagram was received: %s", exc)
                    await trio.sleep(0.1)
                    break
                self._take_in(datagram, from_wire(sender))

    def _take_in(self, datagram: bytes, sender: Address) -> None:
        now_s = trio.current_time()
        self._counts["received"] += 1
        try:
            opened = self._credentials.open(datagram)
        except Rejected as exc:
            self.rejections.note(exc.reason, sender, now_s)
            return
        self._swim.receive(opened.payload, sender, now_s)
        self._act()

    async def _tick(self) -> None:
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._swim.next_s):
                await self._wake.wait()
            if trio.current_time() >= self._swim.next_s:
                self._swim.tick(trio.current_time())
                self._act()

    def _start_push_pull(self, address: Address) -> None:
        if self._nursery is not None and self._push_pulls < MOST_PUSH_PULLS:
            self._push_pulls += 1
            self._nursery.start_soon(self._push_pull, address)

    async def _push_pull(self, address: Address) -> None:
        """Exchange whole states with a node."""
        try:
            answer = await self._rpc.request(address, PUSH_PULL_PATH, self._swim.push_pull(), timeout_s=PUSH_PULL_S)
            self._swim.merge(answer, trio.current_time())
        except (LuxError, ValueError) as exc:
            self._counts["failed_push_pulls"] += 1
            level = logging.DEBUG if address in self._silent or len(self._silent) > MOST_PUSH_PULLS else logging.INFO
            self._silent.add(address)
            log.log(level, "node at %s: %s", format_address(address), exc)
        else:
            self._counts["push_pulls"] += 1
            self._silent.discard(address)
            self._act()
        finally:
            self._push_pulls -= 1

    async def _join(self) -> None:
        """Look for nodes that we do not know at the addresses that we were given."""
        wait_s = ALONE_S
        while self._seeds:
            addresses = await self._seeds.resolve()
            known = {member.info.address for member in self.alive()} | {self._info.address}
            unknown = [address for address in addresses if address not in known]
            for address in self._rng.sample(unknown, min(len(unknown), MOST_PUSH_PULLS)):
                self._start_push_pull(address)
            await trio.sleep(wait_s * self._rng.uniform(0.75, 1.25))
            wait_s = TOGETHER_S if self.alive() else min(2 * wait_s, TOGETHER_S)

    async def _watch(self) -> None:
        """Keep our incarnation for the next start, and say if another node has our name."""
        conflicts, said_s = 0, -NAMESAKE_S
        while True:
            await trio.sleep(WATCH_S)
            figures = self._swim.statistics()
            if figures.conflicts > conflicts and figures.conflict and trio.current_time() - said_s >= NAMESAKE_S:
                said_s = trio.current_time()
                log.warning("the node at %s is a namesake: %s", format_address(figures.conflict), REASONS["namesake"])
            conflicts = figures.conflicts
            if self._identity is not None and figures.incarnation != self._identity.incarnation:
                try:
                    await trio.to_thread.run_sync(self._identity.note, figures.incarnation)
                except OSError as exc:
                    log.debug("the incarnation was not kept: %s", exc.strerror)

    def describe(self, entries: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Return the other nodes as a status document has them. ``entries``: how much each is known to hold."""
        members = sorted(self._swim.members(), key=lambda member: (member.state, member.info.label, member.info.name))
        return [_described(member.info, member.state, member.round_trip_s, entries or {}) for member in members]

    def describe_self(self, entries: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return this node in the same form."""
        return _described(self._info, MemberState.ALIVE, None, entries or {})


def _described(
    info: NodeInfo, state: MemberState, round_trip_s: float | None, entries: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "name": info.name,
        "label": info.label,
        "address": format_address(info.address),
        "state": state.name.lower(),
        "version": info.version,
        "rack": info.rack,
        "round_trip_s": round_trip_s,
        "weight": info.weight,
        "sources": [source.hex() for source in info.sources],
        "entries": entries.get(info.name, 0),
    }
