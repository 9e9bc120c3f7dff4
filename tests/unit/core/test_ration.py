"""How often the log says a thing."""

from __future__ import annotations

import math

from luxfuse.core.ration import Ration


def test_so_many_are_said_in_a_while_and_of_more_the_number() -> None:
    ration = Ration(2, 60.0)
    assert ration.settle(0.0) == 0
    assert [ration.may_say(now_s) for now_s in (10.0, 11.0, 12.0, 69.0)] == [True, True, False, False]
    assert ration.settle(69.9) == 0, "the while began with the first one"
    assert ration.settle(70.0) == 2
    assert ration.settle(500.0) == 0, "it is said once"
    assert [ration.may_say(now_s) for now_s in (600.0, 600.1, 600.2)] == [True, True, False]
    assert ration.settle(math.inf) == 1


def test_a_while_in_which_all_was_said_ends_without_a_word() -> None:
    ration = Ration(2, 60.0)
    assert ration.may_say(0.0)
    assert ration.settle(60.0) == 0
    assert [ration.may_say(61.0), ration.may_say(62.0), ration.may_say(120.9)] == [True, True, False]
    assert ration.settle(120.9) == 0
    assert ration.settle(121.0) == 1
