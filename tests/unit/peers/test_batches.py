"""Small files go together once all threads have something to do."""

from __future__ import annotations

import threading

import pytest
import trio

from luxfuse.core.members import NodeInfo
from luxfuse.errors import PeerFailed, PeerRefused, Refusal, StoreFull
from luxfuse.peers import batches as module
from luxfuse.peers.batches import Batches
from luxfuse.peers.client import Fetched
from tests.support.peer_nodes import SERVER, content, running, want

NODE = NodeInfo(SERVER, "127.0.0.1", 1)


class Asked:
    """In place of a client: waits until the test opens the gate, and notes the wants of each request."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.gate = threading.Event()
        self.error: Exception | None = None

    def fetch(self, member, wants, *, fetch, timeout_s):
        self.requests.append([each.key for each in wants])
        assert self.gate.wait(120)
        if self.error is not None:
            raise self.error
        return [
            PeerRefused(Refusal.NOT_HERE) if each.key == "missing" else Fetched(memoryview(each.key.encode()), (1,))
            for each in wants
        ]


def itself(found: Fetched) -> Fetched:
    """Keep pages by handing them on."""
    return found


class Outcomes:
    """What came, by key."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}

    def of(self, key: str):
        return lambda result, error: self.found.update({key: result or error})

    async def wait(self, count: int) -> None:
        with trio.fail_after(60):
            while len(self.found) < count:
                await trio.sleep(0.005)


async def filled(asked: Asked, batches: Batches, outcomes: Outcomes) -> None:
    """Give each thread something to do."""
    for number in range(2):
        batches.submit(NODE, want(f"first {number}", 10), itself, outcomes.of(f"first {number}"), fetch=False, timeout_s=60)
    with trio.fail_after(60):
        while len(asked.requests) < 2:
            await trio.sleep(0.005)


async def test_wants_go_together_when_there_are_more_than_threads() -> None:
    asked, outcomes = Asked(), Outcomes()
    batches = Batches(asked, threads=2)
    await filled(asked, batches, outcomes)
    for number in range(20):
        batches.submit(NODE, want(str(number), 10), itself, outcomes.of(str(number)), fetch=False, timeout_s=60)
    batches.submit(NODE, want("missing", 10), itself, outcomes.of("missing"), fetch=False, timeout_s=60)
    batches.submit(NODE, want("fetch", 10), itself, outcomes.of("fetch"), fetch=True, timeout_s=60)
    batches.submit(NODE, want("large", 2 << 20), itself, outcomes.of("large"), fetch=False, timeout_s=60)
    asked.gate.set()
    await outcomes.wait(25)
    assert sorted(asked.requests[:2]) == [["first 0"], ["first 1"]]
    assert sorted(map(len, asked.requests[2:])) == [1, 1, 5, 16]
    assert ["large"] in asked.requests
    assert ["fetch"] in asked.requests
    assert isinstance(outcomes.found.pop("missing"), PeerRefused)
    assert all(isinstance(each, Fetched) and each.data == key.encode() for key, each in outcomes.found.items())
    batches.close()


@pytest.mark.expected_logs("could not be fetched")
async def test_an_error_is_that_of_all_in_the_request() -> None:
    asked, outcomes = Asked(), Outcomes()
    batches = Batches(asked, threads=2)
    await filled(asked, batches, outcomes)
    asked.error = PeerFailed("gone")
    asked.gate.set()
    await outcomes.wait(2)
    assert list(outcomes.found.values()) == [asked.error] * 2
    asked.error = ZeroDivisionError()
    batches.submit(NODE, want("a", 10), itself, outcomes.of("a"), fetch=False, timeout_s=60)
    await outcomes.wait(3)
    assert isinstance(outcomes.found["a"], PeerFailed)
    batches.submit(NODE, want("late", 10), itself, outcomes.of("late"), fetch=False, timeout_s=-1)
    await outcomes.wait(4)
    assert "not asked in time" in str(outcomes.found["late"])
    batches.close()


async def test_what_cannot_be_kept_fails_alone() -> None:
    asked, outcomes = Asked(), Outcomes()
    batches = Batches(asked, threads=2)
    await filled(asked, batches, outcomes)

    def full(_found: Fetched) -> None:
        raise StoreFull("no room")

    batches.submit(NODE, want("a", 10), full, outcomes.of("a"), fetch=False, timeout_s=60)
    batches.submit(NODE, want("b", 10), itself, outcomes.of("b"), fetch=False, timeout_s=60)
    asked.gate.set()
    await outcomes.wait(4)
    assert asked.requests[2:] == [["a", "b"]]
    assert isinstance(outcomes.found["a"], StoreFull)
    assert isinstance(outcomes.found["b"], Fetched)
    batches.close()


async def test_too_many_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    asked, outcomes = Asked(), Outcomes()
    batches = Batches(asked, threads=2)
    await filled(asked, batches, outcomes)
    batches.submit(NODE, want("a", 10), itself, outcomes.of("a"), fetch=False, timeout_s=60)
    assert isinstance(outcomes.found["a"], PeerRefused)
    asked.gate.set()
    await outcomes.wait(3)
    batches.close()


async def test_from_a_node() -> None:
    objects = {str(number): content(5000 + number, seed=number) for number in range(100)}
    outcomes = Outcomes()
    async with running(objects, tls=True, in_files=True) as node:
        batches = Batches(node.client, threads=2)
        for key, data in objects.items():
            batches.submit(node.info, want(key, len(data)), itself, outcomes.of(key), fetch=False, timeout_s=60)
        await outcomes.wait(100)
        batches.close()
    assert {key: bytes(each.data) for key, each in outcomes.found.items()} == objects
    assert node.server.counters.requests < 30


async def test_what_can_wait_lets_others_go_first() -> None:
    asked, outcomes = Asked(), Outcomes()
    batches = Batches(asked, threads=1)
    batches.submit(NODE, want("first", 10), itself, outcomes.of("first"), fetch=False, timeout_s=60)
    with trio.fail_after(60):
        while not asked.requests:
            await trio.sleep(0.005)
    for key, later in (("load 1", True), ("load 2", True), ("read", False)):
        batches.submit(NODE, want(key, 10), itself, outcomes.of(key), fetch=False, timeout_s=60, later=later)
    asked.gate.set()
    await outcomes.wait(4)
    assert asked.requests == [["first"], ["read"], ["load 1", "load 2"]]
    batches.close()
