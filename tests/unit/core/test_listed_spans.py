"""Spans of keys: each name is in one of them, and found where it is read."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from luxfuse.core.listed_spans import WHOLE, Span, Spans, beginnings, joined, key_of
from luxfuse.types import Kind

ALPHABET = b"a-.z0"


def cut(rng: random.Random, keys: list[bytes]) -> list[Span]:
    """Cut all keys there may be into spans that end at some of ``keys``, or at no key."""
    ends = sorted({rng.choice(keys) + rng.choice([b"", b"", b"-", b"0"]) for _ in range(rng.randrange(12))})
    bounds: list[bytes | None] = [b"", *ends, None]
    return [Span(after or b"", upto) for after, upto in pairwise(bounds)]


def name(rng: random.Random) -> bytes:
    return bytes(rng.choices(ALPHABET, k=rng.randrange(1, 6)))


@pytest.mark.parametrize("seed", range(200))
def test_each_name_is_in_one_span_behind_its_start_or_among_the_beginnings_of_that(seed: int) -> None:
    rng = random.Random(seed)
    kinds = {name(rng): rng.choice(list(Kind)) for _ in range(rng.randrange(1, 60))}
    keys = [key_of(each, kind) for each, kind in kinds.items()]
    pieces = cut(rng, keys)
    rng.shuffle(pieces)
    left_out = pieces[: rng.randrange(3)]
    spans = Spans()
    for piece in pieces[len(left_out) :]:
        spans.add(piece)
    for each, kind in kinds.items():
        key = key_of(each, kind)
        holders = [piece for piece in pieces if piece.has(key)]
        assert len(holders) == 1
        assert each > holders[0].after or each in beginnings(holders[0].after)
        number = spans.find(key)
        assert (number is None) == (holders[0] in left_out)
        assert number is None or spans[number] == holders[0]
    before = len(spans)
    for gap in spans.gaps():
        spans.add(gap)
    assert joined([spans[number] for number in range(len(spans))]) == [WHOLE]
    assert not list(spans.gaps())
    assert joined([spans[number] for number in range(before, len(spans))]) == joined(left_out)


def test_a_span_of_nothing_is_none() -> None:
    spans = Spans()
    spans.add(Span(b"a", b"a"))
    assert not len(spans)
    assert list(spans.gaps()) == [WHOLE]
    assert spans.find(b"a") is None


def test_beginnings_are_names_whose_directory_may_come_later() -> None:
    assert beginnings(b"") == []
    assert beginnings(b"ab") == [b"ab"]
    assert beginnings(b"a.txt") == [b"a", b"a.txt"]
    assert beginnings(b"a-b-c/") == [b"a", b"a-b"]
    assert beginnings(b"-") == [b"-"]
