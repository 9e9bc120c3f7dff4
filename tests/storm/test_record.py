"""The checker of storms finds what is planted, and nothing else."""

from __future__ import annotations

import errno

import pytest

from tests.storm.record import Absent, Beginning, Changed, Exactly, Record
from tests.storm.report import errors
from tests.storm.verdict import ALWAYS, WITHOUT_KEEPER, Call, Window, judge, slope_per_minute


@pytest.fixture
def record() -> Record:
    made = Record()
    made.wrote("a", b"content")
    return made


def test_what_was_acknowledged_is_there(record: Record) -> None:
    assert record.judge("a", b"content") is None
    assert record.judge("b", None) is None


@pytest.mark.parametrize("found", [None, b"", b"conten", b"content!", b"c\0ntent"])
def test_planted_loss_and_damage_are_found(record: Record, found: bytes | None) -> None:
    assert record.judge("a", found) is not None


def test_what_was_removed_does_not_come_back(record: Record) -> None:
    record.removed("a")
    assert record.judge("a", b"content") is not None
    assert record.judge_listing(["a"]) == "listed and not there: ['a']"


def test_a_write_that_failed_leaves_old_or_new(record: Record) -> None:
    record.may_be("a", Beginning(b"renewed"))
    for found in (b"content", b"", b"ren", b"renewed"):
        assert record.judge("a", found) is None, found
    for wrong in (None, b"cont", b"rentent", b"renewed!"):
        assert record.judge("a", wrong) is not None, wrong
    assert record.doubtful() == ["a"]
    assert record.content("a") is None


def test_an_append_that_failed_keeps_what_was_there(record: Record) -> None:
    record.may_be("a", Beginning(b"content and more", least=7))
    assert record.judge("a", b"content and") is None
    assert record.judge("a", b"cont") is not None


def test_an_overwrite_that_failed_changes_nothing_beside_it(record: Record) -> None:
    record.may_be("a", Changed(b"content", 2, b"XYZ"))
    for found in (b"content", b"coXtent", b"coXYZnt", b"conYent"):
        assert record.judge("a", found) is None, found
    for wrong in (b"Xontent", b"coXYZnX", b"coXY", b"co\0tent"):
        assert record.judge("a", wrong) is not None, wrong


def test_what_is_written_anew_is_known_again(record: Record) -> None:
    record.may_be("a", Absent())
    record.wrote("a", b"again")
    assert record.of("a") == (Exactly(b"again"),)
    assert record.judge("a", None) is not None


def test_a_listing_has_all_that_is_surely_there_and_nothing_else(record: Record) -> None:
    record.wrote("b", b"")
    record.may_be("c", Exactly(b"maybe"))
    record.leave("d")
    for found in (["a", "b"], ["b", "a", "c"], ["a", "b", "d"]):
        assert record.judge_listing(found) is None, found
    assert record.judge_listing(["a"]) == "not listed: ['b']"
    assert record.judge_listing(["a", "b", "a"]) == "listed more than once: ['a']"
    assert record.judge_listing(["a", "b", "e"]) == "listed and not there: ['e']"


def test_a_rename_is_made_or_not(record: Record) -> None:
    record.wrote("b", b"other")
    before = {name: record.of(name) for name in ("a", "b")}
    for found in ({"a": b"content", "b": b"other"}, {"a": None, "b": b"content"}):
        assert record.judge_failed_rename(before, found, "a", "b") is None, found
    for wrong in ({"a": None, "b": None}, {"a": None, "b": b"other"}, {"a": b"content", "b": b"content"}):
        assert record.judge_failed_rename(before, wrong, "a", "b") is not None, wrong
    record.renamed("a", "b")
    assert record.judge("a", b"content") is not None
    assert record.judge("b", b"other") is not None
    assert record.judge("b", b"content") is None


def test_errors_are_allowed_by_what_was_broken_then() -> None:
    store, kill = Window("store", 10, 20), Window("kill", 30, 31)
    for call, without, kept in (
        (Call(1, "read", "a", errno.EIO, 12, 13), True, True),
        (Call(1, "read", "a", errno.EIO, 5, 11), True, True),
        (Call(1, "read", "a", errno.EIO, 24, 24.5), True, True),
        (Call(1, "read", "a", errno.EIO, 26, 26.5), False, False),
        (Call(1, "read", "a", errno.ENOENT, 12, 13), False, False),
        (Call(1, "write", "a", errno.ENOTCONN, 30.5, 30.6), True, False),
        (Call(1, "write", "a", errno.ENOTCONN, 12, 13), False, False),
    ):
        for allowed, fine in ((ALWAYS | WITHOUT_KEEPER, without), (ALWAYS, kept)):
            assert (not judge([call], [store, kill], allowed, deadline_s=10, zero=0)) == fine, call


def test_waits_beyond_the_deadline_are_found_but_for_the_time_without_a_daemon() -> None:
    kill = Window("kill", 2, 10)
    fine, late = Call(1, "read", "a", 0, 1, 13), Call(1, "read", "a", 0, 1, 15)
    assert judge([fine], [kill], ALWAYS, deadline_s=5, zero=0) == []
    assert "beyond the deadline" in judge([late], [kill], ALWAYS, deadline_s=5, zero=0)[0]


def test_slopes() -> None:
    assert slope_per_minute([(float(t), 100 + t / 30) for t in range(100)]) == pytest.approx(2)
    assert slope_per_minute([(0.0, 5.0), (60.0, 5.0)]) == 0
    assert slope_per_minute([(1.0, 5.0)]) == slope_per_minute([]) == 0


def test_errors_of_the_log_are_found() -> None:
    quiet = 'timestamp=2026-11-30T10:32:51+00:00 level=warning logger=luxfuse.keeper event="the daemon died"'
    wrong = 'timestamp=2026-11-30T10:32:51.488+00:00 level=error logger=luxfuse.fuse.errnos event="release failed"'
    assert errors(f"{quiet}\n{wrong}\nTraceback\n") == [wrong, "Traceback"]
