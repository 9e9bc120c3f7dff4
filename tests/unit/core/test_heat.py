"""Which pages of a large object are the coldest."""

from __future__ import annotations

from luxfuse.core.heat import STRETCH_PAGES, Heat


def test_the_least_read_stretches_come_first_and_of_equal_ones_the_last() -> None:
    heat = Heat(3 * STRETCH_PAGES + 2)
    for _ in range(5):
        heat.add(range(STRETCH_PAGES, STRETCH_PAGES + 1))
    heat.add(range(3))
    order = list(heat.coldest(lambda page: page % 2 == 0, 3 * STRETCH_PAGES + 2, None))
    assert [page // STRETCH_PAGES for page in order] == [3] + [2] * 4 + [0] * 4 + [1] * 4
    assert order[:3] == [24, 22, 20]


def test_what_is_read_as_often_does_not_give_way() -> None:
    heat = Heat(4 * STRETCH_PAGES)
    for _ in range(3):
        heat.add(range(4 * STRETCH_PAGES))
    heat.add(range(1))
    wanted = heat.of([0])
    assert wanted == 4
    assert not list(heat.coldest(lambda _page: True, 4 * STRETCH_PAGES, wanted))
    for _ in range(4):
        heat.add(range(1))
    cold = list(heat.coldest(lambda _page: True, 4 * STRETCH_PAGES, heat.of([0])))
    assert sorted(cold) == list(range(STRETCH_PAGES, 4 * STRETCH_PAGES))


def test_what_was_hot_once_cools_down() -> None:
    heat = Heat(2 * STRETCH_PAGES)
    for _ in range(200):
        heat.add(range(1))
    for _ in range(600):
        heat.add(range(STRETCH_PAGES, STRETCH_PAGES + 1))
    assert heat.of([0]) <= 200 // 4
    assert heat.of([STRETCH_PAGES]) > 2 * heat.of([0])
    assert heat.of([]) == 0


def test_a_read_may_touch_several_stretches() -> None:
    heat = Heat(3 * STRETCH_PAGES)
    heat.add(range(STRETCH_PAGES - 1, STRETCH_PAGES + 1))
    assert [heat.of([page]) for page in (0, STRETCH_PAGES, 2 * STRETCH_PAGES)] == [1, 1, 0]
