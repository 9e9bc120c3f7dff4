"""Listings that are read before they end.

Whatever a listing has brought is in the index, mixed with all else that is known of the directory. A `Stream` says which
spans of keys (`core.listed_spans`) are recorded, in an order that all its readers share; so they need no memory of the
names. A reader that has read all of them waits for more. It goes on to read spans when the listing has ended, too, so that
positions stay what they are for as long as the directory is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from luxfuse.core.listed_spans import Given, Span, Spans, beginnings, joined, key_of
from luxfuse.errors import StoreUnavailable
from luxfuse.index.entries import Changes, Entry, Found
from luxfuse.index.names import Names
from luxfuse.types import Kind

MOST_DISORDERED = 20_000
"""Names remembered of a listing that turns out not to come in the order of names; it does so early, as a rule."""
CAME_AS_MOST = 1000
"""Names of more than one kind that a successor is told of, with each position."""


class Disordered(StoreUnavailable):
    """Too much of a listing had been read when the store turned out not to keep the order of names."""


class Stream:
    """One listing that is under way, or was when some readers began."""

    def __init__(self, names: Names, directory: int) -> None:
        self._names = names
        self._directory = directory
        self._serial = 0
        self._began_s = 0.0
        self._spans = Spans()
        self.came_as: dict[bytes, Kind] = {}
        """Kinds that names came as before they came as another: they stay where they came.

        The writer thread adds to it, before readers see what it has made of the names.
        """
        self._postponed: set[bytes] = set()
        """Names that only the end of the listing decides on."""
        self._early: dict[bytes, int] = {}
        """The spans of names that came before their span begins."""
        self._before: set[bytes] | None = None
        """Names that came while the store was thought to keep their order."""
        self._rest: int | None = None
        """The number of the span that has all others then."""
        self._changed = trio.Event()
        self.over = False
        self.error: Exception | None = None
        self.wanted = 0
        """Readers that wait."""
        self.on_wanted: Callable[[], None] = lambda: None

    @property
    def spans(self) -> int:
        """Number of the spans that can be read."""
        return len(self._spans)

    @property
    def is_disordered(self) -> bool:
        """Whether the store turned out not to keep the order of names."""
        return self._before is not None

    # -- the listing's side

    def begin(self, serial: int, began_s: float) -> None:
        """The listing has this serial number, and its first request is made at ``began_s``."""
        self._serial, self._began_s = serial, began_s

    def recorded(self, spans: Iterable[Span], changes: Changes) -> None:
        """Some spans are in the index."""
        for item in changes.deferred:
            self._postpone(item)
        for span in joined(list(spans)):
            self._spans.add(span)
        self._wake()

    def _postpone(self, item: Found) -> None:
        """Let a name stay in one span, whichever kind gets it: the item's, which nobody has read, or where it was shown."""
        self._postponed.add(item.name)
        entry = self._names.get(self._directory, item.name)
        if (
            entry is not None
            and self._spans.find(key_of(item.name, entry.kind)) is not None
            and self._names.stays(self._directory, item.name, entry, self._began_s)
        ):
            self.came_as.setdefault(item.name, entry.kind)
        else:
            self.came_as.setdefault(item.name, item.kind)

    def end(self, error: Exception | None) -> None:
        """The listing has ended. Without an error the index has all of the directory."""
        self.over, self.error = True, error
        if error is None:
            self._add_rest()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def complete(self) -> None:
        """The index has all that there will be of the directory, in spite of an error: read what is left of it."""
        self.error = None
        self._add_rest()
        self._wake()

    def _add_rest(self) -> None:
        if self._before is not None:
            self._rest = len(self._spans)
            self._spans.add_whole()
            return
        for span in list(self._spans.gaps()):
            self._spans.add(span)

    def disordered(self) -> None:
        """What was recorded is not all of its spans: everything else is read at the end. Raises `Disordered`."""
        known: set[bytes] = set()
        for number in range(len(self._spans)):
            batch, _ = self._batch(number, b"", MOST_DISORDERED)
            known.update(name for name, _ in batch)
            if len(known) >= MOST_DISORDERED:
                raise Disordered("the store lists names in no order, and many were shown; the next listing allows for that")
        self._before = known

    # -- a reader's side

    async def begun(self) -> None:
        """Wait until there is something to read, or the listing has ended."""
        while not self._spans and not self.over:
            await self._wait()

    async def more(self, read: int) -> bool:
        """Wait for more spans than ``read``; returns False if there are none to come."""
        while len(self._spans) <= read and not self.over:
            await self._wait()
        return len(self._spans) > read

    async def _wait(self) -> None:
        self.wanted += 1
        changed = self._changed
        try:
            self.on_wanted()
            await changed.wait()
        finally:
            self.wanted -= 1

    def place(self, name: bytes) -> int:
        """Return the number of the span that a name came in; the number of spans if it has not come.

        A name that was another kind meanwhile may have come in several: the one in which a reader had it is the reader's.
        """
        if self._before is not None and name not in self._before:
            return len(self._spans) if self._rest is None else self._rest
        number = self._early.get(name)
        if number is None:
            number = self._spans.find(name)
        return len(self._spans) if number is None else number

    def given(self, name: bytes, number: int | None = None) -> Given | None:
        """Return what has come up to this name, which came in span ``number`` (None: its `place`).

        None if the store keeps no order: then nothing tells that.
        """
        if self._before is not None:
            return None
        number = self.place(name) if number is None else number
        whole = joined([self._spans[each] for each in range(min(number, len(self._spans)))])
        came_as = tuple(list(self.came_as.items())[:CAME_AS_MOST])
        return Given(tuple(whole), self._spans[number] if number < len(self._spans) else None, name, came_as)

    def read(self, number: int, name: bytes, limit: int) -> tuple[list[tuple[bytes, Entry]], int, bytes]:
        """Return up to ``limit`` entries of a span after ``name`` (b"": from the first), and where to go on."""
        batch, at = self._batch(number, name, limit)
        if self._before is not None:
            batch = [each for each in batch if (each[0] in self._before) != (number == self._rest)]
        return (batch, number, at) if at is not None else (batch, number + 1, b"")

    def _batch(self, number: int, name: bytes, limit: int) -> tuple[list[tuple[bytes, Entry]], bytes | None]:
        """Return entries of a span, and the name after which to go on; None: the span ends."""
        span = self._spans[number]
        found: list[tuple[bytes, Entry]] = []
        if name <= span.after:
            for early in beginnings(span.after):
                if early > name and (entry := self._names.get(self._directory, early)) is not None:
                    found.append((early, entry))
                    if span.has(self._key(early, entry)):
                        self._early[early] = number
            name = span.after
        behind = self._names.after(self._directory, name, limit)
        at = behind[-1][0] if len(behind) == limit else None
        if span.upto is not None and behind and behind[-1][0] > span.upto:
            at = None
            behind = [each for each in behind if each[0] <= span.upto]
        return [each for each in found + behind if self._shows(span, *each)], at

    def _key(self, name: bytes, entry: Entry) -> bytes:
        return key_of(name, self.came_as.get(name, entry.kind))

    def _shows(self, span: Span, name: bytes, entry: Entry) -> bool:
        if entry.kind or name in self.came_as:  # a file, 0, has its name for a key
            if not span.has(self._key(name, entry)):
                return False
        elif name <= span.after:
            return False
        if entry.listing >= self._serial or self.over or name in self._postponed:
            return True
        return self._names.stays(self._directory, name, entry, self._began_s)
