"""The nouns of a cluster that several layers share: nodes, their states, and what they ask each other for."""

from __future__ import annotations

import enum

import msgspec

RANGE_PAGES = 64
"""Pages of one range: nodes say of ranges of 64 MiB of an object that they hold them, and each range has a home."""
OBJECT_HASH_BYTES = 10
"""So much of an object's 16-byte id names it between nodes: 1e9 objects collide with a probability of 4e-7."""

Address = tuple[str, int]
"""Host (an address or a name) and port; the same number for UDP and TCP."""


class MemberState(enum.IntEnum):
    """The state that a node is believed to be in."""

    ALIVE = 0
    SUSPECT = 1
    """It did not answer; it is treated as alive until it had the time to say so."""
    DEAD = 2
    LEFT = 3
    """It said good-bye."""


class NodeInfo(msgspec.Struct, frozen=True, array_like=True):
    """The description of a node by itself; encoded it must not exceed 512 bytes.

    ``name``: 16 hexadecimal digits, made once and kept in the state directory. ``label``: for people, as host and
    mountpoint. ``weight``: the capacity of its cache in GiB, at least 1. ``sources``: the ids (8 bytes each) of the
    under-stores that it serves.
    """

    name: str
    host: str
    port: int
    label: str = ""
    rack: str = ""
    weight: int = 1
    version: str = ""
    sources: tuple[bytes, ...] = ()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.host, self.port


class Member(msgspec.Struct, frozen=True):
    """A node as another one knows it. ``since_s``: when it came into this state, by the observer's clock.

    ``round_trip_s``: smoothed, measured by probes; None before the first.
    """

    info: NodeInfo
    state: MemberState
    incarnation: int
    since_s: float
    round_trip_s: float | None = None


class Want(msgspec.Struct, frozen=True, array_like=True):
    """Pages of one object version that a node asks another one for: ``count`` pages from ``first`` on.

    ``source``: id of the under-store, 8 bytes. ``size``: of the object, in bytes.
    """

    source: bytes
    key: str
    version: str
    size: int
    first: int
    count: int
