"""When files are not asked for in C because the store has refused that, and when they are again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from luxfuse.core.vain import LONGEST_PAUSE_S, PAUSE_S, VAIN_MOST
from luxfuse.understore.gets import client
from luxfuse.understore.gets.client import AS_USUAL, IS_BUILT, Dialect, Door, Elsewhere, Gets
from luxfuse.understore.small_files import WantedFile

pytestmark = pytest.mark.skipif(not IS_BUILT, reason="built without libcurl")


class Pool:
    """Answers all with one status."""

    def __init__(self) -> None:
        self.status = 200
        self.asked = 0
        self.outcome: tuple[Any, ...] | None = None
        """Another answer than that status is."""

    def fetch(self, wanted: Sequence[Any], secrets: object, abandoned: bytearray) -> list[Any]:
        self.asked += 1
        return [self._result((b"x", 0, {}, (0,), 0, 0, -1, 0, False)) for _ in wanted]

    def read(self, key: str, version: str, start: int, size: int, secrets: object) -> Any:
        self.asked += 1
        return self._result((b"x", 1, 0, {}))

    def _result(self, more: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.outcome is not None:
            return self.outcome
        if self.status == 200:
            return (client._gets.GET_DONE, 200, 0, 0.1, *more)
        if self.status == 0:
            return (client._gets.GET_FAILED, 0, client.TIMED_OUT, 0.1)
        return (client._gets.GET_ANSWERED, self.status, 0, 0.1)


class Clock:
    """The time, as it is told."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def opened(door: Door | None = None) -> tuple[Gets, Pool]:
    gets = Gets(Dialect("az", "m-"), "http://127.0.0.1:1/c", "", door or Door(), bundle="/none", timeout_s=9, most=4)
    pool = Pool()
    gets._pool = pool
    return gets, pool


def ask(gets: Gets, *keys: str) -> list[client.Answer]:
    return gets.fetch([WantedFile(key, '"v"', 1, None, False) for key in keys], bytearray(1))


@pytest.mark.parametrize("status", [307, 400, 401, 403])
def test_what_is_refused_in_c_alone_is_not_asked_for_there_for_a_while(clock: Clock, status: int) -> None:
    gets, pool = opened()
    pool.status = status
    for n in range(VAIN_MOST):
        assert gets.is_useful
        assert ask(gets, f"{n}", "other")[0].arrived is None
    for pause_s in (PAUSE_S, 2 * PAUSE_S):
        assert not gets.is_useful
        asked = pool.asked
        assert ask(gets, "a", "b") == [AS_USUAL, AS_USUAL]
        assert gets.read("a", 0, 1, '"v"') is None
        assert pool.asked == asked, "each costs two requests"
        clock.now_s += pause_s - 1
        assert not gets.is_useful
        clock.now_s += 1
        assert gets.is_useful
        ask(gets, "a")
        assert pool.asked == asked + 1
    clock.now_s += LONGEST_PAUSE_S
    pool.status = 200
    assert ask(gets, "a")[0].arrived is not None
    pool.status = status
    ask(gets, "a")
    assert gets.is_useful, "one in vain is enough, though another one was not"


@pytest.mark.parametrize("status", [0, 404, 412, 429, 500, 503])
def test_busy_servers_broken_connections_and_odd_objects_are_no_refusals(clock: Clock, status: int) -> None:
    gets, pool = opened()
    pool.status = status
    for n in range(2 * VAIN_MOST):
        ask(gets, f"{n}")
    assert gets.is_useful


def test_one_object_that_is_refused_keeps_none_of_the_others_away(clock: Clock) -> None:
    gets, pool = opened()
    pool.status = 403
    for _ in range(2 * VAIN_MOST):
        ask(gets, "a")
        gets.read("a", 0, 1, '"v"')
    assert gets.is_useful


def test_parts_that_are_refused_count_as_well(clock: Clock) -> None:
    gets, pool = opened()
    pool.status = 403
    for n in range(VAIN_MOST):
        assert gets.read(f"{n}", 0, 1, '"v"') is None
    assert not gets.is_useful
    clock.now_s += PAUSE_S
    pool.status = 200
    assert gets.read("a", 0, 1, '"v"') is not None
    assert gets.is_useful


def test_parts_that_are_of_no_use_are_asked_for_again_after_a_pause(clock: Clock) -> None:
    gets, pool = opened()

    def read(name: str, outcome: int, code: int = 0) -> object:
        pool.outcome = (outcome, 200 if outcome == client._gets.GET_ANSWERED else 0, code, 0.1)
        return gets.read(name, 0, 1, '"v"')

    for n in range(VAIN_MOST):
        assert read(f"{n}", client._gets.GET_ANSWERED) is None
    for pause_s in (PAUSE_S, 2 * PAUSE_S):
        for _ in range(2):
            assert read("new", client._gets.GET_ANSWERED) is None
        assert pool.asked == VAIN_MOST
        clock.now_s += pause_s
        assert read("new", client._gets.GET_FAILED, 35) is None, "TLS fails"
        pool.asked, asked = VAIN_MOST, pool.asked
        assert asked == VAIN_MOST + 1
    clock.now_s += LONGEST_PAUSE_S
    pool.outcome = None
    assert gets.read("new", 0, 1, '"v"') is not None
    assert read("new", client._gets.GET_ANSWERED) is None
    pool.outcome = None
    assert gets.read("new", 0, 1, '"v"') is not None


class Doorkeeper(Door):
    """A door that is told where it is."""

    elsewhere, known = True, True
    told = ""

    def __call__(self) -> None:
        if self.elsewhere:
            raise Elsewhere

    @property
    def is_elsewhere(self) -> bool:
        return self.elsewhere and self.known

    def accepted(self) -> None:
        self.told += "+"

    def refused(self) -> None:
        self.told += "-"


def test_a_door_that_is_elsewhere_says_so(clock: Clock) -> None:
    door = Doorkeeper()
    gets, pool = opened(door)
    assert not gets.is_useful
    door.elsewhere = False
    assert gets.is_useful
    ask(gets, "a", "b")
    pool.status = 401
    ask(gets, "a", "b")
    assert door.told == "+-", "told for each file"
    door.elsewhere, door.known = True, False
    for n in range(VAIN_MOST):
        assert ask(gets, f"{n}") == [AS_USUAL]
    assert not gets.is_useful
