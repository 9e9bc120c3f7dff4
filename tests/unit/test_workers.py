"""Jobs in threads: how often the event loop is woken for what they bring, and how many threads there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import trio

from luxfuse.workers import FEWEST, Workers

JOBS = 20


class CountingToken:
    """A token of the running loop that counts how often the loop is woken."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.wakes = 0

    def run_sync_soon(self, call: Callable[[], None], *, idempotent: bool) -> None:
        self.wakes += 1
        self._token.run_sync_soon(call, idempotent=idempotent)


async def test_outcomes_that_come_while_the_loop_is_busy_wake_it_once() -> None:
    workers = Workers(4)
    workers._token = token = CountingToken()  # type: ignore[assignment]
    for _ in range(2):
        results: list[int] = []
        for number in range(JOBS):
            workers.submit(partial(int, number), lambda result, _error, results=results: results.append(result), 0)
        give_up_s = time.monotonic() + 60
        while len(workers._outcomes) < JOBS and time.monotonic() < give_up_s:
            time.sleep(0.001)
        with trio.fail_after(60):
            while len(results) < JOBS:
                await trio.sleep(0.001)
        assert sorted(results) == list(range(JOBS))
    assert token.wakes == 2
    workers.close()


async def test_the_time_of_requests_and_not_that_of_jobs_makes_more_threads() -> None:
    workers = Workers(64)
    ended = trio.Event()
    workers.submit(partial(time.sleep, 0.05), lambda _result, _error: ended.set(), 0, [0.001, 0.02])
    with trio.fail_after(60):
        await ended.wait()
    assert workers.width == FEWEST
    ended = trio.Event()
    workers.submit(partial(time.sleep, 0.05), lambda _result, _error: ended.set(), 0)
    for _ in range(40):
        workers.submit(partial(time.sleep, 0.02), lambda _result, _error: None, 0)
    with trio.fail_after(60):
        while workers.width < 64:
            await trio.sleep(0.005)
    workers.close()


async def test_threads_beyond_a_new_limit_end_and_what_waits_is_done() -> None:
    of_others, workers = set(named_gets()), Workers(FEWEST)
    held = threading.Event()
    results: list[object] = []
    for _ in range(JOBS):
        workers.submit(partial(held.wait, 60), lambda result, _error: results.append(result), 0)
    before = set(named_gets()) - of_others
    assert len(before) == FEWEST
    workers.bound(3)
    held.set()
    with trio.fail_after(60):
        while len(results) < JOBS or len([thread for thread in before if thread.is_alive()]) > 3:
            await trio.sleep(0.001)
    assert results == [True] * JOBS
    workers.submit(partial(int, 1), lambda result, _error: results.append(result), 0)
    with trio.fail_after(60):
        while len(results) <= JOBS:
            await trio.sleep(0.001)
    assert not set(named_gets()) - before - of_others
    workers.close()


async def test_a_new_limit_ends_no_thread_in_the_place_of_one_that_hangs() -> None:
    of_others, workers = set(named_gets()), Workers(FEWEST)
    hang, held = threading.Event(), threading.Event()
    late: list[object] = []
    results: list[object] = []

    def come_back(result: object, _error: object) -> None:
        late.append(result)
        workers.come_back()

    for _ in range(FEWEST):
        workers.submit(partial(hang.wait, 60), come_back, 0)
    assert [workers.give_up() for _ in range(FEWEST + 1)] == [True] * FEWEST + [False]
    for _ in range(FEWEST):
        workers.submit(partial(held.wait, 60), lambda result, _error: results.append(result), 0)
    threads = set(named_gets()) - of_others
    assert len(threads) == 2 * FEWEST
    with trio.fail_after(60):
        while workers._turns.qsize():
            await trio.sleep(0.001)
    workers.bound(3)
    assert workers._turns.qsize() == FEWEST - 3
    held.set()
    with trio.fail_after(60):
        while len(results) < FEWEST or len([thread for thread in threads if thread.is_alive()]) > FEWEST + 3:
            await trio.sleep(0.001)
        workers.submit(partial(int, 1), lambda result, _error: results.append(result), 0)
        while len(results) <= FEWEST:
            await trio.sleep(0.001)
    hang.set()
    with trio.fail_after(60):
        while len(late) < FEWEST or len([thread for thread in threads if thread.is_alive()]) > 3:
            await trio.sleep(0.001)
    assert not set(named_gets()) - threads - of_others
    workers.close()


def named_gets() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("get-")]
