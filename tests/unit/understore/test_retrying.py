"""The async face: retries, deadlines, abandoned threads, counters and the up/down state."""

from __future__ import annotations

import random
import threading
import time

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import AccessDenied, NotFound, StoreUnavailable, VersionChanged
from luxfuse.shares import shares_of
from luxfuse.types import ABSENT, ListPage
from luxfuse.understore import submissions
from luxfuse.understore.retrying import PATIENT_BYTES, Store
from luxfuse.understore.statistics import DOWN_AFTER_FAILURES
from tests.support.fake_store import FakeStore
from tests.support.harness import until
from tests.support.virtual_time import virtual_time


@pytest.fixture
def fake() -> FakeStore:
    fake = FakeStore()
    fake.place("d/x", b"0123456789", {"mode": "33188"})
    return fake


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


def make(fake: FakeStore, timeout_s: float = 30.0, max_requests: int = 4, **more) -> Store:
    return Store(fake, request_timeout_s=timeout_s, max_requests=max_requests, rng=random.Random(1), **more)


async def read(store: Store, fake: FakeStore) -> bytes:
    return bytes(await store.read("d/x", 2, 5, fake.objects["d/x"][1]))


async def test_requests_pass_through_and_are_counted(fake):
    store = make(fake)
    info = await store.head("d/x")
    assert info.metadata == {"mode": "33188"}
    assert await read(store, fake) == b"234"
    assert await store.has_prefix("d/")
    pages = [page async for page in store.list_directory("d/")]
    assert [i.key for page in pages for i in page.objects] == ["d/x"]
    assert [page async for page in store.list_directory("none/")] == []
    found = store.counters.statistics()
    assert (found.gets, found.heads, found.lists, found.get_bytes) == (1, 1, 3, 3)
    assert (found.errors, found.retries, found.in_flight, found.timeouts) == (0, 0, 0, 0)
    assert (found.state, store.reachable) == ("up", True)


async def test_retries_until_it_works(fake, mock_clock):
    store = make(fake)
    fake.fail_next(4)
    assert await read(store, fake) == b"234"
    found = store.counters.statistics()
    assert (found.gets, found.retries, found.errors, found.get_bytes) == (5, 4, 4, 3)
    assert store.reachable


async def test_truncated_body_is_fetched_again(fake, mock_clock):
    store = make(fake)
    fake.short_body_next()
    assert await read(store, fake) == b"234"
    assert fake.reads["d/x", (2, 5)] == 2


@pytest.mark.parametrize("error", [NotFound, AccessDenied, VersionChanged])
async def test_final_answers_are_not_retried(fake, error):
    store = make(fake)
    fake.fail_next(error=lambda: error("no"))
    with pytest.raises(error):
        await store.head("d/x")
    found = store.counters.statistics()
    assert (found.heads, found.retries, found.errors) == (1, 0, int(error is AccessDenied))
    assert store.reachable


async def test_wrong_etag_is_a_changed_version(fake):
    store = make(fake)
    fake.wrong_etag_next()
    with pytest.raises(VersionChanged):
        await read(store, fake)
    assert await read(store, fake) == b"234"


async def test_gives_up_at_the_deadline_with_the_last_error(fake, mock_clock):
    store = make(fake, timeout_s=30)
    fake.fail_next(10**4)
    started_s = trio.current_time()
    with pytest.raises(StoreUnavailable, match="fake: 503"):
        await store.head("d/x")
    assert trio.current_time() - started_s <= 30
    found = store.counters.statistics()
    assert 8 <= found.heads <= 40  # delays grow to seconds, so the store is not hammered
    assert found.retries == found.heads - 1
    assert (found.state, store.reachable) == ("down", False)


async def test_state_follows_the_answers(fake, mock_clock):
    store = make(fake)
    fake.fail_next(DOWN_AFTER_FAILURES + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.head, "d/x")
        while fake.counts["head"] < DOWN_AFTER_FAILURES + 1:
            await trio.sleep(0.5)
        assert not store.reachable  # long before the deadline
    assert store.reachable  # the retry got through
    fake.fail_next(error=lambda: NotFound("no"))
    with pytest.raises(NotFound):
        await store.head("d/x")
    assert store.reachable  # "no" is an answer


