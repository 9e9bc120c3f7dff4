"""An in-memory under-store with faults on demand or by seed, which counts every request."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from luxfuse.errors import BucketMissing, NotFound, StoreError, StoreRejected, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import MOST_DELETES, Abilities, ListedPart, OnDescribed
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.properties import Properties

PAGE_ENTRIES = 1000
KINDS = (
    "get", "head", "list", "put", "put_file", "copy", "delete",
    "begin_upload", "upload_part", "copy_part", "complete_upload", "abort_upload",
)  # fmt: skip
EVERYTHING = Abilities(metadata=True, conditional=True, multipart=True, part_copy=True, hierarchical=False)
_COUNTING = threading.Lock()
FROM_KEYS = replace(EVERYTHING, start_after=True)


@dataclass
class FakeUpload:
    """One open multipart upload."""

    key: str
    metadata: dict[str, str]
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass
class FakeStore:
    """An `UnderStore` in memory. Thread-safe; faults apply in the order: hold, delay, fail_next, flaky.

    ``counts`` counts requests by kind (see `KINDS`), failed ones included; ``reads`` successful and failed reads by
    (key, (start, end)). ``writes`` lists what changed objects, in order, as (kind, key); ``uploads`` holds the open
    multipart uploads by id. Set ``abilities`` to play a poorer store.
    """

    driver = "fake"
    hanging: ClassVar[int] = 0
    """Requests of all stores that are held now."""

    objects: dict[str, tuple[bytes, str, int, dict[str, str]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    reads: Counter[tuple[str, tuple[int, int]]] = field(default_factory=Counter)
    writes: list[tuple[str, str]] = field(default_factory=list)
    uploads: dict[str, FakeUpload] = field(default_factory=dict)
    abilities: Abilities = EVERYTHING
    least_part_bytes: int = 0
    delay_s: float = 0.0
    answers_lost: int = 0
    missing_bucket: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._now_ns = 1_700_000_000_000_000_000
        self._failures: list[tuple[str | None, Callable[[], StoreError]]] = []
        self._lost_answers: list[str] = []
        self._held: tuple[str, ...] = ()
        self._next_upload = 0
        self._wrong_etags = 0
        self._short_bodies = 0
        self._rng: random.Random | None = None
        self._rate = 0.0
        self._hanging = 0
        self._open = threading.Event()
        self._open.set()

    # What is stored, changed behind the back of luxfuse: no request, no faults.

    def place(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> ObjectInfo:
        """Store ``data``; the version depends on content and time, as no two writes are the same."""
        with self._lock:
            self._now_ns += 1_000_000_000
            digest = hashlib.blake2b(data + self._now_ns.to_bytes(8, "big"), digest_size=16).hexdigest()
            kept = dict(metadata or {}) if self.abilities.metadata else {}
            self.objects[key] = (bytes(data), f'"{digest}"', self._now_ns, kept)
            return self._describe(key, with_metadata=True)

    def remove(self, key: str) -> None:
        """Remove ``key``."""
        with self._lock:
            del self.objects[key]

    def copied(self) -> FakeStore:
        """Return a store with the same content, open uploads and versions to come, without faults and counts."""
        with self._lock:
            uploads = {name: FakeUpload(u.key, u.metadata, dict(u.parts)) for name, u in self.uploads.items()}
            other = type(self)(
                objects=dict(self.objects),
                uploads=uploads,
                abilities=self.abilities,
                least_part_bytes=self.least_part_bytes,
            )
            other._now_ns, other._next_upload = self._now_ns, self._next_upload
            return other

    # Faults.

    def fail_next(self, n: int = 1, error: Callable[[], StoreError] | None = None, kind: str | None = None) -> None:
        """Make the next ``n`` requests (of ``kind``, if given) raise ``error()``; StoreUnavailable if not given."""
        assert kind is None or kind in KINDS
        with self._lock:
            self._failures += [(kind, error or (lambda: StoreUnavailable("fake: 503 Slow Down")))] * n

    def heal(self) -> None:
        """Forget what `fail_next` said."""
        with self._lock:
            self._failures.clear()

    def flaky(self, rate: float, seed: int) -> None:
        """Let a share of all requests fail with StoreUnavailable, chosen by ``seed``; rate 0 ends it."""
        with self._lock:
            self._rate, self._rng = rate, random.Random(seed)

    def wrong_etag_next(self, n: int = 1) -> None:
        """Let the next ``n`` reads be answered by another version."""
        self._wrong_etags += n

    def short_body_next(self, n: int = 1) -> None:
        """Let the next ``n`` reads lose their last byte."""
        self._short_bodies += n

    def lose_answer_next(self, kind: str, n: int = 1) -> None:
        """Let the next ``n`` writes of ``kind`` have their effect and raise StoreUnavailable all the same."""
        assert kind in KINDS
        with self._lock:
            self._lost_answers += [kind] * n

    def hold(self, *kinds: str) -> None:
        """Let every request (of ``kinds``, if given) hang until `release`."""
        assert set(kinds) <= set(KINDS)
        self._held = kinds
        self._open.clear()

    def release(self) -> None:
        """Let held requests go on; none of them hangs from now on, though its thread may take a while to notice."""
        with _COUNTING:
            self._open.set()
            FakeStore.hanging -= self._hanging
            self._hanging = 0

    # The under-store.

    def probe(self) -> None:
        self._request("list")

    def head(self, key: str) -> ObjectInfo:
        self._request("head")
        with self._lock:
            if key not in self.objects:
                raise NotFound(f"HEAD {key!r}: 404 Not Found")
            return self._describe(key, with_metadata=True)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        assert not prefix or prefix.endswith("/")
        self._request("list")
        with self._lock:
            keys = sorted(key for key in self.objects if key.startswith(prefix))
            page = ListPage()
            pages = [page]
            seen = set()
            for key in keys:
                name, slash, _ = key[len(prefix) :].partition("/")
                if not name and not slash:
                    continue
                if slash and name in seen:
                    continue
                if len(page.objects) + len(page.prefixes) == PAGE_ENTRIES:
                    page = ListPage()
                    pages.append(page)
                if slash:
                    seen.add(name)
                    page.prefixes.append(f"{prefix}{name}/")
                else:
                    page.objects.append(self._describe(key, with_metadata=False))
        for number, ready in enumerate(pages if keys or not prefix else []):
            if number:
                self._request("list")
            yield ready

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        """Return a page as S3 does; a token is the last name."""
        self._request("list")
        with self._lock:
            keys = sorted(key for key in self.objects if key.startswith(prefix) and (token or key > after))
            names = dict.fromkeys(prefix + "".join(key[len(prefix) :].partition("/")[:2]) for key in keys)
            left = [name for name in names if name > token and name != prefix]
            page = left[:PAGE_ENTRIES]
            return ListedPart(
                ListPage(
                    [self._describe(name, with_metadata=False) for name in page if not name.endswith("/")],
                    [name for name in page if name.endswith("/")],
                ),
                page[-1] if len(left) > len(page) else "",
                bool(keys),
            )

    def has_prefix(self, prefix: str) -> bool:
        self._request("list")
        with self._lock:
            return any(key.startswith(prefix) for key in self.objects)

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        with self._lock:
            self.reads[key, (start, end)] += 1
        self._request("get")
        with self._lock:
            if key not in self.objects:
                raise NotFound(f"GET {key!r}: 404 Not Found")
            data, found, _, _ = self.objects[key]
            info = self._describe(key, with_metadata=True)
            if self._wrong_etags:
                self._wrong_etags -= 1
                found = '"wrong"'
            body = data[start:end]
            if self._short_bodies:
                self._short_bodies -= 1
                body = body[:-1]
        if found != version:
            raise VersionChanged(f"GET {key!r}: version is {found}, not {version}")
        if len(body) != end - start:
            raise StoreUnavailable(f"GET {key!r}: {len(body)} bytes came")
        if on_described is not None and self.abilities.metadata:
            on_described(info)
        return body

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        assert not prefix or prefix.endswith("/")
        self._request("list")
        with self._lock:
            keys = sorted(key for key in self.objects if key.startswith(prefix))
            infos = [self._describe(key, with_metadata=False) for key in keys]
        for start in range(0, len(infos), PAGE_ENTRIES):
            if start:
                self._request("list")
            yield ListPage(infos[start : start + PAGE_ENTRIES])

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        return Properties(self.head(key))

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        assert not key.endswith("/") or not data
        return self._put("put", key, bytes(data), metadata, expect)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        return self._put("put_file", key, Path(path).read_bytes(), metadata, expect)

    def _put(self, kind: str, key: str, data: bytes, metadata: Mapping[str, str], expect: str | None) -> ObjectInfo:
        what = f"PUT {key!r}"
        metadata = checked_metadata(metadata, what)
        self._request(kind)
        with self._lock:
            return self._write(kind, key, data, metadata, expect, what)

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
        what = f"COPY {source!r} to {target!r}"
        if metadata is not None:
            metadata = checked_metadata(metadata, what)
        self._request("copy")
        with self._lock:
            data, kept = self._source(source, version, what)
            info = self._write("copy", target, data, kept if metadata is None else metadata, expect, what)
            return ObjectInfo(info.key, -1, info.version, 0)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        assert not isinstance(keys, str), "delete takes keys; remove() takes one, behind luxfuse's back"
        assert len(keys) <= MOST_DELETES
        self._request("delete")
        failures: dict[str, StoreError] = {}
        with self._lock:
            for key in keys:
                inside = key.endswith("/") and any(k.startswith(key) and k != key for k in self.objects)
                if inside and self.abilities.hierarchical:
                    failures[key] = StoreRejected(f"DELETE {key!r}: the directory is not empty")
                    failures[key].errno = errno.ENOTEMPTY
                elif self.objects.pop(key, None):
                    self.writes.append(("delete", key))
            self._answer("delete")
        return failures

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        what = f"BEGIN {key!r}"
        metadata = checked_metadata(metadata, what)
        self._require_multipart(what)
        self._request("begin_upload")
        with self._lock:
            self._next_upload += 1
            upload = f"upload-{self._next_upload}"
            self.uploads[upload] = FakeUpload(key, dict(metadata))
            self._answer("begin_upload")
            return upload

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        self._require_multipart(what := f"PUT {key!r} part {number}")
        self._request("upload_part")
        with self._lock:
            return self._add_part("upload_part", key, upload, number, bytes(data), what)

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        self._require_multipart(what := f"COPY {source!r} to {key!r} part {number}")
        self._request("copy_part")
        if not self.abilities.part_copy:
            raise StoreRejected(f"{what}: not possible here")
        with self._lock:
            data, _ = self._source(source, version, what)
            assert 0 <= start < end <= len(data)
            return self._add_part("copy_part", key, upload, number, data[start:end], what)

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        self._require_multipart(what := f"COMPLETE {key!r}")
        self._request("complete_upload")
        with self._lock:
            found = self._upload(key, upload, what)
            assert [number for number, _ in parts] == sorted({number for number, _ in parts})
            for number, tag in parts:
                if number not in found.parts or found.parts[number][0] != tag:
                    raise StoreRejected(f"{what}: 400 Bad Request (InvalidPart)")
            bodies = [found.parts[number][1] for number, _ in parts]
            if any(len(body) < self.least_part_bytes for body in bodies[:-1]):
                raise StoreRejected(f"{what}: 400 Bad Request (EntityTooSmall)")
            self._require(key, expect, what)
            del self.uploads[upload]
            info = self._write("complete_upload", key, b"".join(bodies), found.metadata, None, what)
            return ObjectInfo(key, -1, info.version, 0)

    def abort_upload(self, key: str, upload: str) -> None:
        self._request("abort_upload")
        with self._lock:
            self.uploads.pop(upload, None)
            self._answer("abort_upload")

    def close(self) -> None:
        self.closed = True

    # Its parts.

    def _write(
        self, kind: str, key: str, data: bytes, metadata: Mapping[str, str], expect: str | None, what: str
    ) -> ObjectInfo:
        self._require(key, expect, what)
        if self.abilities.hierarchical:
            for parent in accumulate(key.rstrip("/").split("/")[:-1], "{}/{}".format):
                if f"{parent}/" not in self.objects:
                    self.place(f"{parent}/", b"")
        info = self.place(key, data, metadata)
        self.writes.append((kind, key))
        self._answer(kind)
        return ObjectInfo(key, info.size, info.version, 0, info.metadata)

    def _require(self, key: str, expect: str | None, what: str) -> None:
        found = self.objects[key][1] if key in self.objects else ABSENT
        if expect not in (None, found) and self.abilities.conditional:
            raise VersionChanged(f"{what}: version is {found or 'none'}, not {expect or 'none'}")

    def _source(self, key: str, version: str | None, what: str) -> tuple[bytes, dict[str, str]]:
        if key not in self.objects:
            raise NotFound(f"{what}: 404 Not Found")
        data, found, _, metadata = self.objects[key]
        if version not in (None, found):
            raise VersionChanged(f"{what}: version is {found}, not {version}")
        return data, metadata

    def _require_multipart(self, what: str) -> None:
        if not self.abilities.multipart:
            raise StoreRejected(f"{what}: not possible here")

    def _upload(self, key: str, upload: str, what: str) -> FakeUpload:
        if upload not in self.uploads:
            raise NotFound(f"{what}: 404 Not Found (NoSuchUpload)")
        assert self.uploads[upload].key == key
        return self.uploads[upload]

    def _add_part(self, kind: str, key: str, upload: str, number: int, data: bytes, what: str) -> str:
        assert 1 <= number <= 10_000
        tag = f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'
        self._upload(key, upload, what).parts[number] = (tag, data)
        self._answer(kind)
        return tag

    def _answer(self, kind: str) -> None:
        if kind in self._lost_answers:
            self._lost_answers.remove(kind)
            self.answers_lost += 1
            raise StoreUnavailable("fake: the answer got lost")

    def _wait(self) -> None:
        with _COUNTING:
            if self._open.is_set():
                return
            self._hanging += 1
            FakeStore.hanging += 1
        self._open.wait()

    def _request(self, kind: str) -> None:
        assert not self.closed, "used after close"
        with self._lock:
            self.counts[kind] += 1
        if not self._held or kind in self._held:
            self._wait()
        if self.delay_s:
            time.sleep(self.delay_s)
        with self._lock:
            if self.missing_bucket:
                raise BucketMissing("fake: the bucket does not exist")
            for number, (wanted, error) in enumerate(self._failures):
                if wanted in (None, kind):
                    del self._failures[number]
                    raise error()
            if self._rng is not None and self._rng.random() < self._rate:
                raise StoreUnavailable("fake: flaky")

    def _describe(self, key: str, *, with_metadata: bool) -> ObjectInfo:
        data, version, mtime_ns, metadata = self.objects[key]
        return ObjectInfo(key, len(data), version, mtime_ns, dict(metadata) if with_metadata else None)
