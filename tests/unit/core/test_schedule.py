"""Schedules: what is taken, what is kept, and where the reader is taken to be."""

from __future__ import annotations

import random

import pytest

from luxfuse.core.schedule import LATELY, MOST_AHEAD, MOST_NAMES, SOON, UNFORESEEN, Schedule

WINDOW = 1000


def bring(schedule: Schedule, most: int = 10_000, size: int = 10) -> list[int]:
    """Take what there is room for and bring it; returns the places."""
    brought: list[int] = []
    while taken := schedule.take(most):
        for place, name in taken:
            schedule.bring(place, name.encode(), size)
        brought += [place for place, _ in taken]
    return brought


def told(names: int, window: int = WINDOW) -> Schedule:
    schedule = Schedule(window)
    schedule.tell([f"n{n}" for n in range(names)])
    return schedule


def test_as_much_is_brought_as_the_window_has_and_more_as_it_is_opened() -> None:
    schedule = told(500)
    places = bring(schedule)
    assert places == list(range(100))
    assert schedule.ahead_bytes == WINDOW
    for n in range(12):
        assert schedule.opened(f"n{n}".encode())
        assert bring(schedule) == []  # a few files at a time cost too much
    schedule.opened(b"n12")
    assert bring(schedule) == list(range(100, 113))
    assert not schedule.keeps(b"n12")
    assert schedule.keeps(b"n13")
    assert schedule.keeps(b"n112")


def test_what_was_handed_out_is_kept_until_it_is_opened() -> None:
    schedule = told(900)
    bring(schedule)
    schedule.reach(80)
    assert schedule.ahead_files == 20
    assert bring(schedule) == list(range(100, 180))
    assert all(schedule.keeps(f"n{n}".encode()) for n in range(180))
    schedule.opened(b"n3")
    assert not schedule.keeps(b"n3")
    schedule.reach(180)
    assert [n for n in range(180) if schedule.keeps(f"n{n}".encode())] == [n for n in range(180) if n != 3]
    assert bring(schedule) == [], "nothing is fetched that would push out what workers were handed"
    for n in range(100):
        schedule.opened(f"n{n}".encode())
    assert bring(schedule) == list(range(180, 280))


def test_what_is_opened_far_ahead_of_what_was_handed_out_is_opened_by_others() -> None:
    schedule = told(900, window=2000)
    schedule.reach(0)
    bring(schedule)
    assert not schedule.opened(b"n190")
    assert schedule.keeps(b"n190")
    assert schedule.opened(b"n100"), "it may have been handed out since"
    schedule.reach(150)
    assert schedule.opened(b"n190")


def test_names_that_were_handed_out_long_ago_are_not_brought() -> None:
    schedule = told(6000)
    bring(schedule)
    schedule.reach(6000)
    assert schedule.kept == {}.keys()
    assert bring(schedule)[0] == 6000 - MOST_AHEAD
    schedule.reach(10_000)
    assert schedule.position == 6000


def test_files_that_workers_skip_do_not_stop_it() -> None:
    """They are handed out, and of three only one is opened, some way behind."""
    schedule = told(6000)
    schedule.reach(0)
    met = 0
    for n in range(0, 6000, 3):
        schedule.reach(n)
        bring(schedule)
        met += n < 30 or schedule.opened(f"n{n - 30}".encode())
    assert met > 1400
    assert len(schedule.kept) < 300


def test_what_is_handed_out_at_once_as_a_job_begins_is_brought_all_the_same() -> None:
    schedule = told(500)
    schedule.reach(70)
    assert bring(schedule) == list(range(170)), "what was handed out, and a window ahead of it"
    assert all(schedule.keeps(f"n{n}".encode()) for n in range(170))
    assert schedule.ahead_bytes == WINDOW
    schedule.reach(400)
    assert bring(schedule) == [], "before more is brought, some of it is opened"
    for n in range(120):
        schedule.opened(f"n{n}".encode())
    assert bring(schedule) == list(range(170, 220))


def test_what_was_opened_before_it_could_be_brought_is_not_brought_any_more() -> None:
    schedule = told(500)
    schedule.reach(70)
    for n in range(20):
        schedule.opened(f"n{n}".encode())
    assert not any(schedule.bring(place, name.encode(), 10) for place, name in schedule.take(1))
    assert bring(schedule)[0] == 1
    assert sorted(schedule.kept) == sorted(f"n{n}".encode() for n in range(20, 170))
    for n in range(3000):
        schedule.opened(f"other{n}".encode())
    assert len(schedule._unforeseen) == UNFORESEEN


def test_what_was_handed_out_stays_when_the_program_has_ended() -> None:
    schedule = told(500)
    bring(schedule)
    schedule.reach(40)
    schedule.opened(b"n3")
    schedule.end()
    assert sorted(schedule.kept) == sorted(f"n{n}".encode() for n in range(40) if n != 3)
    assert schedule.take(10) == []
    assert (schedule.ahead_files, schedule.ahead_bytes) == (0, 0)
    schedule.opened(b"n4")
    assert not schedule.keeps(b"n4")


def test_files_that_nobody_opens_do_not_fill_the_window() -> None:
    """No position is told, and the reader skips two of three."""
    schedule = told(6000)
    bring(schedule)
    met = 0
    for n in range(0, 6000, 3):
        met += schedule.opened(f"n{n}".encode())
        bring(schedule)
    assert met > 1900


