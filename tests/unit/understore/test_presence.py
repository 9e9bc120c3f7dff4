"""A store that goes away under requests of all kinds, and comes back: held by gates, in virtual time."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import AccessDenied, NotFound, StoreAway, StoreError, StoreUnavailable
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time

TIMEOUT_S = 10.0
AWAY = r"fake store cannot be reached"


@pytest.fixture
def fake() -> FakeStore:
    fake = FakeStore()
    fake.place("d/x", b"0123456789")
    return fake


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


@asynccontextmanager
async def watched(fake: FakeStore) -> AsyncIterator[Store]:
    store = Store(fake, request_timeout_s=TIMEOUT_S, max_requests=4, rng=random.Random(1), name="fake store")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch_deadlines)
        yield store
        fake.release()
        nursery.cancel_scope.cancel()
    store.close()


async def outcome_of(call) -> tuple[StoreError | None, float]:
    began_s = trio.current_time()
    try:
        await call
    except StoreError as exc:
        return exc, trio.current_time() - began_s
    return None, trio.current_time() - began_s


def calls(store: Store, fake: FakeStore):
    version = fake.objects["d/x"][1]
    return {
        "head": lambda: store.head("d/x"),
        "read": lambda: store.read("d/x", 0, 4, version),
        "bulk": lambda: store.attempt("get", lambda driver: driver.read("d/x", 0, 4, version), 4),
        "list": lambda: anext(store.list_directory("d/")),
        "prefix": lambda: store.has_prefix("d/"),
        "put": lambda: store.put("d/new", b"x", {}),
        "delete": lambda: store.delete(["d/x"]),
        "copy": lambda: store.copy("d/x", "d/y"),
        "examine": lambda: store.examine("d/x"),
    }


@pytest.mark.expected_logs(AWAY)
async def test_what_waits_ends_together_and_the_rest_fails_at_once(fake, mock_clock):
    async with watched(fake) as store:
        fake.hold()
        outcomes: dict[str, tuple[StoreError | None, float]] = {}

        async def note(name: str, call) -> None:
            outcomes[name] = await outcome_of(call())

        async with trio.open_nursery() as nursery:
            for number, (name, call) in enumerate(calls(store, fake).items()):
                nursery.start_soon(note, name, call)
                await trio.sleep(number / 10)
        for name, (error, took_s) in outcomes.items():
            assert isinstance(error, StoreUnavailable), name
            assert took_s <= TIMEOUT_S + 1, name
        assert store.presence.away
        assert not store.reachable
        requests = sum(fake.counts.values())
        for name, call in calls(store, fake).items():
            error, took_s = await outcome_of(call())
            assert isinstance(error, StoreAway), name
            assert (error.retryable, took_s) == (False, 0), name
            assert "away since" in str(error)
        assert store.presence.refused == len(outcomes)
        assert sum(fake.counts.values()) == requests, "nothing was sent"
        assert store.counters.in_flight == 0


@pytest.mark.expected_logs(AWAY)
async def test_it_is_found_again_within_five_seconds_though_nobody_asks(fake, mock_clock, caplog):
    caplog.set_level(logging.INFO)
    async with watched(fake) as store:
        told: list[str] = []
        store.presence.on_away.append(lambda: told.append("away"))
        store.presence.on_back.append(lambda: told.append("back"))
        fake.hold()
        await outcome_of(store.head("d/x"))
        await trio.sleep(20)
        assert told == ["away"]
        fake.release()
        await trio.sleep(5)
        assert told == ["away", "back"]
        assert (await store.head("d/x")).size == 10
        assert store.reachable
        lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "luxfuse.understore.presence"]
        assert [level for level, _ in lines] == ["WARNING", "INFO"]
        assert "fake store cannot be reached: it does not answer" in lines[0][1]
        assert "fake store answers again, after " in lines[1][1]


@pytest.mark.expected_logs(AWAY)
async def test_failures_at_once_count_as_much_as_silence_and_name_the_cause(fake, mock_clock):
    async with watched(fake) as store:
        fake.fail_next(10_000, lambda: StoreUnavailable("HEAD 'd/x': refuses connections"))
        _, took_s = await outcome_of(store.head("d/x"))
        assert TIMEOUT_S - 5 <= took_s <= TIMEOUT_S + 1
        await trio.sleep(8)
        assert store.presence.away
        assert store.presence.cause == "refuses connections"


async def test_refusals_are_answers(fake, mock_clock):
    async with watched(fake) as store:
        fake.fail_next(1_000, lambda: AccessDenied("no"))
        for _ in range(5):
            await outcome_of(store.head("d/x"))
            await trio.sleep(3)
        assert not store.presence.away
        assert store.presence.probes == 0


async def test_one_object_that_never_comes_takes_nothing_from_the_others(fake, mock_clock):
    async with watched(fake) as store:
        fake.hold("get")
        version = fake.objects["d/x"][1]
        error, _ = await outcome_of(store.read("d/x", 0, 4, version))
        assert isinstance(error, StoreUnavailable)
        await trio.sleep(20)
        assert store.presence.probes > 0
        assert store.presence.outages == 0
        with pytest.raises(NotFound):
            await store.head("none")


@pytest.mark.expected_logs(AWAY)
async def test_a_large_write_that_is_silent_goes_on_for_another_while(fake, mock_clock):
    async with watched(fake) as store:
        fake.hold()
        large: list[tuple[StoreError | None, float]] = []

        async def write() -> None:
            large.append(await outcome_of(store.put("d/large", bytes(64 << 20), {})))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            error, took_s = await outcome_of(store.head("d/x"))
            assert error is not None
            assert not large
        error, took_s = large[0]
        assert isinstance(error, StoreAway)
        assert 2 * TIMEOUT_S <= took_s <= 2 * TIMEOUT_S + 8


@pytest.mark.expected_logs(AWAY)
async def test_known_things_are_not_waited_for_once_the_store_is_in_doubt(fake, mock_clock):
    async with watched(fake) as store:
        answer = trio.Event()
        fake.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, store.head("d/x"))
            began_s = trio.current_time()
            assert not await store.presence.promptly(answer)
            assert 2 < trio.current_time() - began_s < 5
            answer.set()
            assert await store.presence.promptly(answer)
            fake.release()


@pytest.mark.expected_logs(r"fake store refuses the credentials")
async def test_refused_credentials_are_told_of_once_and_tried_again_though_nobody_asks(fake, mock_clock, caplog):
    caplog.set_level(logging.INFO)
    async with watched(fake) as store:
        told: list[str] = []
        store.presence.on_back.append(lambda: told.append("back"))
        fake.fail_next(10_000, lambda: AccessDenied("HEAD 'd/x': they have expired", renewable=True))
        for _ in range(3):
            assert isinstance((await outcome_of(store.head("d/x")))[0], AccessDenied)
        assert store.presence.denied_s is None, "it may be that object"
        with trio.fail_after(60):
            while store.presence.denial is None:
                await trio.sleep(0.1)
        assert (store.presence.denial, store.reachable) == ("they have expired", True)
        fake.heal()
        with trio.fail_after(60):
            while store.presence.denial is not None:
                await trio.sleep(0.1)
        assert told == ["back"]
        probes = store.presence.probes
        await trio.sleep(60)
        assert store.presence.probes == probes
        lines = [r.getMessage() for r in caplog.records if "the credentials" in r.getMessage()]
        assert [line.split(": ")[0].split(",")[0] for line in lines] == [
            "fake store refuses the credentials", "fake store accepts the credentials again",
        ]  # fmt: skip


@pytest.mark.parametrize("refused", [1, 2], ids=["one object", "missing ones, too"])
async def test_objects_that_alone_are_refused_say_nothing_of_the_credentials(fake, mock_clock, refused):
    async with watched(fake) as store:
        fake.fail_next(refused, lambda: AccessDenied("HEAD 'd/x': 403", renewable=True), kind="head")
        await outcome_of(store.head("d/x"))
        await trio.sleep(20)
        probes = store.presence.probes
        assert probes > 0
        await trio.sleep(60)
        assert (store.presence.denial, store.presence.probes) == (None, probes)
