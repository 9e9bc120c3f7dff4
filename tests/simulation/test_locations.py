"""Whatever happens on the way, in the end all nodes know what each holds: directories converge."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luxfuse.cluster.exchange import from_log, from_table, question, take
from luxfuse.core.holding_messages import Since, decode_answer, decode_head, decode_request, encode, encode_head
from luxfuse.core.holdings import Follower, Holdings, HoldingsLog, Mark, entry_of
from luxfuse.core.pulls import QUIET_S, Pulls
from luxfuse.index import locations as index
from luxfuse.index.locations import LocationTable
from tests.simulation.network import Address, Host, Link, Network

TICK_S = 0.2
KEPT = 40
"""Changes that a log keeps here, so that nodes often have to compare sums."""
PAGE = 25
"""Entries of one answer here, so that content comes in several."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BREATH_S", 0.0)
    monkeypatch.setattr("luxfuse.cluster.exchange.MOST_ENTRIES", PAGE)


@dataclass(frozen=True)
class Ask:
    """A question for a node."""

    name: str
    body: bytes


@dataclass(frozen=True)
class Tell:
    """A head for all."""

    payload: bytes


class Directory:
    """The table of one node, kept up to date as by `luxfuse.cluster.locations.Locations`, without tasks and threads."""

    def __init__(self, name: str, table: LocationTable, really: set[bytes], names: list[str], log_id: bytes, now_s: float):
        self.name = name
        self.table = table
        self.really = really
        self.names = [other for other in names if other != name]
        self.holdings = Holdings(HoldingsLog(log_id, KEPT), table.sums())
        self.pulls = Pulls(now_s)
        self.pulls.members(self.names, now_s)
        self.followers: dict[str, Follower] = {}
        self.next_s = now_s
        self.effects: list[Any] = []
        self.told = Mark()
        self.compared = 0
        ours = set(table.own_after(b"", b"", 1 << 30))
        self.change([(entry, entry in really) for entry in sorted(ours ^ really)])

    def change(self, changes: list[tuple[bytes, bool]]) -> None:
        self.holdings.note(self.table.apply_own(changes))

    def tick(self, now_s: float) -> None:
        for name in self.pulls.take(now_s, 4):
            self.ask(name)
        head = Mark(self.holdings.log.log_id, self.holdings.log.sequence)
        if head != self.told:
            self.told = head
            self.effects.append(Tell(encode_head(head)))
        self.next_s = now_s + TICK_S

    def ask(self, name: str) -> None:
        if name not in self.followers:
            node = self.table.node(name)
            self.followers[name] = Follower(node.mark if node is not None else Mark())
        self.effects.append(Ask(name, encode(question(self.followers[name]))))

    def receive(self, message: bytes, sender: Address, now_s: float) -> None:
        self.pulls.heard(sender[0], decode_head(message))

    def take(self) -> list[Any]:
        effects, self.effects = self.effects, []
        return effects

    def answer(self, body: bytes) -> bytes:
        request = decode_request(body)
        if isinstance(request, Since):
            return encode(from_log(self.holdings, request))
        return encode(from_table(self.table, self.holdings.log.log_id, request))

    def answered(self, name: str, data: bytes, now_s: float) -> None:
        follower = self.followers[name]
        answer = decode_answer(data)
        self.compared += hasattr(answer, "sums")
        if take(self.table, name, follower, answer):
            self.ask(name)
        else:
            self.pulls.pulled(name, follower.mark, now_s, more=False)


