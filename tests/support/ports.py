"""Ports for servers of tests: none that the kernel may give to a connection, and each for one process of tests at a time.

A port that was free a moment ago may be somebody else's when a server takes it. And a client that goes on asking a closed
port of the kernel's range may be given that very port, and be connected with itself.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 10_000
_random = random.SystemRandom()  # not what a test repeats by its seed
_claims: list[socket.socket] = []


def _candidates() -> range:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return max(range(FIRST, low), range(high + 1, 65_536), key=len)


def claim_port() -> tuple[int, socket.socket]:
    """Return a free loopback port, and what makes it ours until that is closed."""
    candidates = _candidates()
    while True:
        port, claim = _random.choice(candidates), socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0luxfuse-tests-{port}")  # goes with its process, whatever ends that
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        return port, claim


def free_port() -> int:
    """Return a free loopback port that is ours as long as this process lives."""
    port, claim = claim_port()
    _claims.append(claim)
    return port
