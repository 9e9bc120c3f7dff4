"""The protocol of a store. Drivers are synchronous and thread-safe; `retrying` adds deadlines and retries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from luxfuse.errors import StoreError
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.properties import Properties

OnDescribed = Callable[[ObjectInfo], None]
"""Takes the description of the object in the answer to a read, user metadata included; in the thread that reads."""


PAGE_ENTRIES = 1000
"""Entries of a page of a listing, as stores give them: few enough to convert one in 1 ms with the interpreter lock held."""

MOST_DELETES = 1000
"""Keys that one `UnderStore.delete` takes."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """The abilities of a store beside the writes that every one has."""

    metadata: bool
    """Objects keep user metadata; elsewhere it is dropped."""

    conditional: bool
    """Writes honour ``expect``; elsewhere they ignore it."""

    multipart: bool
    """``begin_upload`` and the like work; elsewhere they raise `StoreRejected`, and large files go by ``put_file``."""

    part_copy: bool
    """``copy_part`` works."""

    hierarchical: bool
    """Directories exist by themselves: ``put("d/")`` makes one, ``delete(["d/"])`` removes an empty one."""

    start_after: bool = False
    """Listings can begin after any key: the store is a `ListsFromKeys`, too."""

    in_order: bool = False
    """``list_directory`` hands on each answer of the store as it comes, in the order of keys."""

    writable: bool = True
    """Else every write raises `ReadOnlyStore`."""


@dataclass(frozen=True, slots=True)
class ListedPart:
    """The answer to one request of a listing."""

    page: ListPage
    token: str
    """Where the store goes on; "" at the end."""
    exists: bool
    """Whether anything at all came, be it the directory's own marker."""


class WriteSide(Protocol):
    """The methods of an `UnderStore` that write, and the listing that goes with them.

    Writes are atomic: a key holds the old object or the new one. After `StoreUnavailable` either may be there. Where
    ``expect`` is a parameter, None writes in any case, `ABSENT` only if there is no such object, and a version only
    over that one; `VersionChanged` otherwise. ``metadata`` has lower-case names and ASCII values (`StoreRejected` for
    others). The version in a returned `ObjectInfo` is the one that head, list and read use for the content that was
    written; where the answer does not tell, ``size`` is -1, ``mtime_ns`` 0 and ``metadata`` None. A written object has the
    properties of ``keep``, but for its metadata: those are all in ``metadata``.
    """

    @property
    def abilities(self) -> Abilities:
        """The abilities of this store; it may lose some that its server turns out not to have."""

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        """List every key below ``prefix`` ("" or ending in "/"), however deep, as objects.

        Markers come as objects whose key ends in "/", that of ``prefix`` itself too; hierarchical stores have one for
        each directory. No page has ``prefixes``; there is none where nothing is below ``prefix``.
        """

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        """Describe one object with its properties; ``whole``: those too that a plain copy has by itself."""

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        """Write a whole object in one request. A key that ends in "/" is a directory marker, ``data`` then empty."""

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        """Write a whole object of any size from the local file ``path``, which nobody changes meanwhile."""

    def copy(
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
        """Copy an object of any size inside the store. ``metadata`` None keeps the source's, else replaces it.

        The properties of the source stay. ``source == target`` replaces the metadata. ``size`` in bytes, and the
        source as it has just been examined (``keep``), may save a request. Raises
        `VersionChanged` if ``version`` is given and the source is another one, `NotFound` if there is none.
        """

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Remove up to `MOST_DELETES` objects; a missing one counts as removed. Returns those that are still there.

        A directory of a hierarchical store that is not empty fails with a `StoreRejected` of errno ENOTEMPTY. Raises
        `StoreError` if the whole request failed.
        """

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        """Open a multipart upload and return its id. Nothing is visible under ``key`` until it is completed."""

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """Upload part ``number`` (1 to 10,000; only the last may have less than 5 MiB) and return its ETag.

        Parts may come in any order and at once; a number that comes again replaces the part. Raises `NotFound` if
        the upload is no longer open.
        """

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        """Make bytes [start, end) of the object ``source`` part ``number``; returns its ETag.

        Raises `VersionChanged` if ``version`` is given and the source is another one.
        """

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        """Make one object of the parts (number, ETag), which are in ascending order.

        Raises `NotFound` if the upload is no longer open: it was aborted, or completed by a try whose answer got lost.
        """

    def abort_upload(self, key: str, upload: str) -> None:
        """Drop an open upload and its parts; one that is gone already is fine."""

    def close(self) -> None:
        """Free connections. Further calls are errors."""


class UnderStore(WriteSide, Protocol):
    """One bucket (or directory tree) below ``root``; every key is relative to it.

    All methods block, may be called from many threads at once, make one attempt (no retries of their own beyond
    paging) and end within the driver's connect and read time-outs. They raise only `luxfuse.errors.StoreError`
    subclasses: `NotFound`, `AccessDenied`, `VersionChanged`, `StoreRejected`, `StoreUnavailable`, `BucketMissing`,
    and writes also `QuotaExceeded`, `StoreFull` and `ReadOnlyStore`. No message contains a secret.
    """

    driver: str
    """"obstore" or "fsspec"."""

    def probe(self) -> None:
        """Make the cheapest request that proves that bucket, endpoint and credentials work."""

    def head(self, key: str) -> ObjectInfo:
        """Describe one object, user metadata included where the store has it."""

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        """List one directory level below ``prefix`` ("" or ending in "/"). No entry at all: yields no page.

        A marker object of the directory itself (key == prefix) is yielded as nothing, but makes the iterator yield at
        least one (then empty) page, so that an empty directory differs from a missing one.
        """

    def has_prefix(self, prefix: str) -> bool:
        """Whether any key starts with ``prefix`` (which ends in "/"), the marker itself included."""

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        """Return bytes [start, end) of exactly ``version`` of the object; exactly ``end - start`` bytes.

        ``on_described`` is called before it returns if the answer told the object's metadata too, as `head` does; where a
        store keeps none, or the driver does not get to see them, it is not. Raises `VersionChanged` if the store now holds
        another version (If-Match, and the returned ETag is compared because some servers ignore If-Match), `NotFound` if it
        is gone, `StoreUnavailable` for a short body.

        A driver may have checksummed the bytes: then the object of the memoryview has ``checksums``, the xxh3-64 of each
        page's length from ``start`` on.
        """


class ListsFromKeys(Protocol):
    """The further method of an `UnderStore` whose ability is ``start_after``."""

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        """Make one request of `list_directory`: from ``token`` on, else for the keys after ``after``, if that is not "".

        ``after`` is a whole key, begins with ``prefix``, and has no "/" behind that.
        """
