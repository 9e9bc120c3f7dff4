"""Nodes in one process: real datagrams over loopback, the real protocol at a fast pace, connections that are calls."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from luxfuse.core.members import Address, MemberState, NodeInfo
from luxfuse.core.swim.swim import Swim, SwimConfig
from luxfuse.errors import LuxError
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.identity import Identity
from luxfuse.peers.join import Seeds
from luxfuse.peers.listening import listen
from luxfuse.peers.membership import PUSH_PULL_PATH, Membership

KEY = b"k" * 32
CALM = SwimConfig(period_s=0.1, timeout_s=0.05, gossip_s=0.02, suspicion=1000.0, push_pull_s=1000.0, late_s=5.0)
"""Quick, and patient enough for a machine that has other things to do: nobody dies."""
HASTY = msgspec.structs.replace(CALM, suspicion=2.0, patience=2.0)
MISSING = msgspec.structs.replace(HASTY, push_pull_s=0.2)
"""Asks those that it takes for dead for all that they know, and often."""


@dataclass
class Calls:
    """Stands for connections: answers of those that are there, by address. Proves the caller's key, as TLS would."""

    nodes: dict[Address, Membership] = field(default_factory=dict)
    keys: dict[Address, bytes] = field(default_factory=dict)
    asked: list[Address] = field(default_factory=list)


@dataclass
class Caller:
    """One node's side of `Calls`."""

    calls: Calls
    name: str
    key: bytes

    async def request(
        self, address: Address, path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5
    ) -> bytes:
        await trio.lowlevel.checkpoint()
        assert (path, name) == (PUSH_PULL_PATH, None)
        self.calls.asked.append(address)
        if address not in self.calls.nodes or self.calls.keys[address] != self.key:
            raise LuxError("nobody answers")
        return await self.calls.nodes[address].handle_push_pull(self.name, body)


@asynccontextmanager
async def node(
    calls: Calls,
    number: int,
    *joined: Address | str,
    key: bytes = KEY,
    name: str | None = None,
    identity: Identity | None = None,
    incarnation: int = 1,
    config: SwimConfig = CALM,
) -> AsyncIterator[Membership]:
    """Run a node for the length of the block. ``joined``: whom it is told to join."""
    opened = listen("127.0.0.1:0")
    name = name or f"{number:016x}"
    label, rack = f"node-{number}", f"rack-{number % 2}"
    info = NodeInfo(name, opened.host, opened.port, label, rack, 10 * number + 1, "1.0", (b"s" * 8,))
    rng = random.Random(number)
    credentials = Credentials([key], name=name, stamp_ns=time.time_ns())
    entries = [entry if isinstance(entry, str) else f"{entry[0]}:{entry[1]}" for entry in joined]
    swim = Swim(info, incarnation=incarnation, config=config, rng=rng, now_s=trio.current_time())
    membership = Membership(
        swim, credentials, Caller(calls, name, key), opened.datagrams, info=info, rng=rng, identity=identity,
        seeds=Seeds(entries, family=socket.AF_INET),
    )  # fmt: skip
    calls.nodes[info.address], calls.keys[info.address] = membership, key
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(membership.run)
            yield membership
            nursery.cancel_scope.cancel()
    finally:
        del calls.nodes[info.address]
        opened.close()


def states(membership: Membership) -> dict[str, MemberState]:
    """Return what a node believes of the others, by label."""
    return {member.info.label: member.state for member in membership.members()}


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.01)
