"""Which part of a directory a listing has brought so far: spans of keys, in the order in which they were recorded.

A listing is answered before it ends, and its parts come in any order. So a position in it is a span and a name in that.
Each name belongs to one key, and so to one span: each entry comes once, whatever else comes or goes meanwhile, and names
that only exist here come with the span that their key would be in.

Within a span names come in their byte order. That is not the order of keys: "a.txt" comes before the key "a/", whose name
is "a". A name that comes before its span is a *beginning* of the key after which the span starts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

from luxfuse.core.names import SYMLINK_SUFFIX
from luxfuse.types import Kind

_SUFFIXES = {Kind.DIRECTORY: b"/", Kind.SYMLINK: SYMLINK_SUFFIX.encode()}
_LAST_OF_SUFFIXES = ord("/")
"""No kind's suffix begins with a later character."""


class Span(NamedTuple):
    """The keys after ``after`` up to ``upto``, which is one of them; None: to the last one there is."""

    after: bytes
    upto: bytes | None

    def has(self, key: bytes) -> bool:
        """Whether a key is in it."""
        return key > self.after and (self.upto is None or key <= self.upto)


WHOLE = Span(b"", None)


def key_of(name: bytes, kind: Kind) -> bytes:
    """Return the part of its key that stands for an entry in its directory."""
    return name + _SUFFIXES.get(kind, b"")


def beginnings(after: bytes) -> list[bytes]:
    """Return the names, in order, that are not after ``after`` though the key of a directory or symlink of that name is."""
    ends = (end for end in range(1, len(after)) if after[end] < _LAST_OF_SUFFIXES)
    return [after[:end] for end in ends] + ([] if after[-1:] in (b"", b"/") else [after])


class Given(NamedTuple):
    """What a reader has been given of a listing: ``whole`` spans, and of ``part`` the names up to ``upto``.

    ``came_as``: names that came as another kind than they may be now, and are where they came.
    """

    whole: tuple[Span, ...]
    part: Span | None = None
    upto: bytes = b""
    came_as: tuple[tuple[bytes, Kind], ...] = ()

    def has(self, name: bytes, kind: Kind) -> bool:
        """Whether an entry was given, or would have been if it had been there."""
        key = key_of(name, next((came for each, came in self.came_as if each == name), kind))
        if any(span.has(key) for span in self.whole):
            return True
        return self.part is not None and self.part.has(key) and name <= self.upto


class Position(NamedTuple):
    """What is left of a directory: the entries after ``after`` that were not ``given``; None: of a listing nothing was."""

    after: bytes
    given: Given | None = None


class Spans:
    """The spans of one listing, none of which overlaps another, but for `add_whole`."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._sorted: list[tuple[bytes, int]] = []
        """Where each begins, with its number."""

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> Span:
        return self._spans[number]

    def add(self, span: Span) -> None:
        """Take one more span. One that goes on where another ends is a span of its own: that one may have been read."""
        if span.upto is not None and span.upto <= span.after:
            return
        insort(self._sorted, (span.after, len(self._spans)))
        self._spans.append(span)

    def add_whole(self) -> None:
        """Take all keys once more: a span that `find` does not find."""
        self._spans.append(WHOLE)

    def find(self, key: bytes) -> int | None:
        """Return the number of the span that a key is in."""
        place = bisect_left(self._sorted, (key, -1)) - 1
        if place < 0:
            return None
        number = self._sorted[place][1]
        return number if self._spans[number].has(key) else None

    def gaps(self) -> Iterator[Span]:
        """Yield the spans that are left, in order."""
        at: bytes | None = b""
        for after, number in list(self._sorted):
            assert at is not None
            assert at <= after
            if at < after:
                yield Span(at, after)
            at = self._spans[number].upto
        if at is not None:
            yield Span(at, None)


def joined(spans: list[Span]) -> list[Span]:
    """Return the same keys in fewer spans."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda each: each.after):
        if found and found[-1].upto == span.after:
            found[-1] = Span(found[-1].after, span.upto)
        else:
            found.append(span)
    return found
