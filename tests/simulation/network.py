"""A network of machines without I/O, in virtual time: events in, events out, the same from the same seed.

A machine is what lives in ``luxfuse/core``: it has ``next_s`` (when ``tick`` is due), ``tick(now_s)``,
``receive(message, sender, now_s)`` and ``take()``, which returns what it wants done. What those effects mean is said by
whoever builds the network, in a function that gets the host and one effect:

    def perform(host: Host, effect: object) -> None:
        if isinstance(effect, Send):
            host.send(effect.address, effect.payload)
        elif isinstance(effect, PushPull):
            host.request(effect.address, host.machine.push_pull(), serve, take_answer)

    network = Network(seed=1, perform=perform, link=Link(loss=0.05))
    host = network.add(("n0", 1), make=lambda now_s: Swim(...), clock=Clock(offset_s=500, rate=1.0001))
    network.run(60)                                # seconds of virtual time
    network.at(90, network.crash, host)            # or later
    network.split([hosts[:5], hosts[5:]]); network.heal()

``host.send`` is UDP: lost, delayed, doubled and overtaken as the ``Link`` says. ``host.request`` is a request over TCP: it
arrives and is answered, or fails silently if one side cannot reach the other, is down or paused. Every
host has its own clock; what a machine is told is that clock's time. After calling a machine's other methods, call
``host.stir()``, or do it through ``host.call``, so that its effects are performed and its next tick is known.

All is reached through ``network.rng``: a run is repeated by its seed. One event costs some microseconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Address = tuple[str, int]
INBOX = 256
"""Datagrams that wait in the socket of a paused process; further ones are lost."""


class Machine(Protocol):
    """What can live on a host."""

    next_s: float

    def tick(self, now_s: float) -> None: ...

    def receive(self, message: bytes, sender: Address, now_s: float) -> None: ...

    def take(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Link:
    """How datagrams fare from one host to another; ``jitter_s`` is the mean of an exponential delay on top."""

    loss: float = 0.0
    delay_s: float = 0.0002
    jitter_s: float = 0.0003
    duplication: float = 0.0
    up: bool = True


@dataclass(frozen=True)
class Clock:
    """A host's own monotonic clock: it starts anywhere, and runs a little too quick or too slow."""

    offset_s: float = 0.0
    rate: float = 1.0

    def local(self, true_s: float) -> float:
        return self.offset_s + self.rate * true_s

    def true(self, local_s: float) -> float:
        return (local_s - self.offset_s) / self.rate


class Host:
    """A machine, its clock, and its place in the network. ``sent``: datagrams and bytes; ``exchanged``: bytes over TCP."""

    def __init__(self, network: Network, address: Address, make: Callable[[float], Any], clock: Clock) -> None:
        self.network = network
        self.address = address
        self.clock = clock
        self.up = True
        self.paused = False
        self.group = 0
        self.sent_datagrams = self.sent_bytes = self.exchanged_bytes = 0
        self.largest_bytes = 0
        self.life = 0
        self._make = make
        self._inbox: list[tuple[Address, bytes]] = []
        self._wakes_s = float("inf")
        self.machine: Any = None

    @property
    def now_s(self) -> float:
        """By its own clock."""
        return self.clock.local(self.network.now_s)

    @property
    def runs(self) -> bool:
        return self.up and not self.paused

    def start(self, make: Callable[[float], Any] | None = None) -> None:
        self._make = make or self._make
        self.up, self.paused = True, False
        self.life += 1
        self._inbox.clear()
        self.machine = self._make(self.now_s)
        self.stir()

    def call(self, act: Callable[[Any, float], Any]) -> Any:
        """Do something with the machine, at its time, and what it then wants."""
        result = act(self.machine, self.now_s)
        self.stir()
        return result

    def stir(self) -> None:
        """Perform what the machine wants, and be called when it is due."""
        for effect in self.machine.take():
            self.network.perform(self, effect)
        due_s = self.clock.true(self.machine.next_s)
        if due_s < self._wakes_s:
            self._wakes_s = max(due_s, self.network.now_s)
            self.network.at(self._wakes_s, self._wake, self.life)

    def _wake(self, life: int) -> None:
        if life != self.life or self.network.now_s < self._wakes_s:
            return
        self._wakes_s = float("inf")
        if not self.runs:
            return
        now_s = self.now_s
        # The way to true time and back may lose the last digit.
        if now_s >= self.machine.next_s - 1e-9:
            self.machine.tick(max(now_s, self.machine.next_s))
        self.stir()

    def send(self, address: Address, message: bytes) -> None:
        """A datagram."""
        self.sent_datagrams += 1
        self.sent_bytes += len(message)
        self.largest_bytes = max(self.largest_bytes, len(message))
        self.network.deliver(self, address, message)

    def arrive(self, sender: Address, message: bytes) -> None:
        if self.paused and len(self._inbox) < INBOX:
            self._inbox.append((sender, message))
        if self.runs:
            self.machine.receive(message, sender, self.now_s)
            self.stir()

    def request(
        self,
        address: Address,
        body: bytes,
        serve: Callable[[Host, bytes], bytes],
        take_answer: Callable[[Host, bytes], None],
        failed: Callable[[Host], None] = lambda host: None,
    ) -> None:
        """A request over TCP: ``serve`` is called with the other host, then ``take_answer`` or ``failed`` with this one."""
        network, life = self.network, self.life
        other = network.hosts.get(address)
        delay_s = 2 * network.delay_s(self, other)

        def there() -> None:
            if other is None or not other.runs or not (network.reaches(self, other) and network.reaches(other, self)):
                network.at(network.now_s + network.request_timeout_s, back, None)
                return
            answer = serve(other, body)
            other.exchanged_bytes += len(answer)
            other.stir()
            network.at(network.now_s + delay_s / 2, back, answer)

        def back(answer: bytes | None) -> None:
            if not self.runs or life != self.life:
                return
            if answer is None:
                failed(self)
            else:
                take_answer(self, answer)
            self.stir()

        self.exchanged_bytes += len(body)
        network.at(network.now_s + delay_s, there)

    def resume(self) -> None:
        self.paused = False
        waiting, self._inbox = self._inbox, []
        # A process that wakes finds timers and datagrams at once, and may look at either first.
        self._wakes_s = self.network.now_s
        if self.network.rng.random() < 0.5:
            self._wake(self.life)
        for sender, message in waiting:
            self.machine.receive(message, sender, self.now_s)
        self._wakes_s = float("inf")
        self.stir()


