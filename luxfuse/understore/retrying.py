"""The async face of an under-store: its methods with deadlines and retries, as `Calls` makes them.

Writes are retried like reads. So a conditional write may find its own first try, whose answer got lost, and raise
`VersionChanged`; and `complete_upload` may find no upload any more (`NotFound`). Only the caller can tell. A write
may still have its effect after its deadline has passed, when the thread that it was left to gets through.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import cast

import trio

from luxfuse.errors import NoStore, StoreError, StoreRejected
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import MOST_DELETES, Abilities, UnderStore
from luxfuse.understore.calls import Calls
from luxfuse.understore.properties import Properties
from luxfuse.understore.renewing import RenewingDriver
from luxfuse.understore.unopened import UnopenedDriver

LIST_PATIENCE = 10
"""A listing is many requests in one driver call (1000 names each), so it gets this many times the deadline of one."""

LISTED_AT_ONCE = 1000
"""Entries that one LIST request brings."""

PATIENT_BYTES = 4 << 20
"""A write gets the deadline of one request and as much again for each so many bytes: 16 MiB may take 150 s by default."""

COPIED_BYTES = 256 << 20
"""The same where the store itself copies."""

DELETE_PATIENCE = 4
"""Deleting 1000 keys at once takes a store longer than other requests."""

PATIENT_DELETES = 10
"""A delete gets the deadline of one request and as much again for each so many further keys, up to that: some drivers
remove one after the other."""


class Store(Calls):
    """An `UnderStore` for trio tasks. All methods raise `luxfuse.errors.StoreError` subclasses only."""

    @property
    def lists_in_order(self) -> bool:
        """Whether listings are taken to come by name, as all should; for a while not, after one that did not."""
        return not self._disorder.is_on(self._clock())

    def note_disorder(self) -> None:
        """A listing did not come by name."""
        self._disorder.note(self._clock())

    def note_order(self) -> None:
        """A listing of several pages came by name."""
        if self.lists_in_order:  # another one may have told otherwise meanwhile
            self._disorder.end()

    @property
    def max_requests(self) -> int:
        """The most requests of a kind at once."""
        return self._max_requests

    @property
    def abilities(self) -> Abilities:
        """The abilities of the driver's store."""
        return self.driver.abilities

    @property
    def renewable(self) -> bool:
        """Whether the driver has credentials that can be read again."""
        return isinstance(cast(object, self.driver), RenewingDriver | UnopenedDriver)

    async def renew(self, options: Mapping[str, str] | None = None) -> bool:
        """Read credentials again, with other storage options if given; see `RenewingDriver.renew`."""
        driver = cast(object, self.driver)
        if not isinstance(driver, RenewingDriver | UnopenedDriver):
            return False
        return await trio.to_thread.run_sync(driver.renew, options)

    async def known_abilities(self) -> Abilities:
        """Return the abilities, not what is assumed of them while the driver is not open. Raises `StoreError`."""
        driver = cast(object, self.driver)
        if isinstance(driver, UnopenedDriver) and not driver.is_open:
            await self.call("list", lambda _: driver.require_open(), what="opening the driver")
        return self.abilities

    def is_conditional(self, expect: str | None) -> bool:
        """Whether the store itself compares the version that a write expects; a driver that looks before may be late."""
        if expect is None or not self.abilities.conditional:
            return False
        return expect == ABSENT or expect.startswith('"') or expect.isdecimal()  # an ETag, or Google's generation

    async def probe(self) -> None:
        """Prove that bucket, endpoint and credentials work."""

        def probe(driver: UnderStore) -> None:
            try:
                driver.probe()
            except NoStore as exc:  # an address that is wrong stays wrong: no further attempts
                raise StoreRejected(str(exc)) from None

        await self.call("list", probe, what="probe")

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        return await self.call("head", lambda driver: driver.head(key), what=f"HEAD {key!r}")

    async def has_prefix(self, prefix: str) -> bool:
        """Whether any key starts with ``prefix`` (which ends in "/")."""
        return await self.call("list", lambda driver: driver.has_prefix(prefix), what=f"LIST {prefix!r}")

    async def read(self, key: str, start: int, end: int, version: str) -> Buffer:
        """Return bytes [start, end) of exactly ``version``; see `UnderStore.read`."""
        await self.turn("get", key, end - start)
        data = await self.call(
            "get", lambda driver: driver.read(key, start, end, version), what=f"GET {key!r} [{start}, {end})",
            size_bytes=end - start, key=key,
        )  # fmt: skip
        self.counters.get_bytes += end - start
        return data

    def list_directory(self, prefix: str) -> AsyncGenerator[ListPage, None]:
        """Yield the pages of one directory; none if it does not exist.

        A failure before the first page is retried from the start; later ones propagate, because pages that were
        already handed out cannot be taken back.
        """
        return self._pages(lambda driver: driver.list_directory(prefix), f"LIST {prefix!r}")

    def list_all(self, prefix: str) -> AsyncGenerator[ListPage, None]:
        """Yield everything below ``prefix``; see `UnderStore.list_all`. Failures are as in `list_directory`."""
        return self._pages(lambda driver: driver.list_all(prefix), f"LIST {prefix!r}")

    async def _pages(self, lister: Callable[[UnderStore], Iterator[ListPage]], what: str) -> AsyncGenerator[ListPage, None]:
        pages, page = await self.call("list", lambda driver: _first(lister(driver)), what=what, patience=LIST_PATIENCE)
        entries = 0
        while page is not None:
            entries += self._count_listed(entries, len(page.objects) + len(page.prefixes))
            yield page
            page = await self._next_page(pages, what)

    def _count_listed(self, before: int, more: int) -> int:
        """Count the requests that it takes to list so many entries beside the first; returns ``more``."""
        self.counters.attempts["list"] += max(0, before + more - 1) // LISTED_AT_ONCE - max(0, before - 1) // LISTED_AT_ONCE
        return more

    async def examine(self, key: str, *, whole: bool = True) -> Properties:
        """Describe one object with the properties that others may have set; see `UnderStore.examine`."""
        return await self.call("head", lambda driver: driver.examine(key, whole=whole), what=f"HEAD {key!r}")

    async def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        """Write a whole object in one request; see `UnderStore.put`."""
        size = len(data)
        await self.turn("put", key, size)
        with self.changing(key):
            info = await self.call(
                "put",
                lambda driver: driver.put(key, data, metadata, expect=expect, keep=keep),
                what=f"PUT {key!r}",
                patience=_patience(size),
                size_bytes=size,
                key=key,
                changes=[key],
                conditional=self.is_conditional(expect),
            )
        self.note_stored(key, size)
        return info

    async def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        """Write a whole object from a local file; see `UnderStore.put_file`."""

        def put(driver: UnderStore) -> ObjectInfo:
            return driver.put_file(key, path, metadata, expect=expect, keep=keep)

        size = (await trio.Path(path).stat()).st_size
        await self.turn("put", key, size)
        with self.changing(key):
            info = await self.call(
                "put",
                put,
                what=f"PUT {key!r}",
                patience=_patience(size),
                size_bytes=size,
                key=key,
                changes=[key],
                # Where it does not go up in parts, of which the end is conditional, the driver may only look before.
                conditional=self.is_conditional(expect) and self.abilities.multipart,
            )
        self.note_stored(key, size)
        return info

    async def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect: str | None = None,
        size: int | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        """Copy inside the store; see `UnderStore.copy`. ``size`` in bytes also says how long it may take."""

        def copy(driver: UnderStore) -> ObjectInfo:
            return driver.copy(source, target, version=version, metadata=metadata, expect=expect, size=size, keep=keep)

        patience = 1 + (size or 0) / COPIED_BYTES
        with self.changing(target):
            what = f"COPY {source!r} to {target!r}"
            return await self.call("put", copy, what=what, patience=patience, changes=[source, target], target=target)

    async def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Remove any number of objects, in requests of 1000; returns those that are still there, with the reason.

        Raises `StoreError` if a whole request failed; those before it have then had their effect.
        """
        failures: dict[str, StoreError] = {}
        for start in range(0, len(keys), MOST_DELETES):
            some = list(keys[start : start + MOST_DELETES])
            with self.changing(*some, gone=True):
                failures |= await self._delete_some(some)
        return failures

    async def _delete_some(self, keys: list[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        what = f"DELETE {keys[0]!r}" if len(keys) == 1 else f"DELETE of {len(keys)} keys"

        def delete(driver: UnderStore) -> None:
            """Delete the keys that are left; raises an error for which another try is worth it."""
            wanted = [key for key, error in failures.items() if error.retryable] if failures else keys
            for key in wanted:
                failures.pop(key, None)
            failures.update(driver.delete(wanted))
            if again := next((error for error in failures.values() if error.retryable), None):
                raise again

        try:
            await self.call("delete", delete, what=what, patience=delete_patience(len(keys)), changes=keys)
        except StoreError as exc:
            if exc not in failures.values():
                raise
        return failures

    async def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        """Open a multipart upload and return its id."""
        return await self.call("put", lambda driver: driver.begin_upload(key, metadata, keep=keep), what=f"BEGIN {key!r}")

    async def upload_part(self, key: str, upload: str, number: int, data: Buffer, *, once: bool = False) -> str:
        """Upload one part, which has had its `turn`, and return its ETag; see `UnderStore.upload_part`, `Calls.call`."""
        size = len(data)
        tag = await self.call(
            "put",
            lambda driver: driver.upload_part(key, upload, number, data),
            what=f"PUT {key!r} part {number}",
            patience=_patience(size),
            size_bytes=size,
            key=key,
            once=once,
        )
        self.counters.put_bytes += size
        return tag

    async def copy_part(
        self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int
    ) -> str:
        """Make a part of bytes that the store has; see `UnderStore.copy_part`."""
        return await self.call(
            "put",
            lambda driver: driver.copy_part(key, upload, number, source, version, start, end),
            what=f"COPY {source!r} [{start}, {end}) to {key!r} part {number}",
            patience=1 + (end - start) / COPIED_BYTES,
        )

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        """Make one object of the parts; see `UnderStore.complete_upload`."""
        with self.changing(key):
            return await self.call(
                "put",
                lambda driver: driver.complete_upload(key, upload, parts, expect=expect),
                what=f"COMPLETE {key!r}",
                patience=1 + len(parts) / 100,
                changes=[key],
                conditional=self.is_conditional(expect),
            )

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an open upload and its parts."""
        await self.call("delete", lambda driver: driver.abort_upload(key, upload), what=f"ABORT {key!r}")


def _patience(size_bytes: int) -> float:
    """Return how many times the deadline of one request sending so many bytes may take."""
    return 1 + size_bytes / PATIENT_BYTES


def delete_patience(keys: int) -> float:
    """Return how many times the deadline of one request removing so many keys may take."""
    return min(DELETE_PATIENCE, 1 + (keys - 1) / PATIENT_DELETES)


def _first(pages: Iterator[ListPage]) -> tuple[Iterator[ListPage], ListPage | None]:
    return pages, next(pages, None)
