"""Reads through obstore's synchronous calls, which cost about 80 us of CPU per small GET in a thread.

obstore parses keys into paths and so refuses some that the stores allow: empty, "." and ".." segments, a trailing
"/", control characters. Requests for such keys, and listings that contain one, go through the fsspec driver instead,
opened when first needed with the same options. It takes long to open, and every directory has such a key, that of its
marker: so S3 is asked for these in C where that can be done (`understore.s3.direct`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import obstore
from arro3.core import DataType
from obstore.exceptions import InvalidPathError

from luxfuse.errors import AccessDenied, NotFound, StoreRejected, VersionChanged
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, OnDescribed, UnderStore
from luxfuse.understore.failures import checked, no_store
from luxfuse.understore.locations import has_odd_segment, parse_location
from luxfuse.understore.obstore.failures import obstore_failure
from luxfuse.understore.obstore.options import open_store
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.direct import DirectGets

PROBE_PREFIX = ".luxfuse-probe-"
"""Names of objects that nobody has begin with it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS = DataType.timestamp("ns", tz="UTC")
_INT64 = DataType.int64()


class ObstoreReads:
    """The reading half of an `UnderStore` on obstore. ``fallback`` opens the driver for keys that obstore cannot name."""

    driver = "obstore"

    def __init__(
        self,
        source: str,
        *,
        endpoint_url: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        request_timeout_s: float = 30.0,
        fallback: Callable[[], UnderStore],
        access: S3Access | None = None,
        direct: DirectGets | None = None,
    ) -> None:
        location = parse_location(source)
        self._family = location.family
        self._store = open_store(location, endpoint_url, storage_options or {}, request_timeout_s, access=access)
        self._open_fallback = fallback
        self._fallback_driver: UnderStore | None = None
        self._lock = threading.Lock()
        self._azure = location.family == "az"
        self._direct = direct

    def probe(self) -> None:
        try:
            found = next(iter(obstore.list(self._store, chunk_size=1)), None)
        except InvalidPathError:
            return  # the store answered; it just has odd keys
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, "LIST ''", bucket_level=True) from None
        if not found:
            self._require_store("LIST ''")

    def _require_store(self, what: str) -> None:
        """Raise `NoStore` unless the server that listed nothing knows that an object is missing.

        For S3 and Google, obstore takes any XML for a listing, so a web page is an empty one.
        """
        if self._azure:
            return
        try:
            result = obstore.get(self._store, f"{PROBE_PREFIX}{secrets.token_hex(8)}", options={"head": True})
        except Exception as exc:  # noqa: BLE001
            error = obstore_failure(exc, self._family, what)
            if isinstance(error, NotFound | AccessDenied):  # to list may be allowed where to read is not
                return
            raise error from None
        kind = result.attributes.get("Content-Type")
        raise no_store(what, "nothing is listed, but there is an object of any name", kind)

    def head(self, key: str) -> ObjectInfo:
        if has_odd_segment(key):
            return self._head_odd(key)
        try:
            result = obstore.get(self._store, key, options={"head": True})
        except ValueError:
            return self._head_odd(key)
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, f"HEAD {key!r}") from None
        info = _info_of(key, result)
        if not info.mtime_ns and not result.meta["e_tag"]:
            raise no_store(f"HEAD {key!r}", "a success, but the answer describes no object")
        if self._azure and (info.metadata or {}).get("hdi_isfolder") == "true":
            raise NotFound(f"HEAD {key!r}: is a directory")
        return info

    def _head_odd(self, key: str) -> ObjectInfo:
        direct = self._direct
        info = direct.head(key) if direct is not None else None
        return self._fallback().head(key) if info is None else info

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        if prefix and has_odd_segment(prefix[:-1]):
            yield from self._fallback().list_directory(prefix)
            return
        try:
            listing = obstore.list_with_delimiter(self._store, prefix or None, return_arrow=True)
        except (InvalidPathError, ValueError):
            yield from self._fallback().list_directory(prefix)
            return
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, f"LIST {prefix!r}", bucket_level=True) from None
        objects, prefixes = listing["objects"], listing["common_prefixes"]
        if not prefixes and not objects.num_rows:
            self._require_store(f"LIST {prefix!r}")
            if not prefix or (self._azure and self._azure_directory_exists(prefix)):
                yield ListPage()
            return
        for start in range(0, len(prefixes), PAGE_ENTRIES):
            yield ListPage([], [f"{name}/" for name in prefixes[start : start + PAGE_ENTRIES]])
        marker = prefix[:-1]
        total = objects.num_rows
        for start in range(0, total, PAGE_ENTRIES):
            yield ListPage(self._convert(objects.slice(start, min(PAGE_ENTRIES, total - start)), marker))

    def _convert(self, rows: Any, marker: str) -> list[ObjectInfo]:
        keys = rows.column("path").to_pylist()
        sizes = rows.column("size").to_pylist()
        versions = rows.column("e_tag").to_pylist()
        mtimes_ns = rows.column("last_modified").cast(_NANOSECONDS).cast(_INT64).to_pylist()
        if None in versions:
            versions = [v or f"{s}-{m // 10**9}" for v, s, m in zip(versions, sizes, mtimes_ns, strict=True)]
        if self._azure:  # whose listings omit the quotes
            versions = [v if v.endswith('"') else f'"{v}"' for v in versions]
        infos = list(map(ObjectInfo, keys, sizes, versions, mtimes_ns))
        # obstore strips the "/" of a directory marker; no real key of this listing can be the prefix itself.
        if marker in keys:
            infos = [info for info in infos if info.key != marker]
        return infos

    def has_prefix(self, prefix: str) -> bool:
        if has_odd_segment(prefix[:-1]):
            return self._fallback().has_prefix(prefix)
        try:
            chunk = next(iter(obstore.list(self._store, prefix, chunk_size=1)), None)
        except InvalidPathError:
            return True  # an odd key, but it lies below the prefix
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, f"LIST {prefix!r}", bucket_level=True) from None
        return bool(chunk) or (self._azure and self._azure_directory_exists(prefix))

    def _azure_directory_exists(self, prefix: str) -> bool:
        """Look for entries that obstore's Azure listings leave out: a marker blob "d/", and an empty directory of ADLS."""
        try:
            result = obstore.get(self._store, prefix[:-1], options={"head": True})
        except FileNotFoundError:
            pass
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, f"HEAD {prefix!r}") from None
        else:
            if result.attributes.get("hdi_isfolder") == "true":
                return True
        try:
            other = self._fallback()
        except StoreRejected:
            return False  # adlfs is not installed
        return other.has_prefix(prefix)

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        if key[-1:] == "/" or key[:1] == "/" or version[:1] != '"':  # obstore would strip the "/" silently
            return self._read_unusual(key, start, end, version, on_described)
        try:
            result = obstore.get(self._store, key, options={"range": (start, end), "if_match": version})
            data = memoryview(result.bytes())
        except ValueError:
            return self._fallback().read(key, start, end, version, on_described=on_described)
        except Exception as exc:  # noqa: BLE001
            if start == end:
                return b""
            if "non-partial response" in str(exc):
                return self._read_whole(key, start, end, version, on_described)
            error = obstore_failure(exc, self._family, f"GET {key!r} [{start}, {end})")
            if self._azure and isinstance(error, VersionChanged):
                self.head(key)  # Azure answers 412 for a blob that is gone, too
            raise error from None
        if (found := result.meta["e_tag"]) != version or len(data) != end - start:
            return checked(data, end - start, found or "", version, f"GET {key!r} [{start}, {end})")
        if on_described is not None:
            on_described(_info_of(key, result))
        return data

    def _read_unusual(self, key: str, start: int, end: int, version: str, on_described: OnDescribed | None) -> Buffer:
        """Read where `read` cannot: keys that obstore refuses, and versions that are no ETag of its own."""
        if version[:1] == '"' or has_odd_segment(key) or self._family == "gs":
            return self._fallback().read(key, start, end, version, on_described=on_described)
        what = f"GET {key!r} [{start}, {end})"
        try:
            result = obstore.get(self._store, key, options={"range": (start, end)})
            data, found = memoryview(result.bytes()), version_of(result.meta)
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, what) from None
        content = checked(data, end - start, found, version, what)
        if on_described is not None:
            on_described(_info_of(key, result))
        return content

    def _read_whole(self, key: str, start: int, end: int, version: str, on_described: OnDescribed | None) -> Buffer:
        """Serve a server that ignores Range, as far as that is possible without reading more than asked for."""
        what = f"GET {key!r} [{start}, {end})"
        try:
            result = obstore.get(self._store, key, options={"if_match": version})
            meta = result.meta
            whole = start == 0 and meta["size"] == end
            data = memoryview(result.bytes()) if whole else memoryview(b"")
        except Exception as exc:  # noqa: BLE001
            raise obstore_failure(exc, self._family, what) from None
        if not whole:
            raise StoreRejected(f"{what}: the server ignores Range, so only whole files in one piece can be read")
        content = checked(data, end, meta["e_tag"] or "", version, what)
        if on_described is not None:
            on_described(_info_of(key, result))
        return content

    def close(self) -> None:
        with self._lock:
            driver, self._fallback_driver = self._fallback_driver, None
        if driver is not None:
            driver.close()

    def _fallback(self) -> UnderStore:
        with self._lock:
            if self._fallback_driver is None:
                self._fallback_driver = self._open_fallback()
            return self._fallback_driver


def _info_of(key: str, result: Any) -> ObjectInfo:
    """Return the description of an object in the answer to a GET or HEAD."""
    meta = result.meta
    # Attributes of the protocol are capitalised ("Content-Type"), user metadata is in lower case.
    metadata = {str(k): v for k, v in result.attributes.items() if k == k.lower()}
    return ObjectInfo(key, meta["size"], version_of(meta), mtime_ns_of(meta["last_modified"]), metadata)


def version_of(meta: Any) -> str:
    """Return the ETag, or size and time of the content where there is none."""
    return meta["e_tag"] or f"{meta['size']}-{mtime_ns_of(meta['last_modified']) // 10**9}"


def mtime_ns_of(moment: datetime) -> int:
    """Return nanoseconds since 1970."""
    delta = moment - _EPOCH
    return ((delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds) * 1000
