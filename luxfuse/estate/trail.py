"""The trail: changes of index and journals that are on no disk yet, in the order in which they were made.

Each record belongs to a stream: a file of a volume (`stream_of`). A daemon appends a change before anybody hears of it.
Changes that are one (`together`) count once all of them are there: a kill in between leaves none.
When it has begun to commit a stream's changes, it marks how far they go (`mark`); when they are on disk it says so
(`written`), and what all streams have on disk is dropped. A successor finds the rest (`left`).

Records lie in a ring: ``length (4 bytes), stream (2), payload``; a length of 0 says that the next one is at the ring's
start. Positions count from the beginning of time. A stream that nobody commits rests, as that of a volume that cannot be
opened: when half of the ring is in use, what it has moves to the ring's end, so that others do not run into it. A kill in
between leaves it twice, which changes nothing: each record says what something is from then on. If there is no room, what
comes is lost (`Word.TRAIL_LOST`): that takes a disk that has failed for long, and a successor then knows what the disk has.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import struct
from collections import deque
from collections.abc import Callable, Iterator

from luxfuse.estate.words import Word, Words

_HEADER = struct.Struct("=IH")
_HEADER_BYTES = _HEADER.size
_END = int(Word.TRAIL_END)
GIVE_BACK_BYTES = 1 << 20
"""Memory behind the start is given back in pieces of this size, each of which costs a system call."""
INDEX, JOURNAL = 0, 1


def stream_of(volume: int, kind: int) -> int:
    """Return the stream of a volume's index or journal."""
    return volume << 1 | kind


def volume_of(stream: int) -> int:
    """Return the volume that a stream belongs to."""
    return stream >> 1


