"""What one node says to have changed reaches the others, also after a new start."""

from __future__ import annotations

import trio

from luxfuse.cluster.announcements import Announcements
from luxfuse.core.members import Member
from luxfuse.core.notices import Change, ChangeKind
from tests.support.harness import until

SOURCE = bytes(range(8))


class Medium:
    """Gossip that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[bytes] = []

    def alive(self) -> list[Member]:
        return []

    def broadcast(self, payload: bytes) -> None:
        self.said.append(payload)

    def notify(self, name: str, payload: bytes) -> None:
        self.said.append(payload)


class Told:
    """A listener."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def changed_elsewhere(self, change: Change) -> None:
        self.changes.append(change)


async def say(medium: Medium, key: str) -> None:
    """Let a node start, change a key, and end."""
    async with trio.open_nursery() as nursery:
        node = Announcements(medium, lambda _source: None)
        nursery.start_soon(node.run)
        said = len(medium.said)
        node.changed(SOURCE, key, gone=False)
        await until(lambda: len(medium.said) > said)
        nursery.cancel_scope.cancel()


async def test_a_node_is_heard_after_a_new_start_too() -> None:
    medium, told = Medium(), Told()
    other = Announcements(Medium(), lambda source: told if source == SOURCE else None)
    for key in ("a", "b"):
        await say(medium, key)
    for payload in medium.said * 2:
        other.heard("n1", payload)
    assert told.changes == [Change("a", ChangeKind.WRITTEN), Change("b", ChangeKind.WRITTEN)]
    assert other.received == 2
