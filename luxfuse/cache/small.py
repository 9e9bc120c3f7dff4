"""First attempts at files that are fetched whole: by a driver that does all of it in one go, many in one turn of a thread.

What is stored is the same as in `Attempts.job`, which does what the driver leaves undone. No peer may have been asked for
these flights: then nobody else stores their bytes, and it is enough that `abandon` is told when their attempt is over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.disk import OpenFile, Stored
from luxfuse.cache.race import Fetched
from luxfuse.cache.space import Space
from luxfuse.errors import StoreError
from luxfuse.understore.base import UnderStore
from luxfuse.understore.small_files import MOST_BYTES, Answer, ArrivedFile, WantedFile, fetch_small
from luxfuse.understore.submissions import unforeseen

Outcome = tuple[Fetched | None, StoreError | None]


def is_small(obj: CachedObject, flight: Flight) -> bool:
    """Whether a flight brings the whole of a small file, of which nothing is here."""
    return flight.length == obj.size <= MOST_BYTES and not obj.pages.count


class SmallFlights:
    """Small flights that share one turn of a thread; ``job`` for each does it as usual."""

    def __init__(
        self,
        flights: Sequence[tuple[CachedObject, Flight, Space | None]],
        job: Callable[[CachedObject, Flight, Space | None, int], Callable[[UnderStore], Fetched]],
        clock: Callable[[], float],
        note_left: Callable[[], None],
    ) -> None:
        """``note_left`` is called, by the thread of the request, when a cache file was opened for nobody."""
        self._note_left = note_left
        self._flights = [(obj, flight, space, flight.attempt) for obj, flight, space in flights]
        self._job = job
        self._clock = clock
        self._abandoned = bytearray(1)

    def abandon(self) -> None:
        """Nobody waits any more: from now on no cache file is opened."""
        self._abandoned[0] = 1

    def all(self, driver: UnderStore) -> list[Outcome]:
        """Fetch and store them, in the thread of a request."""
        asked_s = self._clock()
        try:
            answers = fetch_small(driver, [self._wanted(*each[:3]) for each in self._flights], self._abandoned)
        except StoreError:  # each of them then meets it by itself
            answers = [Answer()] * len(self._flights)
        files = [OpenFile(answer.arrived.fd) if answer.arrived is not None else None for answer in answers]
        return [self._outcome(n, driver, answer, files[n], asked_s) for n, answer in enumerate(answers)]

    def one(self, driver: UnderStore) -> Fetched:
        """Do the same with the only one. Raises `StoreError`."""
        ((fetched, error),) = self.all(driver)
        if fetched is None:
            raise error or StoreError("no answer")
        return fetched

    @staticmethod
    def _wanted(obj: CachedObject, flight: Flight, space: Space | None) -> WantedFile:
        path = space.directory.place_of(obj.oid) if space is not None else None
        return WantedFile(obj.record.key, obj.record.version, obj.size, path, flight.opens)

    def _outcome(self, number: int, driver: UnderStore, answer: Answer, opened: OpenFile | None, asked_s: float) -> Outcome:
        if answer.error is not None:
            return None, answer.error
        try:
            if answer.arrived is not None:
                return self._arrived(number, answer.arrived, opened, asked_s)
            return self._job(*self._flights[number])(driver), None
        except StoreError as exc:
            return None, exc
        except Exception as exc:  # noqa: BLE001 (it is logged, and no failure of the others)
            return None, unforeseen(exc, f"GET {self._flights[number][0].record.key!r}")

    def _arrived(self, number: int, file: ArrivedFile, opened: OpenFile | None, asked_s: float) -> Outcome:
        obj, flight, space, attempt = self._flights[number]
        if file.opened and space is not None:
            space.directory.expect_no_more(obj.oid)
        if not flight.claim(attempt):
            if file.opened:  # it may be another attempt's by now, so it is not to be removed here
                self._note_left()
            return None, StoreError("nobody waits for it any more")
        error = OSError(file.errno, os.strerror(file.errno)) if file.errno else None
        if error is not None and file.opened and space is not None:  # ours, or there would have been no claim
            with contextlib.suppress(OSError):
                space.directory.remove(obj.oid)
        stored = Stored(file.checksums, file.stamp, error, opened if file.fd >= 0 else None, file.file_number)
        return Fetched(memoryview(file.data), stored, False, file.info, asked_s), None
