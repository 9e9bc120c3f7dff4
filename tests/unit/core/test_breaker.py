"""When a store is taken for away, and how it is found again: by steps, and by storms with a seed."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from luxfuse.core.breaker import DOUBT_S, MOST_PROBES, PROBE_DEADLINE_S, PROBE_EVERY_S, Breaker

PATIENCE_S = 30.0
LOOK_S = 0.5


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(PATIENCE_S, 0.0)


def probe_in_vain(breaker: Breaker, began_s: float, ended_s: float) -> bool:
    assert breaker.is_probe_due(began_s)
    breaker.probe_began(began_s)
    breaker.probe_ended()
    return breaker.probe_failed(began_s, ended_s)


def test_nothing_is_thought_of_a_store_that_nobody_asks(breaker):
    assert breaker.state == "closed"
    assert not breaker.is_doubtful(1e6)
    assert not breaker.is_probe_due(1e6)


def test_it_is_away_when_probes_fail_and_the_patience_is_over(breaker):
    breaker.unanswered(10.0, 10.0)
    assert not breaker.is_doubtful(10.0 + DOUBT_S - 0.1)
    assert breaker.is_doubtful(10.0 + DOUBT_S)
    assert not probe_in_vain(breaker, 10.0 + DOUBT_S, 20.0)
    assert not breaker.unanswered(10.0, 39.9)
    assert breaker.unanswered(10.0, 40.0)
    assert (breaker.away, breaker.state, breaker.unanswered_s) == (True, "open", 10.0)
    assert not breaker.unanswered(10.0, 41.0), "it is away already"
    breaker.probe_began(42.0)
    assert breaker.state == "half-open"
    breaker.probe_ended()
    assert breaker.answered(42.1), "it is back"
    assert breaker.state == "closed"
    assert not breaker.is_doubtful(42.1)
    assert not breaker.answered(43.0), "it was there"


def test_a_failing_probe_is_enough_though_nobody_else_asks(breaker):
    breaker.unanswered(0.0, 1.0)
    assert not probe_in_vain(breaker, 3.0, 8.0)
    assert not probe_in_vain(breaker, 20.0, 25.0)
    assert probe_in_vain(breaker, 28.0, 33.0)


def test_without_a_failing_probe_no_number_of_failures_counts(breaker):
    for now_s in range(200):
        assert not breaker.unanswered(0.0, float(now_s))
    assert not breaker.away


def test_an_answer_to_anything_begins_anew(breaker):
    breaker.unanswered(0.0, 5.0)
    probe_in_vain(breaker, 5.0, 10.0)
    assert not breaker.answered(29.0)
    assert not breaker.unanswered(0.0, 31.0), "what waits since before counts from the answer on"
    assert breaker.unanswered_s == 29.0
    assert not breaker.unanswered(29.0, 60.0), "nor does the probe of before count"


def test_a_probe_of_before_an_answer_says_nothing(breaker):
    breaker.unanswered(0.0, 5.0)
    breaker.probe_began(5.0)
    breaker.answered(6.0)
    breaker.probe_ended()
    breaker.probe_failed(5.0, 10.0)
    assert not breaker.unanswered(0.0, 100.0)


def test_probes_that_hang_keep_no_others_from_being_sent_but_are_bounded(breaker):
    breaker.unanswered(0.0, 0.0)
    sent = []
    for step in range(100):
        now_s = 10 + step * LOOK_S
        if breaker.is_probe_due(now_s):
            breaker.probe_began(now_s)
            sent.append(now_s)
    assert len(sent) == MOST_PROBES
    assert {b - a for a, b in itertools.pairwise(sent)} == {PROBE_EVERY_S}
    breaker.probe_ended()
    assert breaker.is_probe_due(100.0)


def test_a_slow_request_puts_no_store_in_doubt_that_answers_a_probe(breaker):
    doubted = False
    for step in range(1, 200):
        now_s = step * LOOK_S
        breaker.unanswered(0.0, now_s)
        doubted = doubted or breaker.is_doubtful(now_s)
        if breaker.is_probe_due(now_s):
            breaker.probe_began(now_s)
            breaker.probe_ended()
            breaker.answered(now_s + 0.1)
    assert not doubted


def test_little_patience_is_doubted_early():
    breaker = Breaker(1.0, 0.0)
    breaker.unanswered(0.0, 0.0)
    assert breaker.is_doubtful(0.5)
    assert breaker.probe_deadline_s == 1.0


class Storm:
    """A store that comes and goes, and requests to it, in virtual time; checks every step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.breaker = Breaker(PATIENCE_S, 0.0)
        self.now_s = 0.0
        self.events: list[tuple[float, int, str, float]] = []
        self.serial = itertools.count()
        self.up, self.changed_s, self.answered_s = True, 0.0, 0.0
        self.waiting: dict[float, None] = {}
        self.probing = 0
        self.outages = 0

    def at(self, after_s: float, what: str, since_s: float = 0.0) -> None:
        heapq.heappush(self.events, (self.now_s + after_s, next(self.serial), what, since_s))

    def run(self, until_s: float) -> None:
        self.at(self.random.uniform(1, 100), "turn")
        self.at(0.0, "ask")
        self.at(0.0, "look")
        while self.events[0][0] < until_s:
            self.now_s, _, what, since_s = heapq.heappop(self.events)
            getattr(self, what)(since_s)
            self.check()

    def check(self) -> None:
        breaker, quiet_s = self.breaker, self.now_s - self.answered_s
        assert self.probing <= MOST_PROBES
        if breaker.away:
            assert quiet_s >= PATIENCE_S or self.opened
        if self.up and self.now_s - self.changed_s > 5.0:
            assert not breaker.away, f"it is back for {self.now_s - self.changed_s} s"

    @property
    def opened(self) -> bool:
        since_s = self.breaker.unanswered_s
        assert since_s is not None
        return self.now_s - since_s >= PATIENCE_S

    def turn(self, _: float) -> None:
        self.up, self.changed_s = not self.up, self.now_s
        self.at(self.random.uniform(1, 100), "turn")

    def ask(self, _: float) -> None:
        if self.breaker.away:
            pass  # it is refused
        elif self.up:
            self.at(self.random.expovariate(5), "answer", self.now_s)
        else:
            self.waiting[self.now_s] = None
            self.at(self.random.choice([0.01, 10.0]), "fail", self.now_s)
        self.at(self.random.expovariate(1), "ask")

    def answer(self, since_s: float) -> None:
        if self.up:
            self.answered_s = self.now_s
            self.breaker.answered(self.now_s)
        else:
            self.fail(since_s)

    def fail(self, since_s: float) -> None:
        self.waiting.pop(since_s, None)
        self.outages += self.breaker.unanswered(since_s, self.now_s)

    def look(self, _: float) -> None:
        if self.waiting:
            self.outages += self.breaker.unanswered(next(iter(self.waiting)), self.now_s)
        if self.breaker.is_probe_due(self.now_s):
            self.breaker.probe_began(self.now_s)
            self.probing += 1
            if self.up:
                self.at(self.random.expovariate(10), "probe_answered", self.now_s)
            else:
                self.at(PROBE_DEADLINE_S, "probe_failed", self.now_s)
                self.at(10.0, "probe_over")
        self.at(LOOK_S, "look")

    def probe_answered(self, since_s: float) -> None:
        self.probe_over(0.0)
        if self.up:
            self.answered_s = self.now_s
            self.breaker.answered(self.now_s)
        else:
            self.probe_failed(since_s)

    def probe_failed(self, since_s: float) -> None:
        self.outages += self.breaker.probe_failed(since_s, self.now_s)

    def probe_over(self, _: float) -> None:
        self.probing -= 1
        self.breaker.probe_ended()


@pytest.mark.parametrize("seed", range(30))
def test_in_storms_it_is_never_away_without_reason_nor_for_longer_than_five_seconds(seed):
    storm = Storm(seed)
    storm.run(3600.0)
    assert storm.outages > 5
