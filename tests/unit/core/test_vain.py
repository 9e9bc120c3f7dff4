"""When questions that are asked in vain are given up."""

from __future__ import annotations

from luxfuse.core.vain import VAIN_MOST, InVain


def test_one_thing_is_given_up_and_the_others_are_not() -> None:
    vain = InVain()
    for _ in range(VAIN_MOST):
        assert not vain.gives_up("a")
        vain.note("a")
    assert vain.gives_up("a")
    assert not vain.gives_up("b")


def test_all_are_given_up_after_so_many_and_none_after_an_answer_of_use() -> None:
    vain = InVain()
    for n in range(VAIN_MOST):
        assert not vain.gives_up("good")
        vain.note(f"{n}")
    assert vain.gives_up("good")
    vain.end()
    assert not vain.gives_up("0")