def test_another_reader_in_another_order_does_not_drive_it_on() -> None:
    rng = random.Random(1)
    schedule = told(5000)
    bring(schedule)
    for n in range(4000):
        schedule.opened(f"n{n}".encode())
        schedule.opened(f"n{rng.randrange(5000)}".encode())
        bring(schedule)
        assert schedule.position <= n + LATELY


def test_a_name_that_comes_twice_is_kept_for_the_second_time() -> None:
    schedule = Schedule(WINDOW)
    schedule.tell(["a", "b", "a"])
    assert bring(schedule) == [0, 1, 2]
    assert schedule.opened(b"a")
    assert schedule.keeps(b"a")
    assert schedule.opened(b"a")
    assert not schedule.keeps(b"a")
    assert not schedule.opened(b"a")
    assert schedule.ahead_bytes == 10


def test_a_file_larger_than_the_window_is_brought_alone() -> None:
    schedule = told(3, window=5)
    assert schedule.take(10) == [(0, "n0")]
    assert schedule.bring(0, b"n0", 5)
    assert schedule.take(10) == []
    schedule.opened(b"n0")
    assert schedule.take(10) == [(1, "n1")]


def test_nothing_is_unbounded() -> None:
    schedule = told(MOST_NAMES, window=1 << 40)
    assert schedule.room == 0
    with pytest.raises(ValueError, match="more than"):
        schedule.tell(["x"])
    bring(schedule, size=1)
    assert schedule.ahead_files == MOST_AHEAD
    assert schedule.room == MOST_AHEAD
    schedule.reach(MOST_AHEAD)
    assert bring(schedule, size=1) == []
    schedule.reach(2 * MOST_AHEAD)
    bring(schedule, size=1)
    assert len(schedule.kept) == MOST_AHEAD


def test_a_window_has_no_more_files_than_it_may() -> None:
    schedule = told(100, window=1 << 40)
    schedule.window_files = 16
    schedule.reach(0)
    assert bring(schedule, size=1) == list(range(16))
    assert schedule.is_full_for(16)
    schedule.opened(b"n0")
    assert bring(schedule, size=1) == [], "not one by one"
    schedule.opened(b"n1")
    assert bring(schedule, size=1) == [16, 17]
    schedule.reach(18)
    assert bring(schedule, size=1) == list(range(18, 34)), "of those handed out there may be more"
    assert len(schedule.kept) == 32


def test_names_for_which_nothing_is_brought_take_no_room_of_files() -> None:
    """A reader that tells no position, and opens none of them, would never pass them."""
    schedule = told(100, window=1 << 40)
    schedule.window_files = 4
    schedule.reach(0)
    while taken := schedule.take(256):
        for place, _ in taken:
            schedule.skip(place)
    assert schedule.room == MOST_NAMES, "all were taken"


def test_readers_that_skip_files_do_not_stop_one_that_tells_no_position() -> None:
    schedule = told(1000, window=1 << 40)
    schedule.window_files = 4
    assert len(bring(schedule, size=1)) == 1000


def test_names_for_which_nothing_is_brought_do_not_race_ahead_of_the_reader() -> None:
    schedule = told(MOST_NAMES)
    while taken := schedule.take(256):
        for place, _ in taken:
            schedule.skip(place)
    ahead = schedule.ahead_files
    assert MOST_AHEAD * 7 // 8 <= ahead <= MOST_AHEAD
    schedule.reach(1000)
    assert schedule.take(1)[0][0] == ahead
    assert not schedule.kept
    schedule.skip(10)
    assert schedule.ahead_files == ahead - 1000


def test_what_cannot_be_brought_is_not_kept() -> None:
    schedule = told(2)
    bring(schedule)
    schedule.drop(0)
    schedule.drop(0)
    assert not schedule.keeps(b"n0")
    assert schedule.ahead_bytes == 10


def in_reach(schedule: Schedule) -> list[bytes]:
    return [key for key, places in schedule._places.items() if places[0] < schedule.position + SOON]


def test_any_sequence_of_calls_leaves_the_sums_right() -> None:
    rng = random.Random(7)
    for _ in range(50):
        schedule = Schedule(rng.randrange(1, 300), rng.choice([1, 5, MOST_AHEAD]))
        total = 0
        for _ in range(300):
            match rng.randrange(4):
                case 0:
                    schedule.tell([f"n{rng.randrange(60)}" for _ in range(rng.randrange(20))])
                case 1:
                    for place, name in schedule.take(rng.randrange(1, 30)):
                        while schedule.is_full_for(place) and (some := in_reach(schedule)):
                            assert schedule.opened(some[0])
                        if rng.random() < 0.2:
                            schedule.skip(place)
                        else:
                            total += schedule.bring(place, name.encode(), rng.randrange(40))
                case 2:
                    schedule.opened(b"n%d" % rng.randrange(60))
                case _:
                    schedule.reach(schedule.position + rng.randrange(4))
            ahead = sum(size for _, size in schedule._ahead.values())
            behind = sum(size for _, size in schedule._behind.values())
            assert (schedule.ahead_bytes, schedule._behind_bytes) == (ahead, behind)
            assert schedule._kept_ahead == sum(1 for key, _ in schedule._ahead.values() if key)
            assert behind <= 2 * schedule.window_bytes + 80
            places = sorted(place for each in schedule._places.values() for place in each)
            kept = [place for place, (key, _) in (schedule._ahead | schedule._behind).items() if key]
            assert places == sorted(kept)
        assert total
