"""The membership as the other parts of a node use it."""

from __future__ import annotations

from typing import Protocol

from luxfuse.core.members import Member, MemberState, NodeInfo


class Members(Protocol):
    """The nodes of a cluster. `luxfuse.peers.membership.Membership` has them."""

    @property
    def info(self) -> NodeInfo:
        """This node."""

    def alive(self) -> list[Member]:
        """Return the other nodes that are believed to live."""

    def member(self, name: str) -> Member | None:
        """Return another node by its name; None if nothing is known of it."""

    def broadcast(self, payload: bytes) -> None:
        """Gossip to all."""

    def notify(self, name: str, payload: bytes) -> None:
        """Send one datagram to a node."""


def present(member: Member | None) -> bool:
    """Whether a node is here, for all that is known."""
    return member is not None and member.state in (MemberState.ALIVE, MemberState.SUSPECT)
