"""When questions that are asked in vain are given up."""

from __future__ import annotations

from luxfuse.core.vain import VAIN_MOST, InVain, Pause


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


def test_pauses_double_and_begin_anew_after_an_answer_of_use() -> None:
    pause = Pause(60, 200)
    now_s, lengths = 0.0, []
    for _ in range(4):
        assert not pause.is_on(now_s)
        assert pause.note(now_s)
        assert not pause.note(now_s + 1), "what was on its way makes it longer"
        began_s = now_s
        while pause.is_on(now_s):
            now_s += 1
        lengths.append(now_s - began_s)
    assert lengths == [60, 120, 200, 200]
    pause.note(now_s)
    pause.end()
    assert not pause.is_on(now_s)
    pause.note(now_s)
    assert pause.is_on(now_s + 59)
    assert not pause.is_on(now_s + 60)
