"""Which node is the home of a range of an object: weighted rendezvous hashing, the same on every node.

Each node gets a score for the range, ``weight / -ln(h)`` with ``h`` uniform in (0, 1) from a hash of both; the highest is
the home. So a node has the share of all ranges that its weight has of all weights, and when one comes or goes, only what it
gets or had moves. The hash is fixed: nodes that computed it differently would look for pages in the wrong places.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

_MASK = (1 << 64) - 1


def home(oid: bytes, range_number: int, nodes: Sequence[tuple[str, int]]) -> str:
    """Return the name of the node that is responsible for a range; ``nodes``: names and weights, at least one."""
    key = _hash(oid + range_number.to_bytes(8, "big"))
    return max(nodes, key=lambda node: (_score(key, *node), node[0]))[0]


def ranked(oid: bytes, range_number: int, nodes: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of all nodes, the home first; each next one is the home were those before it gone."""
    key = _hash(oid + range_number.to_bytes(8, "big"))
    return [name for name, _ in sorted(nodes, key=lambda node: (_score(key, *node), node[0]), reverse=True)]


def _score(key: int, name: str, weight: int) -> float:
    return max(1, weight) / -math.log((_mixed(key ^ _name_hash(name)) + 0.5) / 2**64)


def _mixed(value: int) -> int:
    """Spread 64 bits so that each bit of the input changes half of those of the output (the finaliser of SplitMix64)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=4096)
def _name_hash(name: str) -> int:
    return _hash(name.encode())