async def test_hanging_driver_meets_the_deadline(fake):
    store = make(fake, timeout_s=0.2)
    fake.hold()
    try:
        for request in (lambda: store.head("d/x"), lambda: read(store, fake)):
            with trio.fail_after(60), pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
                await request()
        assert not store.reachable
        assert store.counters.statistics().timeouts == 2
        assert store.counters.statistics().in_flight == 0
    finally:
        fake.release()
    store._timeout_s = 60.0
    assert await read(store, fake) == b"234"
    assert store.reachable


async def test_hanging_listing_meets_its_deadline(fake):
    store = make(fake, timeout_s=0.05)
    fake.hold()
    try:
        with trio.fail_after(60), pytest.raises(StoreUnavailable):
            [page async for page in store.list_directory("d/")]
    finally:
        fake.release()


async def test_abandoned_threads_are_bounded(fake):
    store = make(fake, timeout_s=0.1, max_requests=3)
    before = threading.active_count()
    fake.hold()
    try:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(StoreUnavailable):
                    await store.head("d/x")

            for _ in range(20):
                nursery.start_soon(fail)
        assert fake.counts["head"] <= 3
        assert threading.active_count() <= before + 3
    finally:
        fake.release()
    store._timeout_s = 60.0
    assert (await store.head("d/x")).size == 10


async def test_concurrency_is_bounded(fake):
    store = make(fake, max_requests=2)
    running = peak = calls = 0
    lock, two = threading.Lock(), threading.Barrier(2)

    def slow(_driver: object) -> None:
        nonlocal running, peak, calls
        with lock:
            running, calls = running + 1, calls + 1
            peak, first = max(peak, running), calls <= 2
        if first:
            two.wait(120)
        time.sleep(0.01)
        with lock:
            running -= 1

    async def request() -> None:
        await store.call("get", slow, what="slow")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(request)
    assert peak == 2


async def test_cancelling_a_caller_does_not_wait_for_the_thread(fake):
    store = make(fake)
    fake.hold()
    try:
        with trio.move_on_after(0.05) as scope:
            await store.head("d/x")
        assert scope.cancelled_caught
        assert store.counters.statistics().in_flight == 0
        assert store.reachable
    finally:
        fake.release()


class TwoPages(FakeStore):
    """Fails before the first page, or between the first and the second."""

    fail_at = 0
    listings = 0

    def list_directory(self, prefix):
        self.listings += 1
        if self.fail_at == 0 and self.listings == 1:
            raise StoreUnavailable("first")
        yield ListPage([], ["a/"])
        if self.fail_at == 1:
            raise StoreUnavailable("second")
        yield ListPage([], ["b/"])


async def collect(store: Store, into: list[str]) -> None:
    async for page in store.list_directory(""):
        into += page.prefixes


async def test_listing_is_retried_before_its_first_page_only(mock_clock):
    driver = TwoPages()
    store = make(driver)
    assert [page.prefixes async for page in store.list_directory("")] == [["a/"], ["b/"]]
    assert driver.listings == 2
    driver.fail_at, driver.listings = 1, 1
    got = []
    with pytest.raises(StoreUnavailable, match="second"):
        await collect(store, got)
    assert got == ["a/"]
    assert driver.listings == 2


async def test_flaky_store_is_hidden(fake, mock_clock):
    store = make(fake)
    fake.flaky(0.4, seed=5)
    for _ in range(20):
        assert await read(store, fake) == b"234"
    assert store.counters.statistics().retries > 3


async def test_programming_errors_are_not_swallowed(fake):
    store = make(fake)
    with pytest.raises(ZeroDivisionError):
        await store.call("get", lambda _driver: 1 / 0, what="x")
    assert store.counters.statistics().in_flight == 0


