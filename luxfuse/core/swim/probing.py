"""Is it there? One node is probed in each period, and others are probed for nodes that ask.

A probe begins with a ping, sent again after half of the time-out: one lost datagram in twenty would otherwise trouble the
helpers all the time. After the time-out helpers are asked to ping it. At the end of the period a node of which nothing was
heard is suspect. A helper that has heard nothing by 4/5 of the time-out says so (nack): helpers that say nothing at all
are a sign that we ourselves hear badly.
"""

from __future__ import annotations

from collections.abc import Callable

from luxfuse.core.members import Address
from luxfuse.core.swim.config import SwimConfig
from luxfuse.core.swim.messages import Ack, Ask, Body, Nack, Ping
from luxfuse.core.swim.roster import Peer, Roster
from luxfuse.core.swim.suspicion import Health

RELAYS = 256
"""Probes for others under way; more are not begun."""
NEVER = float("inf")
_NACK_AFTER = 0.8
_SMOOTHING = 1 / 8


class _Probe:
    __slots__ = ("answered", "asked", "nacks", "number", "peer", "pings", "sent_s")

    def __init__(self, peer: Peer, number: int, now_s: float) -> None:
        self.peer = peer
        self.number = number
        self.sent_s = now_s
        self.pings = 1
        self.asked = 0
        self.nacks = 0
        self.answered = False


class _Relay:
    __slots__ = ("address", "due_s", "nacked", "number")

    def __init__(self, address: Address, number: int, due_s: float) -> None:
        self.address = address
        self.number = number
        self.due_s = due_s
        self.nacked = False


class Prober:
    """``send`` takes an address, a body, and the peer that is to hear first what is claimed of it, or None.

    ``view`` says how to sum up what we believe; ``suspect`` is told of a node that did not answer.
    """

    def __init__(
        self,
        name: str,
        roster: Roster,
        health: Health,
        config: SwimConfig,
        start_s: float,
        *,
        send: Callable[[Address, Body, Peer | None], None],
        view: Callable[[], int],
        suspect: Callable[[Peer, float], None],
    ) -> None:
        self._name = name
        self._roster = roster
        self._health = health
        self._config = config
        self._send = send
        self._view = view
        self._suspect = suspect
        self._number = 0
        self._probe: _Probe | None = None
        self._period_end_s = start_s
        self._relays: dict[int, _Relay] = {}
        self._relays_due_s = NEVER
        self.due_s = start_s

    def restart(self, now_s: float) -> None:
        """Judge nobody by what has not been heard up to now."""
        self._probe = None
        self._relays.clear()
        self._relays_due_s = NEVER
        self._period_end_s = self.due_s = now_s + self._config.timeout_s

    def tick(self, now_s: float) -> None:
        """Do what is due."""
        if now_s >= self._relays_due_s:
            self._run_relays(now_s)
        probe = self._probe
        if now_s >= self._period_end_s:
            if probe is not None:
                self._judge(probe, now_s)
            self._begin(now_s)
        elif probe is not None and not probe.answered:
            timeout_s = self._config.timeout_s * self._health.factor
            if not probe.asked and now_s >= probe.sent_s + timeout_s:
                self._ask_others(probe)
            elif probe.pings == 1 and now_s >= probe.sent_s + timeout_s / 2:
                probe.pings = 2
                self._ping(probe)
        self._settle()

    def acked(self, number: int, source: str, now_s: float) -> None:
        """A node answered, to us or to a helper that we asked."""
        probe = self._probe
        if probe is not None and number == probe.number:
            if source == probe.peer.info.name and not probe.answered:
                probe.answered = True
                if probe.pings == 1:
                    self._measure(probe.peer, now_s - probe.sent_s)
                self._settle()
            return
        relay = self._relays.pop(number, None)
        if relay is not None:
            self._send(relay.address, Ack(relay.number, source, self._view()), None)

    def nacked(self, number: int) -> None:
        """A helper has heard nothing so far, and we have heard the helper."""
        if self._probe is not None and number == self._probe.number:
            self._probe.nacks += 1

    def help(self, ask: Ask, address: Address, now_s: float) -> None:
        """Probe a node for the one at ``address``."""
        peer = self._roster.get(ask.target)
        if peer is None or len(self._relays) >= RELAYS:
            self._send(address, Nack(ask.number), None)
            return
        self._number += 1
        relay = _Relay(address, ask.number, now_s + self._config.timeout_s * _NACK_AFTER)
        self._relays[self._number] = relay
        self._relays_due_s = min(self._relays_due_s, relay.due_s)
        self._send(peer.info.address, Ping(self._number, ask.target, self._name, self._view()), peer)
        self._settle()

    def _begin(self, now_s: float) -> None:
        self._period_end_s = now_s + self._config.period_s * self._health.factor
        peer = self._roster.next()
        self._probe = None
        if peer is not None:
            self._number += 1
            self._probe = _Probe(peer, self._number, now_s)
            self._ping(self._probe)

    def _ping(self, probe: _Probe) -> None:
        self._send(probe.peer.info.address, Ping(probe.number, probe.peer.info.name, self._name, self._view()), probe.peer)

    def _ask_others(self, probe: _Probe) -> None:
        helpers = self._roster.draw(self._config.helpers, probe.peer)
        for helper in helpers:
            self._send(helper.info.address, Ask(probe.number, probe.peer.info.name, self._name), None)
        probe.pings = 2
        probe.asked = len(helpers) or -1

    def _judge(self, probe: _Probe, now_s: float) -> None:
        if probe.answered:
            self._health.change(-1)
            return
        self._health.change(max(0, probe.asked - probe.nacks) if probe.asked > 0 else 1)
        self._suspect(probe.peer, now_s)

    def _measure(self, peer: Peer, seconds: float) -> None:
        known = peer.round_trip_s
        peer.round_trip_s = seconds if known is None else known + (seconds - known) * _SMOOTHING

    def _run_relays(self, now_s: float) -> None:
        for number, relay in list(self._relays.items()):
            if now_s < relay.due_s:
                continue
            if relay.nacked:
                del self._relays[number]
                continue
            # An answer may still come; the node that asked has more time if its health is bad.
            relay.nacked = True
            relay.due_s = now_s + self._config.period_s
            self._send(relay.address, Nack(relay.number), None)
        self._relays_due_s = min((relay.due_s for relay in self._relays.values()), default=NEVER)

    def _settle(self) -> None:
        due_s = self._period_end_s
        probe = self._probe
        if probe is not None and not probe.answered and not probe.asked:
            timeout_s = self._config.timeout_s * self._health.factor
            due_s = min(due_s, probe.sent_s + (timeout_s / 2 if probe.pings == 1 else timeout_s))
        self.due_s = min(due_s, self._relays_due_s)
