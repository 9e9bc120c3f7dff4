"""Writes that were given up, and may be carried out yet: what waits for them, and what does not."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import StoreAway, StoreError, StoreUnavailable
from luxfuse.types import ABSENT
from luxfuse.understore.base import Abilities
from luxfuse.understore.retrying import Store
from tests.support.fake_store import EVERYTHING, FakeStore
from tests.support.harness import AWAY, until
from tests.support.late_requests import given_up
from tests.support.virtual_time import virtual_time

VERSION = '"an ETag"'
GENERATION = "1796046111549782"
"""As Google names versions."""
NO_ETAG = "5-1700000000"
IN_ONE = replace(EVERYTHING, multipart=False)


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


def make(driver: FakeStore, timeout_s: float = 30.0) -> Store:
    return Store(driver, request_timeout_s=timeout_s, max_requests=4, rng=random.Random(1))


@pytest.mark.parametrize(
    ("kind", "abilities", "expect", "compared"),
    [
        ("put", EVERYTHING, VERSION, True),
        ("put", EVERYTHING, ABSENT, True),
        ("put", EVERYTHING, GENERATION, True),
        ("put", EVERYTHING, NO_ETAG, False),
        ("put", EVERYTHING, None, False),
        ("put", replace(EVERYTHING, conditional=False), VERSION, False),
        ("put_file", EVERYTHING, VERSION, True),
        ("put_file", EVERYTHING, NO_ETAG, False),
        ("put_file", IN_ONE, VERSION, False),
        ("put_file", IN_ONE, ABSENT, False),
        ("complete_upload", EVERYTHING, VERSION, True),
        ("complete_upload", EVERYTHING, NO_ETAG, False),
    ],
)
async def test_only_what_the_store_compares_need_not_wait(
    tmp_path: Path, kind: str, abilities: Abilities, expect: str | None, compared: bool
) -> None:
    driver = FakeStore(abilities=abilities)
    store = make(driver)
    (tmp_path / "file").write_bytes(b"12345")
    requests = {
        "put": partial(store.put, "key", b"12345", {}, expect=expect),
        "put_file": partial(store.put_file, "key", str(tmp_path / "file"), {}, expect=expect),
        "complete_upload": partial(store.complete_upload, "key", "upload", [], expect=expect),
    }
    driver.hold(kind)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests[kind])
            await until(lambda: driver.counts[kind] == 1)
            nursery.cancel_scope.cancel()
        assert store.must_wait(["key"])
        assert store.must_wait(["key"], conditional=True) is not compared
        assert not store.must_wait(["another"])
    finally:
        driver.release()
    await until(lambda: not store.late)
    assert not store.must_wait(["key"])


@pytest.mark.parametrize("hierarchical", [False, True])
async def test_directories_meet_what_is_below_them(hierarchical: bool) -> None:
    store = make(FakeStore(abilities=replace(EVERYTHING, hierarchical=hierarchical)))
    late = given_up(store, "d/")
    assert late.above is late.above, "it is asked for at each comparison"
    assert store.must_wait(["d/"])
    assert store.must_wait(["d/e/x"]) is hierarchical
    assert store.must_wait(["a", "d/e/"]) is hierarchical
    assert not store.must_wait(["d", "dd/x"])
    late.running = False
    assert not store.must_wait(["d/", "d/e/x"])
    given_up(store, "d/e/x")
    assert store.must_wait(["d/"]) is hierarchical
    assert store.must_wait(["d/e/"]) is hierarchical
    assert not store.must_wait(["d/e/x/", "d/e/y"])
    assert store.late.any_at("d/")


@pytest.mark.usefixtures("mock_clock")
async def test_a_wait_uses_up_no_tries() -> None:
    """Nor does it say that the store does not answer."""
    driver = FakeStore()
    store = make(driver, timeout_s=1)
    late = given_up(store, "key")
    driver.fail_next(2, kind="put")

    async def end() -> None:
        await trio.sleep(0.9)
        assert all(wait.patient for wait in store.presence.waiting)
        late.running = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        await store.put("key", b"new", {})
    assert driver.objects["key"][0] == b"new"
    assert store.counters.state == "up"


async def test_a_wait_ends() -> None:
    driver = FakeStore()
    store = make(driver, timeout_s=0.1)
    given_up(store, "key")
    with pytest.raises(StoreError, match="an earlier request that was not answered in time may be carried out yet"):
        await store.put("key", b"new", {})
    assert not driver.objects
    found = store.counters.statistics()
    assert (found.timeouts, found.errors, found.state, found.in_flight) == (0, 0, "up", 0)


@AWAY
async def test_nothing_waits_while_the_store_is_away() -> None:
    store = make(FakeStore())
    given_up(store, "key")
    store.presence.found_away(StoreUnavailable("down"))
    with trio.fail_after(5), pytest.raises(StoreAway):
        await store.outlive(["key"], "a look")