async def test_writes_pass_through_and_are_counted(fake, tmp_path):
    store = make(fake)
    await store.put("a", b"12345", {"mode": "1"})
    (tmp_path / "f").write_bytes(b"1234567")
    await store.put_file("b", str(tmp_path / "f"), {})
    info = await store.copy("a", "c", size=5)
    upload = await store.begin_upload("m", {})
    parts = [(1, await store.upload_part("m", upload, 1, b"123"))]
    parts.append((2, await store.copy_part("m", upload, 2, "c", info.version, 1, 4)))
    await store.complete_upload("m", upload, parts)
    await store.abort_upload("m", upload)
    assert fake.objects["m"][0] == b"123234"
    assert [info.key async for page in store.list_all("") for info in page.objects] == ["a", "b", "c", "d/x", "m"]
    assert await store.delete(["a", "none"]) == {}
    found = store.counters.statistics()
    assert (found.puts, found.deletes, found.put_bytes, found.lists) == (7, 2, 15, 1)
    assert fake.writes == [
        ("put", "a"), ("put_file", "b"), ("copy", "c"), ("complete_upload", "m"), ("delete", "a"),
    ]  # fmt: skip


async def test_writes_are_retried(fake, mock_clock):
    store = make(fake)
    fake.fail_next(2, kind="put")
    await store.put("a", b"data", {})
    assert (
        store.counters.statistics().puts,
        store.counters.statistics().retries,
        store.counters.statistics().put_bytes,
    ) == (
        3,
        2,
        4,
    )
    fake.lose_answer_next("put")
    with pytest.raises(VersionChanged):  # its own first try: only the caller can tell
        await store.put("b", b"data", {}, expect=ABSENT)
    assert fake.objects["b"][0] == b"data"


async def test_patience_grows_with_the_size(fake, mock_clock):
    store = make(fake, timeout_s=0.2)
    fake.hold("put")
    started_s = trio.current_time()
    with pytest.raises(StoreUnavailable):
        await store.put("a", b"small", {})
    assert trio.current_time() - started_s < 0.4
    started_s = trio.current_time()
    with pytest.raises(StoreUnavailable):
        await store.put("a", bytes(PATIENT_BYTES), {})
    assert trio.current_time() - started_s >= 0.4
    fake.release()


async def test_removing_one_key_takes_no_longer_than_any_request_and_many_keys_do(fake, mock_clock):
    store = make(fake, timeout_s=0.2)
    fake.hold("delete")
    took_s = {}
    for keys in (1, 11, 1000):
        started_s = trio.current_time()
        with pytest.raises(StoreUnavailable):
            await store.delete([f"{keys}-{number}" for number in range(keys)])
        took_s[keys] = trio.current_time() - started_s
    fake.release()
    assert took_s[1] < 0.3 <= took_s[11] < 0.5 <= took_s[1000]


async def test_reads_do_not_wait_for_writes(fake):
    store = make(fake, timeout_s=60, max_requests=2)
    fake.hold("put")
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(store.put, f"k{number}", b"data", {})
        await until(lambda: fake.counts["put"] == 2)
        await trio.sleep(0.05)
        assert await read(store, fake) == b"234"
        assert fake.counts["put"] == 2
        fake.release()
    assert fake.counts["put"] == 4


async def test_deletes_are_split(fake):
    keys = [f"k{number}" for number in range(2500)]
    for key in keys:
        fake.place(key, b"x")
    store = make(fake)
    assert await store.delete([*keys, "none"]) == {}
    assert (fake.counts["delete"], list(fake.objects)) == (3, ["d/x"])
    assert await store.delete([]) == {}


class Stubborn(FakeStore):
    """Fails for some keys of a request."""

    def delete(self, keys):
        failures = super().delete([key for key in keys if key[0] not in "ab"])
        for key in keys:
            if key[0] == "a" and self.counts["delete"] < 3:
                failures[key] = StoreUnavailable("busy")
            elif key[0] == "a":
                super().delete([key])
            elif key[0] == "b":
                failures[key] = AccessDenied("no")
        return failures


async def test_only_what_may_succeed_is_deleted_again(mock_clock):
    fake = Stubborn()
    for key in ("a1", "a2", "b", "c"):
        fake.place(key, b"x")
    store = make(fake)
    failures = await store.delete(["a1", "a2", "b", "c"])
    assert {key: type(error) for key, error in failures.items()} == {"b": AccessDenied}
    assert list(fake.objects) == ["b"]
    assert store.counters.statistics().deletes == 3


