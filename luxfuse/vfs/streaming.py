"""Read-ahead of large files that are read from one end to the other: requests in the order in which readers need them."""

from __future__ import annotations

import os
from typing import Protocol

import trio

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.flow import Flow
from luxfuse.core.readahead import Sequence
from luxfuse.core.spans import pages_of
from luxfuse.core.streams import Streams


class Reader(Protocol):
    """An open file that is read; by identity."""

    @property
    def sequence(self) -> Sequence:
        """The pattern of its reads."""

    @property
    def obj(self) -> CachedObject | None:
        """The object that it reads just now, if it is one."""


class StreamsAhead:
    """The read-ahead of all open files of one store."""

    def __init__(self, *, cache: PageCache, most_bytes: int) -> None:
        """``most_bytes`` bounds what is on its way at once, but for what readers wait for."""
        self._cache = cache
        self._streams: Streams[Reader] = Streams(Flow(most_bytes))

    def catch_up(self, reader: Reader) -> None:
        """Fetch what a reader of a stream waits for and nothing has asked for yet, whatever is under way."""
        sequence, obj = reader.sequence, reader.obj
        while obj is not None and sequence.behind and (wanted := sequence.take(self._streams.flow.run_bytes)):
            self._fetch(reader, obj, pages_of(wanted.start, len(wanted)))

    def moved_on(self, reader: Reader) -> None:
        """Fetch ahead of a reader whose own pages were asked for."""
        self._streams.wants(reader, reader.sequence)
        self._go_on()

    def drop(self, reader: Reader) -> None:
        """A file was closed."""
        self._streams.drop(reader)

    def _go_on(self) -> None:
        while (turn := self._streams.next()) is not None:
            obj = turn.key.obj
            if obj is None or obj.whole:
                self._streams.drop(turn.key)
            else:
                self._fetch(turn.key, obj, pages_of(turn.bytes.start, len(turn.bytes)))

    def _fetch(self, reader: Reader, obj: CachedObject, pages: range) -> None:
        under_way: list[Flight] = []

        def on_end(fd: int) -> None:
            if fd >= 0:
                os.close(fd)
            for flight in [flight for flight in under_way if flight.done.is_set()]:
                under_way.remove(flight)
                self._ended(reader, flight)
            self._go_on()

        under_way += self._cache.start(obj, pages, run=len(pages), on_end=on_end)
        for flight in under_way:
            self._streams.flow.began(flight.length, trio.current_time())

    def _ended(self, reader: Reader, flight: Flight) -> None:
        failed = flight.error is not None
        self._streams.flow.ended(flight.length, trio.current_time(), failed=failed)
        if failed:
            self._streams.drop(reader)  # until it reads on