class Trail:
    """The trail of one estate. From the event loop's thread only."""

    def __init__(
        self, memory: mmap.mmap, words: Words, at: int, size_bytes: int, give_back: Callable[[int, int], None]
    ) -> None:
        """``at``: where its ring lies in ``memory``. ``give_back``: gives the memory of a range back."""
        self._memory = memory
        self._words = words
        self._at = at
        self._size = size_bytes
        self._give_back = give_back
        self._plain = words.plain
        self._end = words[Word.TRAIL_END]
        self._blocks = 0
        """How many blocks of `together` are open."""
        self._start = self._given_back = words[Word.TRAIL_START]
        self._parts: dict[int, deque[int]] = {}
        """By stream: where the changes of each commit that is not on disk begin, and of the one to come."""
        self._closed: dict[int, int] = {}
        """By stream: how many of its parts were marked from the start on."""
        self._dropped: dict[int, int] = {}
        self._lost: dict[int, int | None] = {}
        """Streams with changes that there was no room for, and the mark of the commit that brings them to disk."""
        self._open: set[int] = set()
        """The streams whose last part is not marked yet."""
        self._resting: dict[int, list[int]] = {}
        """By stream that nobody commits: where its records are."""
        self._known: dict[int, tuple[list[int], int]] = {}
        """By stream that rested, of which nothing was written since: where its records were, and where these end."""
        self._look_at = self._start + size_bytes // 2
        """The end at which to look for what can move."""
        for position, stream in self._records(self._start):
            if stream not in self._parts:
                self._parts[stream] = deque([position])
                self._open.add(stream)
                self._resting[stream] = []
            self._resting[stream].append(position)

    @property
    def end(self) -> int:
        """The position behind the last record."""
        return self._end

    def append(self, stream: int, payload: bytes) -> None:
        """Add a record."""
        size, length = self._size, len(payload)
        total = _HEADER_BYTES + length
        position = self._end
        at = position % size
        if at + total + _HEADER_BYTES > size:  # a header that ends the round must always fit
            position += size - at
        if position + total + _HEADER_BYTES - self._start > size:
            self._words[Word.TRAIL_LOST] = 1
            self._lost[stream] = None
            return
        if position != self._end:
            _HEADER.pack_into(self._memory, self._at + at, 0, 0)
        start = self._at + position % size
        self._memory[start : start + total] = _HEADER.pack(length + 1, stream) + payload
        self._end = position + total
        if stream not in self._open:
            self._open.add(stream)
            self._parts.setdefault(stream, deque()).append(position)
        if not self._blocks:
            self._plain[_END] = self._end
            if self._end > self._look_at:
                self._move()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make changes that a successor finds all of, or none. There is no wait in the block, and no answer."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if not self._blocks:
                self._plain[_END] = self._end
                if self._end > self._look_at:
                    self._move()

    def mark(self, stream: int) -> int:
        """A commit begins with all of the stream's changes; returns what `written` is to be told at its end."""
        if stream in self._open:
            self._open.remove(stream)
            self._closed[stream] = self._closed.get(stream, 0) + 1
        mark = self._closed.get(stream, 0)
        if stream in self._lost:
            self._lost[stream] = mark
        return mark

    def written(self, stream: int, mark: int) -> None:
        """What was marked is on disk, and what was marked before."""
        self._known.pop(stream, None)
        parts = self._parts.get(stream)
        dropped = self._dropped.get(stream, 0)
        while parts and dropped < mark:
            parts.popleft()
            dropped += 1
        self._dropped[stream] = dropped
        if parts is not None and not parts:
            del self._parts[stream]
        lost = self._lost.get(stream)
        if lost is not None and lost <= mark:
            del self._lost[stream]
            self._words[Word.TRAIL_LOST] = int(bool(self._lost))
        self._begin_later()

    def _begin_later(self) -> None:
        """Drop what nobody needs any more."""
        start = min((parts[0] for parts in self._parts.values()), default=self._end)
        self._words[Word.TRAIL_START] = self._start = start
        self._look_at = max(self._look_at, start + self._size // 2)
        while start - self._given_back >= GIVE_BACK_BYTES:
            piece = min(start - self._given_back, self._size - self._given_back % self._size)
            low = self._at + self._given_back % self._size
            self._give_back(low, low + piece)
            self._given_back += piece

    @property
    def streams(self) -> list[int]:
        """The streams with changes that are not known to be on disk."""
        return list(self._parts)

    def forget(self, stream: int) -> None:
        """Nobody needs what a stream has: its file is of no use any more."""
        self._resting.pop(stream, None)
        self.written(stream, self.mark(stream))

    def use(self, stream: int) -> None:
        """A stream's changes are committed from now on."""
        if (positions := self._resting.pop(stream, None)) is not None:
            self._known[stream] = positions, self._end

    def rest(self, stream: int) -> None:
        """Nobody appends to a stream nor commits it any more, until it is used again. No commit of it is under way."""
        parts = self._parts.get(stream)
        if parts is None or stream in self._resting:
            return
        first = parts[0]
        known, end = self._known.pop(stream, ([], first))  # one that is tried again and again is not looked for each time
        self._resting[stream] = known + [at for at, found in self._records(end) if found == stream]
        self._rests_from(stream, first)

    def begin_from(self, stream: int, since: int) -> None:
        """What a resting stream has from before this position is of no use."""
        if stream not in self._resting:
            return
        positions = [position for position in self._resting[stream] if position >= since]
        if not positions:
            self.forget(stream)
        elif positions[0] != self._parts[stream][0]:
            self._resting[stream] = positions
            self._rests_from(stream, positions[0])
            self._begin_later()

    def _rests_from(self, stream: int, first: int) -> None:
        """All that a stream has is one part, for the commit to come."""
        self._parts[stream] = deque([first])
        self._closed[stream] = self._dropped.get(stream, 0)
        self._open.add(stream)

    def _move(self) -> None:
        """Move what rests in the older half of what is in use to the end, as far as there is room for it."""
        old = self._end - self._size // 2
        for stream, positions in self._resting.items():
            if not self._start <= positions[0] < old:
                continue
            payloads = [self._payload(position) for position in positions]
            most = max(map(len, payloads)) + 3 * _HEADER_BYTES  # beside them: what is left free at the end of the ring
            if self._end + sum(map(len, payloads)) + _HEADER_BYTES * len(payloads) + most - self._start > self._size:
                continue
            moved = []
            with self.together():
                self._look_at = self._end + self._size
                for payload in payloads:
                    self.append(stream, payload)
                    moved.append(self._end - _HEADER_BYTES - len(payload))
            self._resting[stream] = moved
            self._rests_from(stream, moved[0])
        self._look_at = self._end + self._size // 8
        self._begin_later()

    def left(self, stream: int) -> list[tuple[int, bytes]]:
        """Return the (position, payload) of the stream's records, which are not known to be on disk."""
        return [(position, self._payload(position)) for position, found in self._records(self._start) if found == stream]

    def _records(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield where each record is, from that at a position on, and of which stream it is."""
        end = self._words[Word.TRAIL_END]
        while position < end:
            start = self._at + position % self._size
            length, stream = _HEADER.unpack_from(self._memory, start)
            if length == 0:
                position += self._size - position % self._size
                continue
            yield position, stream
            position += _HEADER_BYTES + length - 1

    def _payload(self, position: int) -> bytes:
        start = self._at + position % self._size
        length, _ = _HEADER.unpack_from(self._memory, start)
        body = start + _HEADER_BYTES
        return bytes(self._memory[body : body + length - 1])


class Stream:
    """One stream of a trail."""

    def __init__(self, trail: Trail, number: int, identity: int, *, continued: bool = False, since: int = 0) -> None:
        """``identity``: of the estate. ``continued``: a daemon with this estate has had the file before.

        ``since``: the position of the trail at which the volume began: what lies before it is of another one.
        """
        self._since = since
        self._trail = trail
        trail.use(number)
        self._number = number
        self.identity = identity
        self.continued = continued
        self.append: Callable[[bytes], None] = functools.partial(trail.append, number)
        """Add a record."""
        self.together = trail.together

    @property
    def end(self) -> int:
        """The position behind the trail's last record."""
        return self._trail.end

    def mark(self) -> int:
        """A commit begins; see `Trail.mark`."""
        return self._trail.mark(self._number)

    def written(self, mark: int) -> None:
        """It has ended; see `Trail.written`."""
        self._trail.written(self._number, mark)

    def left(self) -> list[tuple[int, bytes]]:
        """Return what may be on no disk; see `Trail.left`."""
        return [(position, payload) for position, payload in self._trail.left(self._number) if position >= self._since]
