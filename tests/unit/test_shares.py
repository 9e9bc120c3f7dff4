"""How many descriptors there are for what."""

from __future__ import annotations

import resource

import pytest

from luxfuse.shares import limit, shares_of

OWN = 40
"""Those that the daemon of one mount takes by itself: databases, logs, device, sockets, event loop."""


@pytest.mark.parametrize("most", [150, 256, 500, 1024, 4096, 1 << 16, 1 << 20])
def test_all_shares_fit(most: int) -> None:
    shares = shares_of(most)
    by_requests = 4 * min(64, shares.requests)
    assert shares.staged + shares.spares + shares.registered + shares.lent + by_requests + OWN <= most


def test_where_there_are_many_nothing_is_held_back() -> None:
    assert shares_of(1 << 20) == (4096, 32, 16_384, (1 << 20) // 5, 1 << 16)
    assert shares_of(resource.RLIM_INFINITY).registered == 16_384
    assert shares_of(1024).requests == 64


def test_the_limit_is_the_one_of_now() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        assert limit() == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
