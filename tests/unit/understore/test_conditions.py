"""Whether writes are conditional at a server that has refused what is as expected."""

from __future__ import annotations

import time

import pytest

from luxfuse.core.vain import PAUSE_S
from luxfuse.types import ABSENT
from luxfuse.understore.conditions import Conditions


@pytest.mark.expected_logs("no conditional writes")
def test_only_what_was_refused_tells_by_success_that_the_server_compares_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceph 16 and Swift each compare versions in one way of writing, and not in another."""
    now_s = 1e6
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    conditions = Conditions()
    for pause_s in (PAUSE_S, 2 * PAUSE_S, PAUSE_S):
        conditions.pause("complete_multipart_upload")
        assert not conditions.are_made
        now_s += pause_s - 1
        assert not conditions.are_made
        now_s += 1
        assert conditions.are_made
        conditions.met("put_object", '"v"')
        conditions.met("complete_multipart_upload", ABSENT)
        if pause_s > PAUSE_S:
            conditions.met("complete_multipart_upload", '"v"')
