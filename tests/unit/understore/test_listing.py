"""Listings of directories in several requests at once."""

from __future__ import annotations

import random

import pytest

from luxfuse.core.listed_spans import Span
from luxfuse.core.vain import PAUSE_S
from luxfuse.errors import StoreRejected
from luxfuse.types import ListPage
from luxfuse.understore.base import ListedPart
from luxfuse.understore.listing import list_directory
from luxfuse.understore.retrying import Store
from tests.support import fake_store
from tests.support.fake_store import FROM_KEYS, FakeStore


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_store, "PAGE_ENTRIES", 20)


def filled(driver: FakeStore, count: int) -> FakeStore:
    for number in range(count):
        driver.place(f"d/f{number:05}" + ("/x" if number % 7 == 0 else ""), b"")
        if number % 70 == 0:
            driver.place(f"d/f{number:05}", b"")  # a file and a directory of one name
    driver.place("d/", b"")
    driver.place("e", b"")
    return driver


def store_on(driver: FakeStore) -> Store:
    return Store(driver, request_timeout_s=30.0, max_requests=32, rng=random.Random(1))


async def taken(store: Store, prefix: str = "d/") -> tuple[list[str], list[str]]:
    objects: list[str] = []
    prefixes: list[str] = []

    async def take(page: ListPage, _span: Span | None) -> None:
        objects.extend(info.key for info in page.objects)
        prefixes.extend(page.prefixes)

    await list_directory(store, prefix, take)
    return objects, prefixes


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 500, 2000])
async def test_everything_comes_once(count: int) -> None:
    store = store_on(filled(FakeStore(abilities=FROM_KEYS), count))
    pages = [page async for page in store.list_directory("d/")]
    lists = store.counters.statistics().lists
    objects, prefixes = await taken(store)
    assert sorted(objects) == [info.key for page in pages for info in page.objects]
    assert sorted(prefixes) == [prefix for page in pages for prefix in page.prefixes]
    entries = len(objects) + len(prefixes)
    assert store.driver.counts["list"] - store.driver.counts["head"] >= lists  # type: ignore[attr-defined]
    assert store.counters.statistics().lists - lists <= max(1, -(-entries // 20) * 1.18 + 1)
    if entries <= 60:
        assert store.counters.statistics().lists - lists == max(1, -(-entries // 20))
    store.close()


async def test_what_does_not_exist_has_no_page_and_an_empty_directory_has_one() -> None:
    store = store_on(filled(FakeStore(abilities=FROM_KEYS), 0))
    pages: list[ListPage] = []

    async def take(page: ListPage, _span: Span | None) -> None:
        pages.append(page)

    await list_directory(store, "none/", take)
    assert pages == []
    await list_directory(store, "d/", take)
    assert pages == [ListPage()]
    store.close()


async def test_a_request_that_fails_is_made_again() -> None:
    driver = filled(FakeStore(abilities=FROM_KEYS), 1000)
    store = store_on(driver)
    whole = await taken(store)
    driver.flaky(0.2, 3)
    again = await taken(store)
    assert [sorted(each) for each in again] == [sorted(each) for each in whole]
    assert store.counters.statistics().retries > 3
    store.close()


@pytest.mark.parametrize("after", [1, 2, 9])
async def test_a_request_that_fails_for_good_fails_the_listing(after: int) -> None:
    class Broken(FakeStore):
        left = after

        def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
            self.left -= 1
            if self.left < 0:
                raise StoreRejected("no more")
            return super().list_page(prefix, after, token)

    store = store_on(filled(Broken(abilities=FROM_KEYS), 1000))
    with pytest.raises(StoreRejected, match="no more"):
        await taken(store)
    store.close()


async def test_an_error_of_the_taker_ends_it() -> None:
    store = store_on(filled(FakeStore(abilities=FROM_KEYS), 1000))
    calls = 0

    async def take(page: ListPage, _span: Span | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await list_directory(store, "d/", take)
    assert calls == 4
    store.close()


class IgnoresStart(FakeStore):
    """A server that does not know where it is to begin."""

    ignores = True

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        return super().list_page(prefix, "" if self.ignores else after, token)


class Unordered(FakeStore):
    """A server that tells keys in an order of its own."""

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        assert not after
        at = int(token or "0")
        pages = list(self.list_directory(prefix))
        return ListedPart(pages[-1 - at], str(at + 1) if at + 1 < len(pages) else "", True)


@pytest.mark.parametrize("kind", [IgnoresStart, Unordered])
async def test_a_store_without_order_is_listed_one_by_one(kind: type[FakeStore]) -> None:
    driver = filled(kind(abilities=FROM_KEYS), 1000)
    store = store_on(driver)
    pages = [page async for page in store.list_directory("d/")]
    for _ in range(2):
        objects, prefixes = await taken(store)
        assert sorted(set(objects)) == [info.key for page in pages for info in page.objects]
        assert sorted(set(prefixes)) == [prefix for page in pages for prefix in page.prefixes]
    assert len(objects) == len(set(objects)), "it is not tried again in another way"
    assert not store.lists_in_order
    store.close()


async def test_the_order_of_names_is_looked_at_again_after_a_while() -> None:
    """An answer to another question, which something in between had kept, may have come."""
    now_s = 0.0
    driver = filled(IgnoresStart(abilities=FROM_KEYS), 1000)
    store = Store(driver, request_timeout_s=30.0, max_requests=32, rng=random.Random(1), clock=lambda: now_s)
    for pause_s, ends_in_order in ((PAUSE_S, False), (2 * PAUSE_S, True), (PAUSE_S, True)):
        driver.ignores = True
        await taken(store)
        assert not store.lists_in_order
        now_s += pause_s - 1
        await taken(store)
        assert not store.lists_in_order
        now_s += 1
        assert store.lists_in_order
        if ends_in_order:
            driver.ignores = False
            await taken(store)
    store.close()
