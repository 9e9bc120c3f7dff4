"""The read-ahead of streams over links that are simulated: no clock, no thread, the same figures every time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from luxfuse.core.flow import LEAST_BYTES, LEAST_RUN_BYTES, STEP, Flow
from luxfuse.core.readahead import Sequence
from luxfuse.core.streams import Streams
from luxfuse.types import PAGE_BYTES

MIB = 1 << 20
MAX = 64 * MIB
KERNEL_AHEAD = 8
"""READs of 1 MiB that the kernel has under way for one stream."""
RAW_STREAMS, RAW_BYTES = 8, 2 * MIB


@dataclass(order=True)
class _Transfer:
    at_s: float
    left: float
    done: Callable[[], None] = field(compare=False)


class Link:
    """Answers come after about ``latency_s``, then share ``bytes_s`` evenly, none with more than ``connection_bytes_s``."""

    def __init__(self, latency_s: float, bytes_s: float, connection_bytes_s: float = 1e12) -> None:
        self.latency_s, self.bytes_s, self.connection_bytes_s = latency_s, bytes_s, connection_bytes_s
        self.now_s = 0.0
        self._rng = random.Random(1)
        self._coming: list[_Transfer] = []
        self._flowing: list[_Transfer] = []

    def request(self, size_bytes: int, done: Callable[[], None]) -> None:
        heapq.heappush(self._coming, _Transfer(self.now_s + self.latency_s * self._rng.uniform(0.8, 1.2), size_bytes, done))

    def run(self, is_over: Callable[[], bool]) -> float:
        """The time until it is over."""
        while not is_over():
            each = min(self.connection_bytes_s, self.bytes_s / max(1, len(self._flowing)))
            ends = [t.left / each for t in self._flowing]
            begins = [self._coming[0].at_s - self.now_s] if self._coming else []
            assert ends or begins, "nothing is under way, and it is not over"
            step_s = min(ends + begins)
            self.now_s += step_s
            for transfer in self._flowing:
                transfer.left -= step_s * each
            over = [t for t in self._flowing if t.left < 1]
            self._flowing = [t for t in self._flowing if t.left >= 1]
            while self._coming and self._coming[0].at_s <= self.now_s + 1e-12:
                self._flowing.append(heapq.heappop(self._coming))
            for transfer in over:
                transfer.done()
        return self.now_s


class Reader:
    """The kernel, on behalf of a program that takes what there is, and the daemon's answers."""

    def __init__(self, link: Link, streams: Streams[Reader], size: int, ahead: int) -> None:
        self.link, self.streams, self.size, self.ahead = link, streams, size, ahead
        self.sequence = Sequence(MAX)
        self.have: set[int] = set()
        self.begun: set[int] = set()
        self.asked = self.read = self.requests = 0
        self.arrived_s: list[float] = []

    @property
    def over(self) -> bool:
        return self.read >= self.size

    def go_on(self) -> None:
        """READs are sent, of a beginning that is read as far as it came: the kernel's window doubles."""
        while self.asked < min(self.size, self.read + min(self.ahead, max(2, 2 * self.read // MIB)) * MIB):
            self.sequence.advance(self.asked, MIB, self.size)
            while self.sequence.behind and (span := self.sequence.take(self.streams.flow.run_bytes)):
                self.fetch_ahead(span)
            self._fetch(range(self.asked, self.asked + MIB), self._nothing)
            self.streams.wants(self, self.sequence)
            self.asked += MIB
        pump(self.streams)

    def _nothing(self) -> None:
        pass

    def _fetch(self, span: range, ended: Callable[[], None]) -> int:
        pages = [p for p in range(span.start // PAGE_BYTES, -(-span.stop // PAGE_BYTES)) if p not in self.begun]
        self.begun.update(pages)

        def done() -> None:
            self.have.update(pages)
            ended()
            while self.read // PAGE_BYTES in self.have:
                self.read += PAGE_BYTES
                self.arrived_s.append(self.link.now_s)
            self.go_on()

        if pages:
            self.requests += 1
            self.link.request(len(pages) * PAGE_BYTES, done)
        return len(pages) * PAGE_BYTES

    def fetch_ahead(self, span: range) -> None:
        size = self._fetch(span, lambda: self.streams.flow.ended(size, self.link.now_s))
        if size:
            self.streams.flow.began(size, self.link.now_s)


def pump(streams: Streams[Reader]) -> None:
    while (turn := streams.next()) is not None:
        turn.key.fetch_ahead(turn.bytes)


def ours(link: Link, size: int, readers: int = 1, ahead: int = KERNEL_AHEAD) -> tuple[float, list[Reader], Flow]:
    flow = Flow(MAX)
    streams: Streams[Reader] = Streams(flow)
    all_readers = [Reader(link, streams, size, ahead) for _ in range(readers)]
    for reader in all_readers:
        reader.go_on()
    return link.run(lambda: all(reader.over for reader in all_readers)), all_readers, flow


def raw(link: Link, size: int) -> float:
    """The benchmark's raw driver: so many requests at once, in order."""
    left = [size // RAW_BYTES, size // RAW_BYTES]

    def go() -> None:
        if left[0]:
            left[0] -= 1
            link.request(RAW_BYTES, done)

    def done() -> None:
        left[1] -= 1
        go()

    for _ in range(RAW_STREAMS):
        go()
    return link.run(lambda: not left[1])


LINKS = [
    (latency, rate, connection)
    for latency in (0.0005, 0.02, 0.05, 0.1)
    for rate in (20e6, 300e6, 800e6, 2.5e9)
    for connection in (80e6, 1e12)
]


@pytest.mark.parametrize(("latency_s", "bytes_s", "connection_bytes_s"), LINKS)
def test_a_stream_is_as_fast_as_eight_requests_at_once(latency_s: float, bytes_s: float, connection_bytes_s: float) -> None:
    taken_s, _, _ = ours(Link(latency_s, bytes_s, connection_bytes_s), 512 * MIB)
    raw_s = raw(Link(latency_s, bytes_s, connection_bytes_s), 512 * MIB)
    assert raw_s / taken_s > 0.9


@pytest.mark.parametrize(("latency_s", "bytes_s", "connection_bytes_s"), LINKS)
def test_a_long_stream_has_as_much_under_way_as_the_link_needs(
    latency_s: float, bytes_s: float, connection_bytes_s: float
) -> None:
    """And not much more, so what somebody else asks for does not wait long."""
    size = 3072 * MIB
    taken_s, _, flow = ours(Link(latency_s, bytes_s, connection_bytes_s), size)
    request_s = latency_s + 4 * MIB / min(connection_bytes_s, bytes_s)
    assert size / taken_s > 0.75 * min(bytes_s, MAX / request_s)
    assert flow.settled_bytes <= max(LEAST_BYTES, 1.2 * STEP * bytes_s * request_s)


def test_the_pages_of_a_stream_come_in_their_order() -> None:
    """A reader is never kept waiting for long while the link brings pages of later: the kernel needs those of now."""
    link = Link(0.02, 300e6)
    _, (reader,), _ = ours(link, 512 * MIB)
    gaps = [after - before for before, after in zip(reader.arrived_s, reader.arrived_s[1:], strict=False)]
    assert max(gaps) < 0.02 + 2 * LEAST_BYTES / 300e6


@pytest.mark.parametrize(("latency_s", "bytes_s", "connection_bytes_s"), LINKS)
def test_a_kernel_that_is_ahead_of_us_makes_no_small_requests(
    latency_s: float, bytes_s: float, connection_bytes_s: float
) -> None:
    _, (reader,), _ = ours(Link(latency_s, bytes_s, connection_bytes_s), 512 * MIB, ahead=2 * KERNEL_AHEAD)
    assert reader.requests < 1.02 * 512 * MIB / LEAST_RUN_BYTES


def test_streams_share_evenly() -> None:
    link = Link(0.02, 500e6)
    _, readers, _ = ours(link, 256 * MIB, readers=4)
    ends = [reader.arrived_s[-1] for reader in readers]
    assert min(ends) > 0.9 * max(ends)
    assert 4 * 256 * MIB / max(ends) > 0.85 * 500e6


def test_a_link_that_becomes_slow_gets_less_at_once_again() -> None:
    link = Link(0.1, 2.5e9)
    flow = Flow(MAX)
    streams: Streams[Reader] = Streams(flow)
    reader = Reader(link, streams, 8 * 1024 * MIB, KERNEL_AHEAD)
    reader.go_on()
    link.run(lambda: reader.read > 3 * 1024 * MIB)
    assert flow.settled_bytes == MAX
    link.bytes_s = 50e6
    link.run(lambda: reader.over)
    assert flow.settled_bytes == LEAST_BYTES


def test_failures_tell_nothing_of_the_link_and_give_their_room_back() -> None:
    flow = Flow(MAX)
    for number in range(100):
        flow.began(4 * MIB, number)
        flow.ended(4 * MIB, number, failed=True)
    assert (flow.limit_bytes, flow.under_way_bytes) == (LEAST_BYTES, 0)


def test_one_request_is_let_through_however_little_may_be_under_way() -> None:
    flow = Flow(1)
    assert flow.has_room
    flow.began(MIB, 0.0)
    assert not flow.has_room


def test_a_stream_that_was_dropped_gets_no_turn() -> None:
    streams: Streams[str] = Streams(Flow(MAX))
    sequence = Sequence(MAX)
    sequence.advance(0, MIB, 1 << 30)
    streams.wants("a", sequence)
    streams.drop("a")
    streams.drop("a")
    assert streams.next() is None
