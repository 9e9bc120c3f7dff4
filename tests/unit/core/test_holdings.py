"""The log, the sums and the messages of what nodes hold."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.holding_messages import (
    MOST_BYTES,
    MOST_ENTRIES,
    Buckets,
    Changes,
    Content,
    Since,
    Sums,
    decode_answer,
    decode_head,
    decode_request,
    encode,
    encode_head,
)
from luxfuse.core.holdings import (
    BUCKETS,
    ENTRY_BYTES,
    MOST_RANGES,
    BucketSums,
    Follower,
    Holdings,
    HoldingsLog,
    Mark,
    bucket_of,
    bucket_start,
    change_of,
    changes_in,
    entry_of,
)

ID = b"12345678"
entries = st.builds(entry_of, st.binary(min_size=16, max_size=16), st.integers(0, MOST_RANGES - 1))


def sums(*held: bytes) -> BucketSums:
    made = BucketSums(xxhash.xxh3_64_intdigest)
    for entry in held:
        made.toggle(entry)
    return made


@given(st.lists(st.tuples(entries, st.booleans())))
def test_changes_say_what_they_were_made_of(changes: list[tuple[bytes, bool]]) -> None:
    packed = b"".join(change_of(entry, held) for entry, held in changes)
    assert len(packed) == ENTRY_BYTES * len(changes)
    assert list(changes_in(packed)) == changes


@given(entries)
def test_an_entry_is_in_the_part_of_the_space_that_its_bucket_is(entry: bytes) -> None:
    bucket = bucket_of(entry)
    assert 0 <= bucket < BUCKETS
    assert bucket_start(bucket) <= entry < bucket_start(bucket + 1)


@given(st.integers(1, 9), st.lists(st.integers(0, 40)), st.integers(0, 50), st.integers(1, 12))
def test_a_log_gives_all_that_it_keeps_or_nothing(kept: int, numbers: list[int], sequence: int, limit: int) -> None:
    log = HoldingsLog(ID, kept)
    appended = [change_of(entry_of(bytes(16), number), number % 3 > 0) for number in numbers]
    for change in appended:
        log.append(change)
    assert log.sequence == len(appended)
    found = log.since(sequence, limit)
    if sequence > len(appended) or sequence < len(appended) - kept:
        assert found is None
    else:
        assert found == b"".join(appended[sequence : sequence + limit])


@given(st.sets(entries), st.sets(entries))
def test_sums_differ_where_the_content_does(ours: set[bytes], theirs: set[bytes]) -> None:
    differing = sums(*ours).differing(sums(*theirs))
    assert differing == sorted({bucket_of(entry) for entry in ours ^ theirs})
    again = BucketSums(xxhash.xxh3_64_intdigest, sums(*ours).encode())
    assert not again.differing(sums(*ours))
    assert (again.total == sums(*theirs).total) == (ours == theirs)


def test_objects_of_several_ranges_do_not_cancel_out() -> None:
    first, second = bytes(16), bytes(9) + b"\1" + bytes(6)
    assert sums(entry_of(first, 0), entry_of(first, 1)).total != sums(entry_of(second, 0), entry_of(second, 1)).total


def test_holdings_note_what_is_told_with_the_sums_at_the_end_of_the_log() -> None:
    holdings = Holdings(HoldingsLog(ID), sums(entry_of(b"a" * 16, 0)))
    holdings.note([(entry_of(b"b" * 16, 0), True), (entry_of(b"a" * 16, 0), False)])
    assert holdings.log.since(0, 9) == change_of(entry_of(b"b" * 16, 0), True) + change_of(entry_of(b"a" * 16, 0), False)
    assert not holdings.sums.differing(sums(entry_of(b"b" * 16, 0)))
    assert holdings.total == holdings.sums.total


def test_messages_are_what_was_sent() -> None:
    for request in (Since(b"", 0), Since(ID, 7), Buckets([0, 5, BUCKETS - 1], bytes(ENTRY_BYTES))):
        assert decode_request(encode(request)) == request
    for answer in (Changes(ID, 1, 2, 1 << 63, bytes(ENTRY_BYTES)), Sums(ID, 3, sums().encode()), Content(ID, b"", b"")):
        assert decode_answer(encode(answer)) == answer
    assert len(encode(Content(ID, bytes(MOST_ENTRIES * ENTRY_BYTES), bytes(ENTRY_BYTES)))) <= MOST_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2" + encode(Since(ID, 1))[1:],
        encode(Since(ID, 1))[:-1],
        encode(Buckets([BUCKETS], b"")),
        encode(Buckets([0], bytes(ENTRY_BYTES + 1))),
        encode(Changes(ID, 1, 1, 0, b"")),
        bytes(MOST_BYTES + 1),
    ],
)
def test_a_request_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_request(data)


@pytest.mark.parametrize(
    "data",
    [
        encode(Since(ID, 1)),
        encode(Changes(b"short", 1, 1, 0, b"")),
        encode(Changes(ID, 1, 1, 0, bytes(ENTRY_BYTES + 1))),
        encode(Sums(ID, 1, bytes(8))),
        encode(Content(ID, b"x", b"")),
    ],
)
def test_an_answer_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_answer(data)


@given(st.binary(max_size=60))
def test_garbage_is_refused_with_a_value_error(data: bytes) -> None:
    for decode in (decode_request, decode_answer, decode_head):
        try:
            decode(b"\1" + data)
        except ValueError:
            continue


def test_a_head_is_what_was_told() -> None:
    assert decode_head(encode_head(Mark(ID, 77))) == Mark(ID, 77)
    with pytest.raises(ValueError, match="end of a log"):
        decode_head(b"L123")


def test_a_follower_fetches_what_differs_and_then_knows_the_log() -> None:
    follower = Follower()
    follower.fetch([1, 2, 3], Mark(ID, 9))
    assert follower.expects(ID)
    follower.fetched(bucket_start(2) + bytes(ENTRY_BYTES - 2))
    assert (follower.buckets, follower.mark) == ([2, 3], Mark())
    follower.fetched(b"")
    assert (follower.fetching, follower.mark) == (False, Mark(ID, 9))


def test_a_follower_begins_anew_when_the_log_is_another_one() -> None:
    follower = Follower(Mark(ID, 4))
    follower.fetch([1], Mark(ID, 9))
    assert not follower.expects(b"87654321")
    assert (follower.fetching, follower.mark) == (False, Mark())


def test_where_nothing_differs_the_log_is_known() -> None:
    follower = Follower()
    follower.fetch([], Mark(ID, 9))
    assert follower.mark == Mark(ID, 9)
