"""When questions that are asked in vain are given up, and when they are asked again."""

from __future__ import annotations

from luxfuse.core.vain import LONGEST_PAUSE_S, PAUSE_S, VAIN_MOST, InVain, Pause


def test_one_thing_is_given_up_and_the_others_are_not() -> None:
    vain = InVain()
    for _ in range(VAIN_MOST):
        assert not vain.gives_up("a", 0)
        assert not vain.note("a", 0), "others are asked about"
    assert vain.gives_up("a", PAUSE_S - 1)
    assert not vain.gives_up("b", 0)
    assert not vain.gives_up_all(0)
    assert not vain.gives_up("a", PAUSE_S)


def test_all_are_given_up_after_so_many_and_none_after_an_answer_of_use() -> None:
    vain = InVain()
    assert [vain.note(f"{n}", n) for n in range(VAIN_MOST)] == [False] * (VAIN_MOST - 1) + [True]
    assert vain.gives_up("good", VAIN_MOST)
    assert vain.gives_up_all(VAIN_MOST)
    assert not vain.note("good", VAIN_MOST), "told twice"
    vain.end()
    assert not vain.gives_up("0", VAIN_MOST)
    assert not vain.gives_up_all(VAIN_MOST)


def test_after_a_pause_it_is_asked_again_and_one_answer_of_no_use_begins_a_longer_one() -> None:
    vain, now_s = InVain(), 0.0
    for n in range(VAIN_MOST):
        vain.note(f"{n}", now_s)
    for length_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S):
        assert vain.gives_up("good", now_s + length_s - 1)
        now_s += length_s
        assert not vain.gives_up("good", now_s)
        assert vain.note("good", now_s)
    vain.end()
    for n in range(VAIN_MOST):
        assert not vain.gives_up("good", now_s)
        vain.note(f"{n}", now_s)
    assert not vain.gives_up("good", now_s + PAUSE_S), "the old pause counts"


def test_what_is_tried_for_ever_takes_no_more_room_and_is_tried_every_so_often() -> None:
    vain, now_s, tried = InVain(), 0.0, 0
    while now_s < 100 * LONGEST_PAUSE_S:
        if not vain.gives_up(f"{now_s}", now_s):
            tried += 1
            vain.note(f"{now_s}", now_s)
        now_s += PAUSE_S
    assert 100 <= tried < 120
    assert len(vain._counts) == VAIN_MOST


def test_the_pause_of_all_begins_anew_where_one_thing_alone_was_odd_for_long() -> None:
    vain, now_s = InVain(), 0.0
    while now_s < 10 * LONGEST_PAUSE_S:
        if not vain.gives_up("odd", now_s):
            vain.note("odd", now_s)
        now_s += PAUSE_S
    for name in ("a", "b"):
        vain.note(name, now_s)
    assert vain.gives_up_all(now_s)
    assert not vain.gives_up_all(now_s + PAUSE_S)


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