async def test_keys_that_cannot_be_deleted_in_time_are_told(mock_clock):
    fake = Stubborn()
    fake.place("a1", b"x")
    store = make(fake, timeout_s=5)
    fake.delete = lambda keys: {key: StoreUnavailable("busy") for key in keys}
    failures = await store.delete(["a1", "a2"])
    assert {key: type(error) for key, error in failures.items()} == {"a1": StoreUnavailable, "a2": StoreUnavailable}
    fake.delete = lambda keys: (_ for _ in ()).throw(AccessDenied("no"))
    with pytest.raises(AccessDenied):
        await store.delete(["a1"])


async def test_latencies_are_kept_by_kind(fake):
    store = make(fake)
    fake.delay_s = 0.02
    await store.head("d/x")
    version, began_s = fake.objects["d/x"][1], time.perf_counter()
    await read(store, fake)

    def job(driver):
        for _ in range(3):
            driver.read("d/x", 0, 5, version)
        time.sleep(0.3)  # what else a job does is no request

    await store.attempt("get", job, 5)
    took_s = time.perf_counter() - began_s
    with pytest.raises(NotFound):
        await store.head("gone")
    counts = {kind: histogram.count for kind, histogram in store.counters.latency.items()}
    assert counts == {"get": 4, "head": 2, "list": 0, "put": 0, "delete": 0}
    assert 4 * 0.02 <= store.counters.latency["get"].sum_s <= took_s - 0.3
    assert store.counters.latency["head"].sum_s >= 2 * 0.02
    store.close()


async def test_a_request_that_runs_into_its_deadline_counts_with_that(fake):
    store = make(fake, timeout_s=0.25)
    fake.hold("head")
    try:
        with pytest.raises(StoreUnavailable):
            await store.head("d/x")
        assert store.counters.latency["head"].sum_s == 0.25
    finally:
        fake.release()


async def test_long_listings_count_as_the_requests_that_they_take():
    fake = FakeStore()
    for n in range(2500):
        fake.place(f"d/{n:04}", b"")
    store = make(fake)
    assert sum([len(page.objects) async for page in store.list_all("")]) == 2500
    assert store.counters.statistics().lists == 3
    assert sum([len(page.objects) async for page in store.list_directory("d/")]) == 2500
    assert store.counters.statistics().lists == 6


async def test_a_change_is_told_of_though_its_answer_is_lost(mock_clock):
    class Mute(FakeStore):
        def put(self, key, data, metadata, *, expect=None, keep=None):
            super().put(key, data, metadata, expect=expect, keep=keep)
            raise StoreUnavailable("connection reset")

        def delete(self, keys):
            super().delete(keys)
            raise StoreUnavailable("connection reset")

    told = []
    store = make(Mute(), timeout_s=1.0, on_changed=lambda key, gone: told.append((key, gone)))
    with pytest.raises(StoreUnavailable):
        await store.put("a", b"x", {})
    with pytest.raises(StoreUnavailable):
        await store.delete(["a", "b"])
    assert told == [("a", False), ("a", True), ("b", True)]


async def test_no_more_requests_are_made_at_once_than_there_are_descriptors_for(fake, monkeypatch):
    allowed = shares_of(1 << 20)
    monkeypatch.setattr(submissions, "shares", lambda: allowed)
    monkeypatch.setattr(submissions, "DEADLINE_CHECK_S", 0.005)
    store = make(fake, max_requests=64)
    tokens = [store._limiter.total_tokens, store._write_limiter.total_tokens, store._allowed]
    assert tokens == [64, 32, 64]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch_deadlines)
        allowed = shares_of(150)
        await until(lambda: store._write_limiter.total_tokens == 9)
        fake.hold("put")
        for number in range(12):
            nursery.start_soon(store.put, f"d/{number}", b"", {})
        await until(lambda: fake.counts["put"] == 9)
        await trio.sleep(0.05)
        assert fake.counts["put"] == 9
        allowed = shares_of(1 << 20)
        await until(lambda: fake.counts["put"] == 12)
        fake.release()
        await until(lambda: len(fake.objects) == 13)
        assert (store._limiter.total_tokens, store._allowed) == (64, 64)
        nursery.cancel_scope.cancel()
