"""An in-memory under-store with faults on demand or by seed, which counts every request."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from luxfuse.errors import BucketMissing, NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ListPage, ObjectInfo
from luxfuse.understore.base import Buffer

PAGE_ENTRIES = 1000
KINDS = ("get", "head", "list")


@dataclass
class FakeStore:
    """An `UnderStore` in memory. Thread-safe; faults apply in the order: hold, delay, fail_next, flaky.

    ``counts`` counts requests by kind ("get", "head", "list"), failed ones included; ``reads`` successful and failed
    reads by (key, (start, end)).
    """

    driver = "fake"

    objects: dict[str, tuple[bytes, str, int, dict[str, str]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    reads: Counter[tuple[str, tuple[int, int]]] = field(default_factory=Counter)
    delay_s: float = 0.0
    missing_bucket: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._now_ns = 1_700_000_000_000_000_000
        self._failures: list[tuple[str | None, Callable[[], StoreError]]] = []
        self._wrong_etags = 0
        self._short_bodies = 0
        self._rng: random.Random | None = None
        self._rate = 0.0
        self._open = threading.Event()
        self._open.set()

    # What is stored.

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> ObjectInfo:
        """Store ``data``; the version depends on content and time, as no two writes are the same."""
        with self._lock:
            self._now_ns += 1_000_000_000
            digest = hashlib.blake2b(data + self._now_ns.to_bytes(8, "big"), digest_size=16).hexdigest()
            self.objects[key] = (bytes(data), f'"{digest}"', self._now_ns, dict(metadata or {}))
            return self._describe(key, with_metadata=True)

    def delete(self, key: str) -> None:
        """Remove ``key``."""
        with self._lock:
            del self.objects[key]

    # Faults.

    def fail_next(self, n: int = 1, error: Callable[[], StoreError] | None = None, kind: str | None = None) -> None:
        """Make the next ``n`` requests (of ``kind``, if given) raise ``error()``; StoreUnavailable if not given."""
        assert kind is None or kind in KINDS
        with self._lock:
            self._failures += [(kind, error or (lambda: StoreUnavailable("fake: 503 Slow Down")))] * n

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

    def hold(self) -> None:
        """Let every request hang until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let held requests go on."""
        self._open.set()

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

    def has_prefix(self, prefix: str) -> bool:
        self._request("list")
        with self._lock:
            return any(key.startswith(prefix) for key in self.objects)

    def read(self, key: str, start: int, end: int, version: str) -> Buffer:
        with self._lock:
            self.reads[key, (start, end)] += 1
        self._request("get")
        with self._lock:
            if key not in self.objects:
                raise NotFound(f"GET {key!r}: 404 Not Found")
            data, found, _, _ = self.objects[key]
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
        return body

    def close(self) -> None:
        self.closed = True

    def _request(self, kind: str) -> None:
        assert not self.closed, "used after close"
        with self._lock:
            self.counts[kind] += 1
        self._open.wait()
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
