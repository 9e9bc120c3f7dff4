"""The listing of one directory: page by page, or in ranges at once where the store can begin anywhere.

`core.listing_ranges` decides what is asked for. Every request has a deadline and retries of its own; one that fails in
spite of them is the end of the listing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import cast

import trio

from luxfuse.core.listed_spans import WHOLE, Span
from luxfuse.core.listing_ranges import Disordered, Range, Ranges
from luxfuse.errors import StoreError
from luxfuse.types import ListPage
from luxfuse.understore.base import PAGE_ENTRIES, ListedPart, ListsFromKeys
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

MOST_AT_ONCE = 8
"""LIST requests of one listing under way at the same time; as many answers more may wait to be taken."""
SHARE = 4
"""And no more than this part of all requests that the store may have."""

Take = Callable[[ListPage, Span | None], Awaitable[None]]


async def list_directory(store: Store, prefix: str, take: Take) -> None:
    """Hand each page of a directory to ``take``, in any order, but no entry twice; none if it does not exist.

    With it comes the span of keys of which it has all that there are, without ``prefix``; None: the store does not tell. If
    it is None after others were told, the store turned out not to keep the order of names, and what came may come again.
    Raises `StoreError`, and the errors of ``take``. It is not called again after any.
    """
    if not store.abilities.start_after:
        at = b"" if store.abilities.in_order and store.lists_in_order else None
        in_order = 0
        async with contextlib.aclosing(store.list_directory(prefix)) as pages:
            async for page in pages:
                was_in_order = at is not None
                span, at = _next_span(page, len(prefix), at)
                in_order += span is not None
                if was_in_order and span is None:
                    log.info("listing %r: the store does not keep the order of names", prefix)
                    store.note_disorder()
                await take(page, span)
        if at is not None and in_order > 1:
            store.note_order()
        return
    first = await _ask(store, prefix, "", "")
    if not first.token:
        if first.exists or not prefix:
            await take(first.page, WHOLE)
        return
    ranged = _Ranged(store, prefix, take)
    if store.lists_in_order:
        if await ranged.run(first):
            store.note_order()
            return
        store.note_disorder()
    await _one_by_one(store, prefix, take)


def _next_span(page: ListPage, cut: int, at: bytes | None) -> tuple[Span | None, bytes | None]:
    """Return the span of a page that begins after ``at``, and where it ends; None: the store does not keep the order.

    A page that is not full is the last one, as a rule: what is left is known at the end, anyway.
    """
    names = [_bytes(i.key[cut:]) for i in page.objects] + [_bytes(prefix[cut:]) for prefix in page.prefixes]
    if at is None or (names and min(names) <= at):
        return None, None
    last = max(names, default=at)
    return Span(at, last if len(names) >= PAGE_ENTRIES else at), last


async def _one_by_one(store: Store, prefix: str, take: Take) -> None:
    token = ""
    while True:
        part = await _ask(store, prefix, "", token)
        await take(part.page, None)
        token = part.token
        if not token:
            return


async def _ask(store: Store, prefix: str, after: str, token: str) -> ListedPart:
    return await store.call(
        "list", lambda driver: cast(ListsFromKeys, driver).list_page(prefix, after, token), what=f"LIST {prefix!r}"
    )


class _Ranged:
    """A listing of several requests at once."""

    def __init__(self, store: Store, prefix: str, take: Take) -> None:
        self._store = store
        self._prefix = prefix
        self._take = take
        self._ranges = Ranges(max(1, min(MOST_AT_ONCE, store.max_requests // SHARE)))
        self._send, self._receive = trio.open_memory_channel[tuple[Range, ListedPart | Exception]](MOST_AT_ONCE)

    async def run(self, first: ListedPart) -> bool:
        """List, beginning with the ``first`` answer; returns False if the store does not keep the order of names.

        Then everything has to be taken once more; what came twice is the same.
        """
        failed: Exception | None = None
        asked = self._ranges.next()
        assert asked is not None
        async with trio.open_nursery() as nursery:
            try:
                await self._go_on(nursery, asked, first)
            except Exception as exc:  # noqa: BLE001 - else the nursery would raise it in a group
                failed = exc
            nursery.cancel_scope.cancel()
        if isinstance(failed, Disordered):
            log.info("listing %r: the store does not keep the order of names", self._prefix)
            return False
        if failed is not None:
            raise failed
        return True

    async def _go_on(self, nursery: trio.Nursery, asked: Range, answer: ListedPart | Exception) -> None:
        while True:
            if isinstance(answer, Exception):
                raise answer
            page, span = self._cut(asked, answer)
            while (following := self._ranges.next()) is not None:
                nursery.start_soon(self._fetch, following)
            await self._take(page, span)
            if self._ranges.done:
                return
            asked, answer = await self._receive.receive()

    async def _fetch(self, asked: Range) -> None:
        answer: ListedPart | Exception
        try:
            after = "" if asked.token or not asked.at else self._prefix + asked.at
            answer = await _ask(self._store, self._prefix, after, asked.token)
        except StoreError as exc:
            answer = exc
        await self._send.send((asked, answer))

    def _cut(self, asked: Range, answer: ListedPart) -> tuple[ListPage, Span]:
        """Return what of an answer belongs to its range, and the span of that. Raises `Disordered`."""
        cut, page, after = len(self._prefix), answer.page, asked.at
        names = [info.key[cut:] for info in page.objects] + [prefix[cut:] for prefix in page.prefixes]
        names.sort()  # objects and prefixes come in order each
        last = self._ranges.answered(asked, names, answer.token)
        span = Span(
            _bytes(after), None if asked.done and asked.end is None else _bytes(asked.end if asked.done else asked.at)
        )
        if last is None:
            return page, span
        end = self._prefix + last
        return ListPage([i for i in page.objects if i.key <= end], [p for p in page.prefixes if p <= end]), span


def _bytes(name: str | None) -> bytes:
    return (name or "").encode("utf-8", "surrogatepass")
