"""A loop that is stuck is told from one that is slow, stopped, or held up: by looks, in plain values."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from luxfuse.core.stalls import COMPUTES_S, STUCK_AFTER, TOLD_AFTER, Finding, Look, Stalls

QUIET = Look(1.0, asleep=True, held_up=False)


def found(looks: Iterable[Look], stalls: Stalls | None = None) -> list[tuple[int, Finding]]:
    """What is found, by the number of the look."""
    stalls = stalls or begun()
    findings = ((number, stalls.look(look)) for number, look in enumerate(looks, 1))
    return [(number, finding) for number, finding in findings if finding is not None]


def begun() -> Stalls:
    stalls = Stalls(0.0)
    assert stalls.turned(1.0) is None
    return stalls


def test_what_was_computed_before_the_first_look_does_not_count() -> None:
    looks = [Look(10 * COMPUTES_S, asleep=False, held_up=False)] * (TOLD_AFTER - 1)
    assert found(looks, Stalls(10 * COMPUTES_S)) == []


def test_one_that_sleeps_is_told_of_and_then_stuck_and_again() -> None:
    assert found([QUIET] * (2 * STUCK_AFTER)) == [
        (TOLD_AFTER, Finding.STALLED), (STUCK_AFTER, Finding.STUCK), (2 * STUCK_AFTER, Finding.STUCK),
    ]  # fmt: skip


def test_a_turn_ends_it() -> None:
    stalls = begun()
    found([QUIET] * (STUCK_AFTER - 1), stalls)
    assert stalls.turned(1.0) is Finding.TURNS
    assert not stalls.stalled
    assert found([QUIET] * (STUCK_AFTER - 1), stalls) == [(TOLD_AFTER, Finding.STALLED)]


SLOW = {
    "it uses a little processor time": lambda n: Look(1.0 + n / 1e6, asleep=True, held_up=False),
    "it could run and may not, or waits for a disk": lambda n: Look(1.0, asleep=False, held_up=False),
    "a thread waits for a disk, or is debugged": lambda n: Look(1.0, asleep=True, held_up=True),
    "now and then a thread waits for a disk": lambda n: Look(1.0, asleep=True, held_up=n % (STUCK_AFTER - 1) == 0),
    "it computes on a slow machine": lambda n: Look(1.0 + n * COMPUTES_S / 2000, asleep=False, held_up=False),
    "it computes in a debugger": lambda n: Look(1.0 + n, asleep=False, held_up=True),
}


@pytest.mark.parametrize("slow", SLOW)
def test_one_that_is_slow_or_held_up_is_never_stuck(slow: str) -> None:
    assert found(SLOW[slow](number) for number in range(1, 1999)) == [(TOLD_AFTER, Finding.STALLED)]


def test_one_that_was_held_up_gets_as_long_again() -> None:
    looks = [Look(1.0, asleep=True, held_up=True)] * 500 + [QUIET] * STUCK_AFTER
    assert found(looks) == [(TOLD_AFTER, Finding.STALLED), (500 + STUCK_AFTER, Finding.STUCK)]


def test_one_that_computes_for_ever_is_stuck() -> None:
    looks = (Look(1.0 + number, asleep=False, held_up=False) for number in range(1, int(COMPUTES_S) + 1))
    assert found(looks) == [(TOLD_AFTER, Finding.STALLED), (int(COMPUTES_S), Finding.STUCK)]
