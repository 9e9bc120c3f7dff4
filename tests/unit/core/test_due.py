"""What is due when."""

from __future__ import annotations

from luxfuse.core.due import Due


def test_the_earliest_comes_first_and_each_once() -> None:
    due: Due[str] = Due()
    due.put("b", 2.0)
    due.put("a", 1.0)
    due.put("c", 2.0)
    assert due.pop(0.5) is None
    assert [due.pop(2.0) for _ in range(4)] == ["a", "b", "c", None]
    assert not due


def test_an_item_that_is_put_again_counts_for_its_last_time_only() -> None:
    due: Due[str] = Due()
    due.put("a", 1.0)
    due.put("a", 3.0)
    assert (due.at_s("a"), len(due)) == (3.0, 1)
    assert due.pop(2.0) is None
    due.put("a", 0.5)
    assert due.pop(2.0) == "a"
    assert due.pop(9.0) is None, "what it was due at before is forgotten"


def test_a_dropped_item_is_not_due() -> None:
    due: Due[str] = Due()
    due.put("a", 1.0)
    due.put("b", 1.0)
    due.drop("a")
    due.drop("never")
    assert "a" not in due
    assert due.items() == [("b", 1.0)]
    assert [due.pop(1.0), due.pop(1.0)] == ["b", None]
