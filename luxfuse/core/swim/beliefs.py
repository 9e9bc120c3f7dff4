"""A node's beliefs about the others, how updates change them, and its word about itself.

Of two things said of one node that of the higher incarnation counts, and in one incarnation ``LEFT`` counts more than
``DEAD``, that more than ``SUSPECT``, that more than ``ALIVE``. So the order in which things are heard does not matter, and
all come to believe the same. Only the node itself raises its incarnation: when it changes, or hears that it is suspect
or dead.

But a node that is called dead is given the shortest time of a suspect first by every node that did not suspect it for
so long already: it may have been dead to the other side of a partition only. A node that never hears "suspect" loses a
few seconds by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luxfuse.core.members import MemberState, NodeInfo
from luxfuse.core.swim.config import Counters, SwimConfig
from luxfuse.core.swim.dissemination import Outbox
from luxfuse.core.swim.messages import INCARNATIONS, Alive, Claim, Record, acceptable, encode, mark
from luxfuse.core.swim.roster import ALIVE, DEAD, LEFT, SUSPECT, Peer, Roster
from luxfuse.core.swim.suspicion import Health, Suspicion

NEVER = float("inf")


class Beliefs:
    """Our own info and incarnation, and the states of the others. ``changed`` is told of each change of another one."""

    def __init__(
        self,
        info: NodeInfo,
        incarnation: int,
        config: SwimConfig,
        *,
        roster: Roster,
        outbox: Outbox,
        health: Health,
        counters: Counters,
        changed: Callable[[Peer], None],
    ) -> None:
        self.info = info
        self.incarnation = incarnation
        self._config = config
        self._roster = roster
        self._outbox = outbox
        self._health = health
        self._counters = counters
        self._changed = changed
        self._suspects: dict[str, Peer] = {}
        self._quiet = False
        self._mark = mark(info.name, incarnation)
        self.due_s = NEVER

    @property
    def view(self) -> int:
        """A digest of the nodes that live, and in which incarnation: equal views have an equal one."""
        return self._roster.view ^ self._mark

    # Of ourselves.

    def renew(self, info: NodeInfo, incarnation: int) -> None:
        """Say this of ourselves, in an incarnation that is higher than the last one."""
        self.info = info
        self.incarnation = min(incarnation, INCARNATIONS)
        self._mark = mark(info.name, self.incarnation)
        self._announce()

    def _announce(self) -> None:
        self._outbox.alive(self.info.name, encode(Alive(self.incarnation, self.info)))

    def _refute(self, incarnation: int) -> None:
        """We live, whatever is said of us in that incarnation."""
        if incarnation >= self.incarnation:
            self._counters.refuted += 1
            self._health.change(1)
            self.renew(self.info, incarnation + 1)
        elif not self._outbox.announces(self.info.name):
            self._announce()  # the node that says so has not heard of our last incarnation

    def _own_echo(self, incarnation: int, info: NodeInfo) -> None:
        """Somebody says that we live: what we said ourselves, or did in an earlier life, or another node of our name."""
        if incarnation < self.incarnation or (incarnation == self.incarnation and info == self.info):
            return
        if info.address != self.info.address:
            self._conflict(info)
        self.renew(self.info, incarnation + 1)

    def _conflict(self, info: NodeInfo) -> None:
        self._counters.conflicts += 1
        self._counters.conflict = info.address

    # Of others.

    def alive(self, update: Alive, now_s: float) -> None:
        """A node says this of itself."""
        info, incarnation = update.info, update.incarnation
        if info.name == self.info.name:
            self._own_echo(incarnation, info)
            return
        peer = self._roster.get(info.name)
        if peer is None:
            self._meet(update, now_s)
            return
        if incarnation <= peer.info_incarnation:
            if incarnation == peer.info_incarnation and (info.port, info.host) != (peer.info.port, peer.info.host):
                self._conflict(info)
            return
        if not acceptable(info):
            self._counters.refused += 1
            return
        self._roster.renew(peer, info, incarnation)
        lives = incarnation > peer.incarnation
        if lives:
            peer.incarnation = incarnation
            self._set(peer, ALIVE, now_s)
        if not self._quiet:
            self._outbox.alive(info.name, encode(update), supersedes=lives)
        self._changed(peer)

    def _meet(self, update: Alive, now_s: float) -> None:
        peer = Peer(update.info, update.incarnation, now_s)
        try:
            if not acceptable(update.info):
                raise ValueError("malformed")
            gone = self._roster.add(peer)
        except ValueError:
            self._counters.refused += 1
            return
        if gone is not None:
            self._outbox.forget(gone.info.name)
            self._changed(gone)
        if not self._quiet:
            self._outbox.alive(update.info.name, encode(update))
        self._changed(peer)

    def claim(self, claim: Claim, now_s: float) -> None:
        """A node is said to be suspect or dead, or to have left. Of one that is not known that is no news."""
        if claim.name == self.info.name:
            self._refute(claim.incarnation)
            return
        peer = self._roster.get(claim.name)
        if peer is None or claim.state == ALIVE:
            return
        if claim.state == DEAD and peer.state <= SUSPECT and self._too_early(peer, claim, now_s):
            return
        if (claim.incarnation, claim.state) > (peer.incarnation, peer.state):
            known, peer.incarnation = peer.state, claim.incarnation
            if claim.state == SUSPECT:
                self._begin_suspicion(peer, claim.by, now_s)
            else:
                self._set(peer, claim.state, now_s)
            if not self._quiet:
                self._outbox.claim(claim.name, encode(claim), final=claim.state >= DEAD)
            if known != claim.state:
                self._changed(peer)
        elif (claim.incarnation, claim.state) == (peer.incarnation, SUSPECT) and self._confirmed(peer, claim.by):
            self._outbox.claim(claim.name, encode(claim), final=False)
            self._settle()

    def _too_early(self, peer: Peer, claim: Claim, now_s: float) -> bool:
        """Whether a node that others call dead has not had its time with us; see that it gets the shortest."""
        self.claim(Claim(claim.name, claim.incarnation, SUSPECT, claim.by), now_s)
        if peer.suspicion is None or claim.incarnation < peer.incarnation:
            return True
        peer.suspicion.hurry()
        self._settle()
        return now_s < peer.suspicion.deadline_s

    @staticmethod
    def _confirmed(peer: Peer, by: str) -> bool:
        return peer.suspicion is not None and peer.suspicion.confirm(by)

    def unanswered(self, peer: Peer, now_s: float) -> None:
        """A node did not answer our own probe."""
        if peer.state == ALIVE:
            self._counters.suspicions += 1
        if peer.state <= SUSPECT and self._roster.get(peer.info.name) is peer:
            self.claim(Claim(peer.info.name, peer.incarnation, SUSPECT, self.info.name), now_s)

    def take_over(self, records: Sequence[Record], source: str, now_s: float) -> None:
        """Take what another node believes. If we knew nobody before, it is not passed on: all others know it."""
        self._quiet = not self._roster.live
        for record in records:
            self._take_over(record, source, now_s)
        self._quiet = False

    def _take_over(self, record: Record, source: str, now_s: float) -> None:
        name, state = record.info.name, record.state
        if name == self.info.name:
            if state == ALIVE or source == name:
                self._own_echo(record.info_incarnation, record.info)
            else:
                self._refute(record.incarnation)
            return
        peer = self._roster.get(name)
        if peer is None and state >= DEAD:
            return
        self.alive(Alive(record.info_incarnation, record.info), now_s)
        if state == ALIVE:
            return
        self.claim(Claim(name, record.incarnation, state, source), now_s)

    # Time.

    def bury(self, now_s: float) -> None:
        """Declare those dead whose time is over."""
        for peer in list(self._suspects.values()):
            if peer.suspicion is not None and now_s >= peer.suspicion.deadline_s:
                self._counters.deaths += 1
                self.claim(Claim(peer.info.name, peer.incarnation, DEAD, self.info.name), now_s)
        self._settle()

    def postpone(self, seconds: float) -> None:
        """Give all suspects the time in which we could not have heard them."""
        for peer in self._suspects.values():
            if peer.suspicion is not None:
                peer.suspicion.postpone(seconds)
        self._settle()

    def forget(self, now_s: float) -> None:
        """Forget the nodes that have been dead for long."""
        for peer in [peer for peer in self._roster if peer.state >= DEAD]:
            if now_s - peer.since_s >= self._config.forget_s:
                self._roster.remove(peer)
                self._outbox.forget(peer.info.name)
                self._changed(peer)

    def _begin_suspicion(self, peer: Peer, by: str, now_s: float) -> None:
        self._set(peer, SUSPECT, now_s)
        peer.suspicion = Suspicion(by, self._roster.live + 1, self._config, now_s)
        self._suspects[peer.info.name] = peer
        self._settle()

    def _set(self, peer: Peer, state: MemberState, now_s: float) -> None:
        peer.suspicion = None
        if self._suspects.pop(peer.info.name, None) is not None:
            self._settle()
        self._roster.change(peer, state, now_s)

    def _settle(self) -> None:
        deadlines = (peer.suspicion.deadline_s for peer in self._suspects.values() if peer.suspicion is not None)
        self.due_s = min(deadlines, default=NEVER)

    def about(self, peer: Peer) -> bytes | None:
        """The claims about the node itself, which it should hear first."""
        if peer.state == ALIVE:
            return None
        return encode(Claim(peer.info.name, peer.incarnation, peer.state, self.info.name))

    def everything(self, *, left: bool) -> list[Record]:
        """All that we believe, ourselves first."""
        own = Record(self.info, self.incarnation, self.incarnation, LEFT if left else ALIVE)
        return [
            own,
            *(Record(peer.info, peer.info_incarnation, peer.incarnation, peer.state) for peer in self._roster),
        ]
