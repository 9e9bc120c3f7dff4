"""Membership: SWIM with Lifeguard, as a machine without sockets, clock or randomness of its own.

After SWIM (Das, Gupta, Motivala; 2002) and Lifeguard (Dadgar, Phillips, Currey; 2018). Each node probes one other in each
period (``probing``). One that does not answer is *suspect*: that is told to all, it hears of it and says that it lives,
by raising its *incarnation*; if it does not in time (``suspicion``) it is *dead*. Updates ride on probes, and are
sent to a few nodes at random while there is something to tell (``dissemination``). ``beliefs`` says what counts.

**Exchanges.** Probes and answers carry a digest of the living and their incarnations. Now and then a node exchanges all
that it knows with the last one whose digest was another one (``PushPull``; over TCP, by the shell). A node that does
not know a dead one does not take it over, so that all can forget it. As often there is an exchange with one of the
dead, or of the seeds at which nobody known listens: so the sides of a healed partition find each other. A node that
learns in an exchange that it was believed dead repeats it soon: then its side, too, will have learnt that, and have
raised its incarnations.

**How soon.** A crash is known to all within 3 + min(2 n - 3, 16) + 4 max(1, log10 n) periods in a cluster of n (25 s for
30 nodes, 29 s for 300), usually in half of that. ``tests/simulation/test_membership.py`` says why, and checks it.

**Lives.** A node must start with an incarnation above all that it had under its name before; the seconds of the wall
clock will do, as long as it changes and is suspected less than once a second on average. If it does not, it hears of
the higher one from the first node that it meets, and goes above that; until then, what it says is not believed. A node
may come back with another address. Two nodes that use one name take it from each other by turns, which
``SwimStatistics.conflicts`` shows.

**Being late.** Time in which ``tick`` was not called is no time in which others were silent. A tick that comes more than
``late_s`` late makes our health worse, judges nobody, and gives all suspects the time that was lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from luxfuse.core.members import Address, Member, NodeInfo
from luxfuse.core.rng import Rng
from luxfuse.core.swim.beliefs import Beliefs
from luxfuse.core.swim.config import Counters, SwimConfig, SwimStatistics
from luxfuse.core.swim.dissemination import Outbox, Repeats
from luxfuse.core.swim.effects import Changed, Effect, Heard, PushPull, Send
from luxfuse.core.swim.messages import (
    BROADCAST_BYTES,
    LIFE_BITS,
    Ack,
    Alive,
    Ask,
    Body,
    Claim,
    Gossip,
    Nack,
    News,
    OldVersion,
    Ping,
    State,
    Tell,
    acceptable,
    encode,
    join,
    read_datagram,
    read_state,
    room,
    write_state,
)
from luxfuse.core.swim.probing import NEVER, Prober
from luxfuse.core.swim.roster import ALIVE, DEAD, LEFT, SUSPECT, Peer, Roster
from luxfuse.core.swim.suspicion import Health

__all__ = ["Changed", "Effect", "Heard", "PushPull", "Send", "Swim", "SwimConfig", "SwimStatistics"]

SEEDS = 64
_GOSSIP = encode(Gossip())


class Swim:
    """One node's view of its cluster.

    The shell gives it datagrams and the time, in seconds of a clock that never goes back, calls ``tick`` at ``next_s`` or
    soon after, and does what ``take`` returns after each call.
    """

    def __init__(self, info: NodeInfo, *, incarnation: int, config: SwimConfig, rng: Rng, now_s: float) -> None:
        if not acceptable(info):
            raise ValueError("a node needs a name, an address, and at most 512 bytes to describe it")
        self._name = info.name
        self._config = config
        self._rng = rng
        self._sequence = incarnation << LIFE_BITS
        self._effects: list[Effect] = []
        self._counters = Counters()
        self._health = Health(config.health_limit)
        self._roster = Roster(config.members, rng)
        self._outbox = Outbox(config.broadcasts)
        self._repeats = Repeats()
        self._beliefs = Beliefs(
            info,
            incarnation,
            config,
            roster=self._roster,
            outbox=self._outbox,
            health=self._health,
            counters=self._counters,
            changed=self._changed,
        )
        # Nodes that start together shall not probe together.
        start_s = now_s + rng.random() * config.period_s
        self._prober = Prober(
            info.name,
            self._roster,
            self._health,
            config,
            start_s,
            send=self._send,
            view=lambda: self._beliefs.view,
            suspect=self._beliefs.unanswered,
        )
        self._seeds: list[Address] = []
        self._gossiping = False
        self._gossip_due_s = now_s
        self._exchange_due_s = now_s + config.join_s
        self._repeat: tuple[float, Address] | None = None
        self._unlike: Address | None = None
        self._asked_s = now_s
        self._limit = config.transmissions(1)
        self._left = False
        self.next_s = now_s
        self._schedule(now_s)

    # Calls of the shell.

    def take(self) -> list[Effect]:
        """The effects to carry out now, in order."""
        effects, self._effects = self._effects, []
        return effects

    def receive(self, message: bytes, sender: Address, now_s: float) -> None:
        """Take a datagram in; one that is malformed, of another version or for another node is counted and dropped."""
        if self._left:
            return
        self._attend(now_s)
        try:
            datagram = read_datagram(message)
        except OldVersion:
            self._counters.old_version += 1
            return
        except ValueError:
            self._counters.garbage += 1
            return
        for update in datagram.updates:
            if isinstance(update, Alive):
                self._beliefs.alive(update, now_s)
            elif isinstance(update, Claim):
                self._beliefs.claim(update, now_s)
            else:
                self._hear(update)
        self._answer(datagram.body, sender, now_s)
        self._schedule(now_s)

    def tick(self, now_s: float) -> None:
        """Do what is due."""
        if self._left:
            return
        self._attend(now_s)
        if now_s >= self._prober.due_s:
            self._prober.tick(now_s)
        if now_s >= self._beliefs.due_s:
            self._beliefs.bury(now_s)
        if now_s >= self._exchange_due_s:
            self._exchange(now_s)
        if self._repeat is not None and now_s >= self._repeat[0]:
            self._push_pull_with(self._repeat[1])
            self._repeat = None
        if now_s >= self._gossip_due_s and self._outbox and self._roster.live:
            self._gossip(now_s)
        self._schedule(now_s)

    def join(self, addresses: Sequence[Address], now_s: float) -> None:
        """Know these addresses as ones where others may be found; ask them all now, and later one now and then."""
        for address in addresses:
            if address != self._beliefs.info.address and address not in self._seeds and len(self._seeds) < SEEDS:
                self._seeds.append(address)
                self._push_pull_with(address)
        self._exchange_due_s = now_s + self._config.join_s
        self._schedule(now_s)

    def push_pull(self) -> bytes:
        """All that we know, for an exchange."""
        return write_state(State(self._name, self._beliefs.everything(left=self._left)))

    def merge(self, state: bytes, now_s: float) -> None:
        """Take in what the other side of an exchange knows. Raises ValueError if that is malformed."""
        if self._left:
            return
        self._attend(now_s)
        theirs = read_state(state)
        if len(theirs.records) > self._config.members + 1:
            raise ValueError(f"an exchange names {len(theirs.records)} nodes, which is too many")
        refuted, alone = self._counters.refuted, not self._roster.live
        self._beliefs.take_over(theirs.records, theirs.source, now_s)
        source = self._roster.get(theirs.source)
        if self._counters.refuted > refuted and source is not None:
            self._repeat = now_s + 2 * self._config.period_s, source.info.address
        if alone and self._roster.live:
            # Of the nodes that joined at the same time, the others may have known as little as we did.
            self._exchange_due_s = now_s + (1 + self._rng.random()) * self._config.period_s
            self._unlike = self._roster.draw(1)[0].info.address
        self._schedule(now_s)

    def broadcast(self, payload: bytes, now_s: float) -> None:
        """Tell all. Raises ValueError if it is longer than 1,000 bytes. With nobody there, nobody is told."""
        _check(payload)
        self._sequence += 1
        if self._roster.live and not self._left:
            self._outbox.news(self._name, self._sequence, encode(News(self._name, self._sequence, payload)))
            self._schedule(now_s)

    def notify(self, name: str, payload: bytes) -> bool:
        """Tell one node, in a datagram that may be lost or come twice; tells whether there is such a node.

        Raises ValueError if it is longer than 1,000 bytes.
        """
        _check(payload)
        peer = self._roster.get(name)
        if peer is None or peer.state >= DEAD or self._left:
            return False
        self._send(peer.info.address, Tell(self._name, payload), None)
        return True

    def update(self, info: NodeInfo, now_s: float) -> None:
        """Say something else of ourselves. Raises ValueError if that is too long or of another name."""
        if info.name != self._name or not acceptable(info):
            raise ValueError("a node keeps its name, needs an address, and at most 512 bytes to describe it")
        self._beliefs.renew(info, self._beliefs.incarnation + 1)
        self._schedule(now_s)

    def leave(self, now_s: float) -> None:
        """Say good-bye to some, which tell the others; datagrams that come in afterwards are ignored."""
        if self._left:
            return
        farewell = encode(Claim(self._name, self._beliefs.incarnation, LEFT, self._name))
        for peer in self._roster.draw(self._limit):
            self._effects.append(Send(peer.info.address, join(_GOSSIP, [farewell])))
        self._left = True
        self.next_s = NEVER

    def members(self) -> list[Member]:
        """All others that are known, the dead among them."""
        return [peer.member() for peer in self._roster]

    def alive(self) -> list[Member]:
        """The others that are alive or suspect."""
        return [peer.member() for peer in self._roster if peer.state < DEAD]

    def member(self, name: str) -> Member | None:
        """One of the others, by its name."""
        peer = self._roster.get(name)
        return peer.member() if peer is not None else None

    def statistics(self) -> SwimStatistics:
        """Figures of the protocol's state."""
        states = [peer.state for peer in self._roster]
        counted = {name: getattr(self._counters, name) for name in Counters.__slots__}
        return SwimStatistics(
            alive=states.count(ALIVE),
            suspect=states.count(SUSPECT),
            dead=states.count(DEAD),
            left=states.count(LEFT),
            incarnation=self._beliefs.incarnation,
            health=self._health.score,
            queued=len(self._outbox),
            dropped=self._outbox.dropped,
            **counted,
        )

    # Datagrams.

    def _answer(self, body: Body, sender: Address, now_s: float) -> None:
        match body:
            case Ping():
                self._ping(body, sender, now_s)
            case Ack():
                self._compare(body.view, sender)
                self._prober.acked(body.number, body.source, now_s)
            case Ask():
                self._prober.help(body, sender, now_s)
            case Nack():
                self._prober.nacked(body.number)
            case Tell():
                self._effects.append(Heard(body.source, body.payload))
            case Gossip():
                pass

    def _ping(self, ping: Ping, sender: Address, now_s: float) -> None:
        if ping.target != self._name:
            self._counters.misdirected += 1
            return
        source = self._roster.get(ping.source)
        self._compare(ping.view, sender)
        self._send(sender, Ack(ping.number, self._name, self._beliefs.view), source)
        if source is None and now_s >= self._asked_s and ping.source != self._name:
            # It knows us, and we have forgotten it, or never heard.
            self._asked_s = now_s + self._config.period_s
            self._push_pull_with(sender)

    def _compare(self, view: int, sender: Address) -> None:
        if view == self._beliefs.view:
            self._unlike = None
        elif not self._outbox:
            self._unlike = sender

    def _hear(self, news: News) -> None:
        if news.origin == self._name:
            return
        if not self._repeats.first(news.origin, news.sequence):
            self._counters.repeated += 1
            return
        self._counters.heard += 1
        self._effects.append(Heard(news.origin, news.payload))
        self._outbox.news(news.origin, news.sequence, encode(news))

    def _send(self, address: Address, body: Body, about: Peer | None) -> None:
        encoded = encode(body)
        first = self._beliefs.about(about) if about is not None else None
        updates = [] if first is None else [first]
        self._outbox.fill(room(encoded) - len(first or b""), self._limit, updates)
        self._effects.append(Send(address, join(encoded, updates)))

    def _gossip(self, now_s: float) -> None:
        self._gossip_due_s = now_s + self._config.gossip_s
        peers = self._roster.draw(self._config.fanout)
        for updates in self._outbox.round(room(_GOSSIP), self._limit, len(peers), self._config.burst):
            datagram = join(_GOSSIP, updates)
            self._effects += [Send(peer.info.address, datagram) for peer in peers]

    # Exchanges.

    def _exchange(self, now_s: float) -> None:
        self._beliefs.forget(now_s)
        if self._unlike is not None:
            self._push_pull_with(self._unlike)
            self._unlike = None
        lost = self._roster.lost() + [seed for seed in self._seeds if not self._roster.at(seed)]
        if lost:
            self._push_pull_with(self._rng.choice(lost))
        alone = not self._roster.live
        wait_s = self._config.join_s if alone else self._config.exchange_s(self._roster.live + 1)
        self._exchange_due_s = now_s + wait_s * (0.75 + self._rng.random() / 2)

    def _push_pull_with(self, address: Address) -> None:
        self._counters.exchanges += 1
        self._effects.append(PushPull(address))

    # Time.

    def _attend(self, now_s: float) -> None:
        """If nobody called us when we were due, what has not been heard since says nothing of others."""
        late_s = now_s - self.next_s
        if late_s <= self._config.late_s:
            return
        self._counters.late += 1
        self._health.change(1)
        self._beliefs.postpone(late_s)
        self._prober.restart(now_s)
        self._exchange_due_s = max(now_s, self._exchange_due_s)
        self._gossip_due_s = max(now_s, self._gossip_due_s)
        if self._repeat is not None:
            self._repeat = max(now_s, self._repeat[0]), self._repeat[1]
        self._schedule(now_s)

    def _changed(self, peer: Peer) -> None:
        self._limit = self._config.transmissions(self._roster.live + 1)
        self._effects.append(Changed(peer.member()))

    def _schedule(self, now_s: float) -> None:
        due_s = min(self._prober.due_s, self._beliefs.due_s, self._exchange_due_s)
        if self._outbox and self._roster.live:
            if not self._gossiping:
                self._gossiping = True
                self._gossip_due_s = max(now_s, self._gossip_due_s)
            due_s = min(due_s, self._gossip_due_s)
        else:
            self._gossiping = False
        if self._repeat is not None:
            due_s = min(due_s, self._repeat[0])
        self.next_s = due_s


def _check(payload: bytes) -> None:
    if len(payload) > BROADCAST_BYTES:
        raise ValueError(f"{len(payload)} bytes for other nodes at once; the most is {BROADCAST_BYTES}")
