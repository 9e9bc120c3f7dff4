from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.notices import MOST_BYTES, NOTICE, SINGLY, Change, ChangeKind, Heard, coalesce, encode

SOURCE = bytes(range(8))


def test_the_last_change_of_a_key_counts() -> None:
    assert coalesce([("a/b", False), ("a/b", True), ("c", False)]) == [
        Change("a/b", ChangeKind.GONE),
        Change("c", ChangeKind.WRITTEN),
    ]


def test_many_changes_in_a_directory_become_one() -> None:
    many = [(f"d/{n}", False) for n in range(SINGLY + 1)]
    assert coalesce([*many, ("d/e/x", True), ("d/", False)]) == [
        Change("d/", ChangeKind.BELOW),
        Change("d/e/x", ChangeKind.GONE),
        Change("d/", ChangeKind.WRITTEN),
    ]


@given(st.lists(st.text(min_size=1, max_size=300), unique=True, max_size=30))
def test_what_is_said_is_heard_once_and_fits(keys: list[str]) -> None:
    changes = [Change(key, ChangeKind.WRITTEN) for key in keys]
    payloads = list(encode(7, SOURCE, changes))
    assert all(len(payload) <= MOST_BYTES for payload in payloads)
    heard = Heard()
    notices = [heard.take("n1", payload) for payload in payloads]
    short = [change for change in changes if len(change.key.encode()) + 40 <= MOST_BYTES]
    assert [change for notice in notices if notice for change in notice.changes] == short
    assert all(notice is None or notice.source == SOURCE for notice in notices)
    assert [heard.take("n1", payload) for payload in payloads] == [None] * len(payloads)
    assert all(heard.take("n2", payload) for payload in payloads)


def test_a_key_that_is_too_long_is_left_out() -> None:
    assert len(list(encode(0, SOURCE, [Change("k" * 1000, ChangeKind.WRITTEN)]))) == 0


def test_garbage_is_refused() -> None:
    with pytest.raises(ValueError, match="not understood"):
        Heard().take("n1", NOTICE + b"\x93\x01")
