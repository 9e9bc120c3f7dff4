"""What a daemon leaves behind is what its successor finds, wherever the first one was killed."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import pytest

from luxfuse.errors import MountError
from luxfuse.estate.memory import FACTS_HALF_BYTES, TRAIL_BYTES, Estate, State
from luxfuse.estate.trail import INDEX, JOURNAL, Stream, stream_of
from luxfuse.estate.words import Word, Words
from luxfuse.keeper import words


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("estate")
    yield made
    os.close(made)


def test_the_first_daemon_inherits_nothing_and_the_next_one_goes_on(fd: int) -> None:
    first = Estate(fd)
    assert not first.inherited
    assert Estate(fd).identity == first.identity
    assert not Estate(fd).inherited, "a daemon that died before it served has no successor"
    first.serve()
    second = Estate(fd)
    assert (second.inherited, second.restarts, second.identity) == (True, 1, first.identity)
    assert Estate(fd).restarts == 2
    second.end()
    assert not Estate(fd).inherited


def test_the_keeper_finds_the_words_that_it_looks_at() -> None:
    """It imports nothing that would tell it."""
    assert (words.STATE_AT, words.SERVING_SINCE_AT) == (8 * Word.STATE, 8 * Word.SERVING_SINCE)
    assert words.SERVING == State.SERVING


def test_another_format_is_refused(fd: int) -> None:
    first = Estate(fd)
    first.serve()
    Words(first.memory)[Word.FORMAT] = 99
    with pytest.raises(MountError, match="another format"):
        Estate(fd)


def test_facts_are_those_that_were_put_and_not_dropped(fd: int) -> None:
    rng, wanted = random.Random(3), dict[bytes, bytes]()
    facts = Estate(fd).facts
    for step in range(60_000):  # it is written anew many times
        key = b"%d" % rng.randrange(500)
        if rng.random() < 0.3:
            facts.drop(key)
            wanted.pop(key, None)
        else:
            wanted[key] = rng.randbytes(rng.randrange(200))
            facts.put(key, wanted[key])
        if step % 9_000 == 0:
            assert dict(Estate(fd).facts.items(b"")) == wanted
    assert dict(Estate(fd).facts.items(b"")) == wanted
    assert os.fstat(fd).st_blocks * 512 < 8 << 20, "what counts no more takes no memory"


def test_too_many_facts_are_known_to_be_lost(fd: int) -> None:
    estate = Estate(fd)
    for number in range(FACTS_HALF_BYTES // (1 << 20) + 1):
        estate.facts.put(b"%d" % number, bytes(1 << 20))
    assert not estate.exact


def test_a_trail_has_what_is_on_no_disk(fd: int) -> None:
    trail = Estate(fd).trail
    index, journal = stream_of(3, INDEX), stream_of(3, JOURNAL)
    trail.append(index, b"a")
    trail.append(journal, b"b")
    first = trail.mark(index)
    trail.append(index, b"c")

    def left(stream: int) -> list[bytes]:
        return [payload for _, payload in Estate(fd).trail.left(stream)]

    assert (left(index), left(journal)) == ([b"a", b"c"], [b"b"])
    trail.written(index, first)
    assert b"c" in left(index)
    assert left(journal) == [b"b"]
    trail.written(journal, trail.mark(journal))
    assert (left(index), left(journal)) == ([b"c"], [])
    failed = trail.mark(index)
    trail.append(index, b"d")
    trail.written(index, trail.mark(index))
    assert failed == first + 1
    assert left(index) == left(journal) == []


def test_a_successor_goes_on_with_the_trail(fd: int) -> None:
    first = Estate(fd)
    Stream(first.trail, 7, first.identity).append(b"a")
    stream = Stream(Estate(fd).trail, 7, first.identity)
    stream.append(b"b")
    assert [payload for _, payload in stream.left()] == [b"a", b"b"]
    stream.written(stream.mark())
    assert stream.left() == []


def test_of_changes_that_are_one_a_successor_finds_all_or_none(fd: int) -> None:
    estate = Estate(fd)
    index, journal = (Stream(estate.trail, stream_of(0, kind), estate.identity) for kind in (INDEX, JOURNAL))

    def found() -> list[bytes]:
        trail = Estate(fd).trail
        return [payload for kind in (INDEX, JOURNAL) for _, payload in trail.left(stream_of(0, kind))]

    index.append(b"before")
    with journal.together():
        index.append(b"moved")
        with index.together():
            journal.append(b"noted")
        assert found() == [b"before"]
    assert found() == [b"before", b"moved", b"noted"]
    with contextlib.suppress(OSError), journal.together():
        journal.append(b"more")
        raise OSError("disk")
    assert found()[-1] == b"more", "the daemon lives on with it"


def test_a_trail_goes_round_and_gives_memory_back(fd: int) -> None:
    trail, rng = Estate(fd).trail, random.Random(5)
    sent = 0
    while sent < 2 * TRAIL_BYTES + 1000:
        payload = rng.randbytes(rng.randrange(1, 3 << 20))
        trail.append(0, payload)
        assert trail.left(0)[-1][1] == payload
        trail.written(0, trail.mark(0))
        sent += len(payload)
    assert not trail.left(0)
    assert Estate(fd).exact
    assert os.fstat(fd).st_blocks * 512 < 16 << 20


def test_a_full_trail_is_known_to_be_lost(fd: int) -> None:
    estate = Estate(fd)
    for _ in range(TRAIL_BYTES // (1 << 20) + 1):
        estate.trail.append(0, bytes(1 << 20))
    assert not estate.exact
    estate.trail.written(0, estate.trail.mark(0))  # the disk works again
    assert estate.exact
    estate.trail.append(0, b"a")
    assert [payload for _, payload in estate.trail.left(0)] == [b"a"]


def test_what_rests_does_not_fill_the_trail(fd: int) -> None:
    """A volume that cannot be opened commits nothing, for as long as that takes."""
    first = Estate(fd)
    kept = [bytes([number]) * (1 << 16) for number in range(200)]
    for payload in kept:
        first.trail.append(7, payload)
        first.trail.append(0, payload)
    second = Estate(fd)
    busy = Stream(second.trail, 0, second.identity)
    busy.written(busy.mark())
    rng = random.Random(5)
    for _ in range(400):  # twice round
        busy.append(bytes(rng.randrange(1 << 20)))
        assert second.exact
        mark = busy.mark()
        busy.append(b"not written")
        busy.written(mark)
        with busy.together():
            busy.append(b"one")
            busy.append(b"of two")
    third = Estate(fd)
    assert [payload for _, payload in third.trail.left(0)][-3:] == [b"not written", b"one", b"of two"]
    rested = Stream(third.trail, 7, third.identity)
    assert [payload for _, payload in rested.left()] == kept
    rested.append(b"behind")
    assert [payload for _, payload in Estate(fd).trail.left(7)] == [*kept, b"behind"]


def test_what_rests_again_is_kept_and_what_is_of_an_earlier_volume_is_not(fd: int) -> None:
    estate = Estate(fd)
    trail = estate.trail
    trail.append(0, b"pins")
    Stream(trail, 7, 0).append(b"of an earlier one")
    trail.forget(7)
    since = trail.end
    stream = Stream(trail, 7, 0, since=since)
    stream.append(b"committed")
    stream.written(stream.mark())
    stream.append(b"marked")
    stream.mark()
    stream.append(b"open")
    trail.rest(7)
    trail.written(0, trail.mark(0))
    trail.begin_from(0, since)  # it does not rest
    for later in (False, True):
        one = Estate(fd).trail if later else trail
        one.begin_from(7, since)
        busy = Stream(one, 0, 0)
        for _ in range(150):
            busy.append(bytes(1 << 20))
            busy.written(busy.mark())
        assert estate.exact
        assert [payload for _, payload in one.left(7)] == [b"marked", b"open"]
        assert one.left(7)[0][0] > since + (1 << 26)
    one.begin_from(7, one.end)
    assert not Estate(fd).trail.left(7)


def test_a_kill_while_what_rests_moves_changes_nothing(fd: int) -> None:
    """Between the two words that say where the trail begins and ends."""
    estate = Estate(fd)
    for payload in (b"a", b"b"):
        estate.trail.append(7, payload)
    trail = Estate(fd).trail
    trail._give_back = lambda _low, _high: None  # as it is when the kill comes
    busy, start = Stream(trail, 0, 0), estate._words[Word.TRAIL_START]
    for _ in range(66):
        busy.append(bytes(1 << 20))
        busy.written(busy.mark())
    estate._words[Word.TRAIL_START] = start
    assert [payload for _, payload in Estate(fd).trail.left(7)] == [b"a", b"b", b"a", b"b"]
    found = Estate(fd).trail
    for number in (0, 7):
        found.written(number, found.mark(number))
    assert not Estate(fd).trail.left(7)


def test_what_rests_is_not_looked_for_each_time_that_it_is_tried_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Estate(fd)
    for payload in (b"a", b"b"):
        first.trail.append(7, payload)
        first.trail.append(0, payload)
    trail = Estate(fd).trail
    looked, records = list[int](), trail._records
    monkeypatch.setattr(trail, "_records", lambda position: looked.append(position) or records(position))
    for payload in (b"c", b"d"):
        end = trail.end
        trail.use(7)
        trail.append(7, payload)
        trail.rest(7)
        trail.rest(7)
    assert looked[-1:] == [end]
    assert len(looked) == 2
    busy = Stream(trail, 0, 0)
    for _ in range(80):
        busy.append(bytes(1 << 20))
        busy.written(busy.mark())
    assert [payload for _, payload in trail.left(7)] == [b"a", b"b", b"c", b"d"]
    assert trail.left(7)[0][0] > 1 << 26
    trail.use(7)
    trail.written(7, trail.mark(7))
    trail.append(7, b"e")
    trail.rest(7)
    assert [payload for _, payload in Estate(fd).trail.left(7)][-1] == b"e"
