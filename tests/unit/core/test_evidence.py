"""Whether attributes are expected, from what was found, and how many are asked for ahead."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.evidence import AHEAD_A_LOOK, DIRECTORIES_KEPT, ENOUGH, MOST_AHEAD, SAMPLE, SHARE, Ahead, Evidence


def test_nothing_is_expected_before_a_few_were_asked_for() -> None:
    evidence = Evidence()
    for number in range(SAMPLE):
        assert evidence.expects(7) is None
        assert evidence.note(7, carries=False)
        assert (evidence.in_vain, evidence.found) == (number + 1, False)
    assert evidence.expects(7) is False
    assert evidence.expects(8) is None


def test_a_bucket_without_any_is_believed_to_have_none() -> None:
    evidence = Evidence()
    for directory in range(ENOUGH):
        assert evidence.expects(directory) is None
        evidence.note(directory, carries=False)
    assert evidence.expects(ENOUGH) is False
    assert not evidence.note(99, carries=False)
    # As the next run takes it up.
    assert Evidence(evidence.in_vain).expects(1) is False


def test_one_that_is_found_makes_each_directory_be_judged_by_itself() -> None:
    evidence = Evidence(ENOUGH)
    assert evidence.note(1, carries=True)
    assert evidence.expects(1) is True
    assert evidence.expects(2) is None
    for _ in range(SAMPLE):
        evidence.note(2, carries=False)
    assert evidence.expects(2) is False
    assert evidence.expects(1) is True


def test_one_among_many_does_not_count() -> None:
    evidence = Evidence()
    evidence.note(1, carries=True)
    for _ in range(SHARE):
        evidence.note(1, carries=False)
    assert evidence.expects(1) is True
    evidence.note(1, carries=False)
    assert evidence.expects(1) is False


def test_what_is_written_here_says_nothing_of_its_directory() -> None:
    evidence = Evidence(ENOUGH)
    assert evidence.note(None, carries=True)
    assert evidence.expects(1) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_what_outlives_the_mount_fits_into_a_byte_each(notes: list[tuple[int, bool]]) -> None:
    evidence = Evidence()
    for directory, carries in notes:
        before = (evidence.in_vain, evidence.found)
        assert evidence.note(directory, carries=carries) == (before != (evidence.in_vain, evidence.found))
    assert 0 <= evidence.in_vain <= ENOUGH < 256
    assert evidence.found == any(carries for _, carries in notes)


def test_directories_are_forgotten_in_the_end() -> None:
    evidence = Evidence(found=True)
    for directory in range(DIRECTORIES_KEPT + 1):
        evidence.note(directory, carries=True)
    assert evidence.expects(0) is None
    assert evidence.expects(1) is True


def test_more_are_asked_for_ahead_the_more_are_looked_at() -> None:
    ahead = Ahead()
    ahead.looked()
    assert ahead.budget == 0
    budgets = [0]
    for _ in range(100):
        ahead.looked()
        budgets.append(ahead.budget)
    steps = [after - before for before, after in itertools.pairwise(budgets)]
    assert max(steps) == AHEAD_A_LOOK
    assert ahead.budget == MOST_AHEAD
