"""The effects that the membership protocol asks its shell for."""

from __future__ import annotations

import msgspec

from luxfuse.core.members import Address, Member


class Send(msgspec.Struct, frozen=True):
    """Send a datagram."""

    address: Address
    payload: bytes


class PushPull(msgspec.Struct, frozen=True):
    """Send ``push_pull()`` to this address, and ``merge`` its answer; it merges ours before it answers."""

    address: Address


class Changed(msgspec.Struct, frozen=True):
    """A node came, changed what it says of itself or its state, or was forgotten (as it was, and no longer a member)."""

    member: Member


class Heard(msgspec.Struct, frozen=True):
    """A broadcast of another node, delivered once each, or a word of it to us alone."""

    origin: str
    payload: bytes


Effect = Send | PushPull | Changed | Heard