class Network:
    """Hosts, what lies between them, and the time."""

    def __init__(
        self, seed: int, perform: Callable[[Host, Any], None], link: Link | None = None, request_timeout_s: float = 5.0
    ) -> None:
        self.rng = random.Random(seed)
        self.perform = perform
        self.link = link or Link()
        self.request_timeout_s = request_timeout_s
        self.now_s = 0.0
        self.events = 0
        self.hosts: dict[Address, Host] = {}
        self.links: dict[tuple[Address, Address], Link] = {}
        self._queue: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = 0

    def add(self, address: Address, make: Callable[[float], Any], clock: Clock | None = None) -> Host:
        """Start a host; ``make`` builds its machine, now and at each restart, and is given its time."""
        host = self.hosts[address] = Host(self, address, make, clock or Clock())
        host.start()
        return host

    # Time.

    def at(self, when_s: float, act: Callable[..., Any], *args: Any) -> None:
        """Do something at a time to come."""
        self._number += 1
        heapq.heappush(self._queue, (when_s, self._number, act, args))

    def run(self, seconds: float, until: Callable[[], bool] | None = None, every_s: float = 0.25) -> bool:
        """Let time pass; ``until`` is asked now and then, and ends it. Tells whether it did."""
        end_s = self.now_s + seconds
        asked_s = self.now_s + every_s
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= end_s:
            if until is not None and queue[0][0] >= asked_s:
                asked_s += every_s
                if until():
                    return True
            self.now_s, _, act, args = pop(queue)
            self.events += 1
            act(*args)
        self.now_s = end_s
        return until is not None and until()

    # Datagrams.

    def deliver(self, source: Host, address: Address, message: bytes) -> None:
        target = self.hosts.get(address)
        if target is None or not self.reaches(source, target):
            return
        link = self.links.get((source.address, address), self.link)
        rng = self.rng
        copies = 2 if link.duplication and rng.random() < link.duplication else 1
        for _ in range(copies):
            if not link.loss or rng.random() >= link.loss:
                delay_s = link.delay_s + (rng.expovariate(1 / link.jitter_s) if link.jitter_s else 0.0)
                self.at(self.now_s + delay_s, target.arrive, source.address, message)

    def delay_s(self, source: Host, target: Host | None) -> float:
        link = self.links.get((source.address, target.address), self.link) if target is not None else self.link
        return link.delay_s + link.jitter_s

    def reaches(self, source: Host, target: Host) -> bool:
        if source.group != target.group:
            return False
        return not self.links or self.links.get((source.address, target.address), self.link).up

    # Faults.

    def split(self, groups: Iterable[Iterable[Host]]) -> None:
        """Only hosts of one group reach each other; those that are in none make one of their own."""
        for host in self.hosts.values():
            host.group = 0
        for number, group in enumerate(groups, 1):
            for host in group:
                host.group = number

    def heal(self) -> None:
        """All reach all again, but for single links that are down."""
        self.split([])

    def crash(self, host: Host) -> None:
        """The process is gone, without a word."""
        host.up = False

    def restart(self, host: Host, make: Callable[[float], Any] | None = None) -> None:
        """It starts again, with nothing but what ``make`` gives it."""
        host.start(make)

    def pause(self, host: Host, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        host.paused = True
        self.at(self.now_s + seconds, host.resume)