class World:
    """Nodes that change what they hold, all the time, at random."""

    def __init__(self, path: Path, seed: int, count: int, link: Link) -> None:
        self.path = path
        self.network = Network(seed, self._perform, link)
        self.rng = self.network.rng
        self.names = [f"n{number}" for number in range(count)]
        self.really: dict[str, set[bytes]] = {name: set() for name in self.names}
        self.universe = [entry_of(self.rng.randbytes(16), self.rng.randrange(3)) for _ in range(150)]
        self.lives = 0
        self.hosts = {name: self._add(name) for name in self.names}

    def _add(self, name: str) -> Host:
        return self.network.add((name, 1), lambda now_s: self._directory(name, now_s))

    def _directory(self, name: str, now_s: float) -> Directory:
        table = LocationTable(self.path / name)
        return Directory(name, table, self.really[name], self.names, self.rng.randbytes(8), now_s)

    def _perform(self, host: Host, effect: Ask | Tell) -> None:
        if isinstance(effect, Tell):
            for name in host.machine.names:
                host.send((name, 1), effect.payload)
            return
        asked = effect.name
        host.request(
            (asked, 1),
            effect.body,
            lambda other, body: other.machine.answer(body),
            lambda one, data: one.machine.answered(asked, data, one.now_s),
            lambda one: one.machine.pulls.failed(asked, one.now_s),
        )

    def churn(self, changes: int) -> None:
        """A node takes in and drops some."""
        host = self.hosts[self.rng.choice(self.names)]
        really = self.really[host.address[0]]
        made = []
        for entry in self.rng.choices(self.universe, k=changes):
            held = self.rng.random() < 0.6
            (really.add if held else really.discard)(entry)
            made.append((entry, held))
        if host.runs:
            host.call(lambda directory, _: directory.change(made))

    def stop(self, name: str) -> None:
        host = self.hosts[name]
        self.network.crash(host)
        host.machine.table._file._env.close()

    def start(self, name: str) -> None:
        self.network.restart(self.hosts[name])

    def copy(self, name: str) -> Path:
        self.lives += 1
        copied = self.path / f"copy{self.lives}"
        shutil.copytree(self.path / name, copied, ignore=shutil.ignore_patterns("lock.mdb"))
        return copied

    def put_back(self, name: str, copied: Path) -> None:
        shutil.rmtree(self.path / name)
        shutil.copytree(copied, self.path / name)

    def wrong(self) -> list[str]:
        """Who knows what of whom that is not so."""
        found = []
        for name, host in self.hosts.items():
            table = host.machine.table
            known: dict[str, set[bytes]] = {other: set() for other in self.names}
            for entry in self.universe:
                for other in table.holders(entry):
                    known[other].add(entry)
            known[name] = set(table.own_after(b"", b"", 1 << 30))
            for other in self.names:
                theirs = self.hosts[other].machine.holdings
                if known[other] != self.really[other]:
                    found.append(f"{name} of {other}: {len(known[other] ^ self.really[other])} entries")
                elif other != name and table.sums(other).differing(theirs.sums):
                    found.append(f"{name} of {other}: sums")
        return found

    def converges(self) -> None:
        self.network.heal()
        assert self.network.run(4 * QUIET_S, until=lambda: not self.wrong(), every_s=5), self.wrong()

    def close(self) -> None:
        for host in self.hosts.values():
            if host.up:
                host.machine.table.close()


def world(path: Path, seed: int, count: int = 4, loss: float = 0.3) -> World:
    return World(path, seed, count, Link(loss=loss, delay_s=0.01, jitter_s=0.2, duplication=0.1))


@pytest.mark.parametrize("seed", range(6))
def test_directories_converge_after_loss_restarts_partitions_and_lost_commits(tmp_path: Path, seed: int) -> None:
    here = world(tmp_path, seed)
    network, rng = here.network, here.rng
    down: str | None = None
    copied: tuple[str, Path] | None = None
    for _ in range(150):
        here.churn(rng.choice((1, 3, 10, 60)))
        network.run(rng.expovariate(1.0))
        event = rng.random()
        if event < 0.1:
            network.split([list(here.hosts.values())[:2]])
        elif event < 0.2:
            network.heal()
        elif event < 0.3 and down is None:
            down = rng.choice(here.names)
            here.stop(down)
        elif event < 0.5 and down is not None:
            if copied is not None and copied[0] == down and rng.random() < 0.5:
                here.put_back(*copied)
            elif rng.random() < 0.2:
                shutil.rmtree(tmp_path / down)
            here.start(down)
            down = None
        elif event < 0.6:
            who = rng.choice(here.names)
            copied = who, here.copy(who)
    if down is not None:
        here.start(down)
    here.converges()
    here.close()


def test_a_node_that_follows_is_told_changes_only(tmp_path: Path) -> None:
    here = world(tmp_path, 7, count=2, loss=0)
    here.converges()
    compared = sum(host.machine.compared for host in here.hosts.values())
    for _ in range(20):
        here.churn(2)
        here.network.run(3)
    assert not here.wrong()
    assert sum(host.machine.compared for host in here.hosts.values()) == compared
    here.close()


def test_a_lost_tail_costs_the_buckets_that_differ(tmp_path: Path) -> None:
    here = world(tmp_path, 8, count=2, loss=0)
    for _ in range(20):
        here.churn(10)
    here.converges()
    first, second = here.names
    copied = here.copy(first)
    changed = random.Random(1).sample(sorted(here.really[second]), 2)
    here.really[second] -= set(changed)
    here.hosts[second].call(lambda directory, _: directory.change([(entry, False) for entry in changed]))
    here.converges()
    here.stop(first)
    here.put_back(first, copied)
    here.stop(second)
    here.start(second)
    before = here.hosts[second].exchanged_bytes
    here.start(first)
    here.converges()
    sums_bytes = 2 * 8 * 4096
    assert here.hosts[second].exchanged_bytes - before < sums_bytes + 1000
    here.close()
