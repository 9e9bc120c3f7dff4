"""A cluster of membership machines on the simulated network, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luxfuse.core.members import MemberState, NodeInfo
from luxfuse.core.swim.messages import Record, State, write_state
from luxfuse.core.swim.swim import Changed, Heard, PushPull, Send, Swim, SwimConfig
from tests.simulation.network import Clock, Host, Link, Network

INCARNATION = 1_700_000_000


class Cluster:
    """``count`` nodes with clocks that differ by days and by 100 millionths.

    They all join by the first one at the same moment; or, ``acquainted``, they know each other already, which is quicker.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        link: Link | None = None,
        *,
        acquainted: bool = False,
        config: SwimConfig | None = None,
    ) -> None:
        self.config = config or SwimConfig()
        self.network = Network(seed, self._perform, link)
        self.hosts: list[Host] = []
        self.deaths: list[tuple[float, str, str]] = []
        """When who declared whom dead."""
        self.heard: dict[bytes, list[str]] = {}
        """Broadcasts, and who heard them."""
        for number in range(count):
            self.add(number, join=not acquainted)
        if acquainted:
            records = [Record(info(number), INCARNATION, INCARNATION, MemberState.ALIVE) for number in range(count)]
            for host in self.hosts:
                state = write_state(State(name_of(host), records))
                host.call(lambda swim, now_s, state=state: swim.merge(state, now_s))

    def add(self, number: int, *, join: bool = True) -> Host:
        rng = self.network.rng
        clock = Clock(rng.uniform(0, 1e6), 1 + rng.uniform(-1e-4, 1e-4))
        host = self.network.add(address(number), lambda now_s: self.swim(number, now_s), clock)
        self.hosts.append(host)
        if join:
            host.call(lambda swim, now_s: swim.join([address(0)], now_s))
        return host

    def swim(self, number: int, now_s: float, incarnation: int | None = None) -> Swim:
        """A machine for the node of this number; restarted, it has the time as its incarnation."""
        if incarnation is None:
            incarnation = INCARNATION + int(self.network.now_s)
        return Swim(info(number), incarnation=incarnation, config=self.config, rng=self.network.rng, now_s=now_s)

    def restart(self, host: Host) -> None:
        self.network.restart(host)
        host.call(lambda swim, now_s: swim.join([address(0), address(1)], now_s))

    def _perform(self, host: Host, effect: Any) -> None:
        if isinstance(effect, Send):
            host.send(effect.address, effect.payload)
        elif isinstance(effect, PushPull):
            host.request(effect.address, host.machine.push_pull(), _serve, _take)
        elif isinstance(effect, Changed):
            if effect.member.state == MemberState.DEAD and host.machine.member(effect.member.info.name) is not None:
                self.deaths.append((self.network.now_s, name_of(host), effect.member.info.name))
        elif isinstance(effect, Heard):
            self.heard.setdefault(effect.payload, []).append(name_of(host))

    # What is asked.

    def settle(self, seconds: float = 60) -> None:
        """Let all come to know each other."""
        assert self.network.run(seconds, self.agree), self.disagreement()
        self.network.run(5)

    def running(self) -> list[Host]:
        return [host for host in self.hosts if host.runs]

    def agree(self) -> bool:
        """Whether each node that runs believes exactly all that run to be alive."""
        names = {name_of(host) for host in self.running()}
        return all(self._alive(host) | {name_of(host)} == names for host in self.running())

    @staticmethod
    def _alive(host: Host) -> set[str]:
        return {member.info.name for member in host.machine.members() if member.state == MemberState.ALIVE}

    def disagreement(self) -> str:
        names = {name_of(host) for host in self.running()}
        wrong = {name_of(host): names ^ (self._alive(host) | {name_of(host)}) for host in self.running()}
        told = "; ".join(f"{name}: {sorted(who)}" for name, who in wrong.items() if who)
        return f"at {self.network.now_s:.1f} s some are wrong about: {told}"

    def all_believe(self, subject: Host, states: Iterable[MemberState]) -> bool:
        """Whether all others that run believe this one to be in one of these states."""
        wanted = set(states)
        name = name_of(subject)
        members = [host.machine.member(name) for host in self.running() if host is not subject]
        return all(member is not None and member.state in wanted for member in members)


def _serve(host: Host, body: bytes) -> bytes:
    host.machine.merge(body, host.now_s)
    return host.machine.push_pull()


def _take(host: Host, answer: bytes) -> None:
    host.machine.merge(answer, host.now_s)


def address(number: int) -> tuple[str, int]:
    return f"10.0.{number // 256}.{number % 256}", 7400


def info(number: int, **changes: Any) -> NodeInfo:
    host, port = address(number)
    fields = {"host": host, "port": port, "label": f"node{number}:/mnt/data", "rack": f"r{number % 8}", "version": "0.9.0"}
    return NodeInfo(f"{number:016x}", sources=(b"s" * 8,), **(fields | changes))


def name_of(host: Host) -> str:
    *_, high, low = host.address[0].split(".")
    return f"{int(high) * 256 + int(low):016x}"
