"""The writes that obstore has calls for: whole objects, single deletes, copies that keep the metadata."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import InvalidPathError

from luxfuse.errors import NotFound, StoreError, StoreRejected, VersionChanged
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, Abilities
from luxfuse.understore.checksums import is_refused, wants_md5, warn_of_refusal
from luxfuse.understore.conditions import Conditions
from luxfuse.understore.delegated import NoMultipart
from luxfuse.understore.failures import no_store, require_version
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.object_options import DEFAULT_CHECKSUM, NO_CHECKSUM, NO_OPTIONS, ObjectOptions
from luxfuse.understore.obstore.failures import obstore_failure, obstore_message, obstore_status
from luxfuse.understore.obstore.reads import mtime_ns_of, version_of
from luxfuse.understore.properties import HEADERS, Properties, type_for
from luxfuse.understore.whole_files import PART_BYTES

log = logging.getLogger(__name__)

PATIENT_FROM_BYTES = 1 << 20
"""From this size on a write gets the client with the long time-outs."""

DELETES_AT_ONCE = 16


class NeedsMd5(StoreRejected):
    """The server wants Content-MD5, which obstore cannot send: another client is to make the request."""


class ObstoreWrites(NoMultipart):
    """A `WriteSide` on obstore alone, for keys that it can name.

    Markers cannot be written this way. Google's conditions name generations, which are asked for first, with the ETag.
    """

    def __init__(
        self, store: Any, open_for_writes: Callable[[bool, bool], Any], family: str, objects: ObjectOptions = NO_OPTIONS
    ) -> None:
        """``open_for_writes(patient, checksums)``: see `open_store`."""
        self._store = store
        self._open = open_for_writes
        self._stores: dict[tuple[bool, bool], Any] = {}
        if objects.canned_acl is None:
            self._stores[False, True] = store
        self._lock = threading.Lock()
        self._family = family
        self._storage_class = objects.storage_class
        self.checked = family == "s3" and objects.checksum != NO_CHECKSUM
        """Whether checksums go with what is put: until the server turns out not to take them."""
        self._checksum_required = objects.checksum_required
        self._conditions = Conditions()

    @property
    def conditional(self) -> bool:
        """Whether writes are conditional now."""
        return self._conditions.are_made

    @property
    def abilities(self) -> Abilities:
        return Abilities(metadata=True, conditional=self.conditional, multipart=False, part_copy=False, hierarchical=False)

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        what = f"LIST {prefix!r}"
        try:
            for chunk in obstore.list(self._store, prefix or None, chunk_size=PAGE_ENTRIES):
                yield ListPage([self._described(meta) for meta in chunk])
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what, bucket_level=True) from None

    def _described(self, meta: Any) -> ObjectInfo:
        key = meta["path"]
        if meta["size"] == 0:  # obstore strips the "/" of a marker
            try:
                obstore.head(self._store, key)
            except FileNotFoundError:
                key += "/"
        return ObjectInfo(key, meta["size"], self._quoted(version_of(meta)), mtime_ns_of(meta["last_modified"]))

    def _quoted(self, version: str) -> str:
        return f'"{version}"' if self._family == "az" and not version.endswith('"') else version

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        try:
            found = obstore.get(self._store, key, options={"head": True})
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, f"HEAD {key!r}") from None
        given = {str(name): value for name, value in found.attributes.items()}
        metadata = {name: value for name, value in given.items() if name == name.lower()}
        meta = found.meta
        info = ObjectInfo(key, meta["size"], version_of(meta), mtime_ns_of(meta["last_modified"]), metadata)
        headers = {name: given[name] for name in HEADERS if given.get(name)}
        return Properties(info, given.get("Content-Type"), headers, given.get("Storage-Class"))

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        def put(given: str | None) -> ObjectInfo:
            return self._put(key, data, metadata, given, keep)

        return self._conditions.write("put", expect, put, lambda version: self._family == "s3" and self._is(key, version))

    def _put(
        self, key: str, data: Buffer, metadata: Mapping[str, str], expect: str | None, keep: Properties | None
    ) -> ObjectInfo:
        what, size = f"PUT {key!r}", len(data)
        metadata = checked_metadata(metadata, what)
        attributes = self._attributes(key, metadata, keep)
        tags = dict(keep.tags) if keep is not None and keep.tags else None
        mode = self._mode(key, expect, what)

        def put(checksums: bool) -> Any:
            store = self._store_for(size >= PATIENT_FROM_BYTES, checksums)
            return obstore.put(store, key, data, attributes=attributes, tags=tags, mode=mode, use_multipart=False)

        try:
            result = self._with_checksum(put)
        except Exception as exc:  # noqa: BLE001
            status, code = obstore_status(exc)
            if self._family == "s3" and wants_md5(status, code, obstore_message(exc)):
                raise NeedsMd5(f"{what}: the store wants Content-MD5") from None
            if mode is not None and (status == 501 or code == "NotImplemented"):
                self._conditions.end()
                return self._put(key, data, metadata, None, keep)
            error = self._failure(exc, what)
            if mode is not None and type(error) is NotFound:
                raise VersionChanged(f"{what}: the object is gone") from None
            raise error from None
        if mode is not None:
            self.met(expect)
        return self._written(key, size, result, metadata)

    def met(self, expect: str | None) -> None:
        """A conditional put was made, perhaps by another client."""
        self._conditions.met("put", expect)

    def _mode(self, key: str, expect: str | None, what: str) -> Any:
        """Return the condition of a write as obstore names it."""
        if expect is None or not self.conditional:
            return None
        if expect == ABSENT:
            return "create"
        found = self._require(key, expect, what) if self._family == "gs" else None
        return {"e_tag": expect, "version": found["version"]} if found and found["version"] else {"e_tag": expect}

    def _attributes(self, key: str, metadata: Mapping[str, str], keep: Properties | None) -> dict[str, str]:
        attributes = {**metadata, **(keep.headers if keep is not None else {}), "Content-Type": type_for(key, keep)}
        storage_class = (keep.storage_class if keep is not None else None) or self._storage_class
        return attributes | {"Storage-Class": storage_class} if storage_class else attributes

    def _with_checksum(self, put: Callable[[bool], Any]) -> Any:
        """Make a request with a checksum; without, from then on, if the server turns out not to take it."""
        sent = self.checked
        try:
            return put(sent)
        except Exception as exc:
            refused = is_refused(*obstore_status(exc), obstore_message(exc))
            if not (sent and refused) or self._checksum_required:
                raise
        result = put(False)  # if it fails again, it was not the checksum
        if self.checked:
            self.checked = False
            warn_of_refusal(DEFAULT_CHECKSUM)
        return result

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what, file = f"PUT {key!r}", Path(path)
        metadata = checked_metadata(metadata, what)
        attributes = self._attributes(key, metadata, keep)
        tags = dict(keep.tags) if keep is not None and keep.tags else None
        size = file.stat().st_size
        if expect is not None and self.conditional:
            self._require(key, expect, what)  # obstore knows no conditions for multipart uploads
        try:
            result = obstore.put(
                self._patient_store(), key, file, attributes=attributes, tags=tags, chunk_size=PART_BYTES,
                max_concurrency=4,
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what) from None
        return self._written(key, size, result, metadata)

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
        if version is not None:
            self._require(source, version, what)
        if expect is not None and self.conditional:
            self._require(target, expect, what)
        try:
            if metadata is None:
                obstore.copy(self._store, source, target)
            else:
                self._rewrite(source, target, metadata)
            meta = obstore.head(self._store, target)
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what) from None
        return ObjectInfo(target, meta["size"], version_of(meta), mtime_ns_of(meta["last_modified"]), metadata)

    def _rewrite(self, source: str, target: str, metadata: Mapping[str, str]) -> None:
        """Let the bytes come here and go back, as obstore cannot replace metadata."""
        found = obstore.get(self._patient_store(), source)
        kept = {str(name): value for name, value in found.attributes.items() if name != str(name).lower()}
        with tempfile.TemporaryFile() as file:
            for piece in found.stream(min_chunk_size=1 << 20):
                file.write(piece)
            file.seek(0)
            obstore.put(
                self._patient_store(),
                target,
                file,
                attributes={**kept, **metadata},
                chunk_size=PART_BYTES,
                max_concurrency=4,
            )

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        if len(keys) == 1:
            self._delete_one(keys[0])
            return {}

        def failed(key: str) -> StoreError | None:
            try:
                self._delete_one(key)
            except StoreError as exc:
                return exc
            return None

        with ThreadPoolExecutor(min(DELETES_AT_ONCE, len(keys) or 1)) as pool:
            return {key: error for key, error in zip(keys, pool.map(failed, keys), strict=True) if error is not None}

    def _delete_one(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            pass
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, f"DELETE {key!r}") from None

    def close(self) -> None:
        """Do nothing: the connections end with the stores."""

    def _require(self, key: str, expect: str, what: str) -> Any:
        """Compare before a write that knows no such condition; returns what was found, None if there is no object."""
        try:
            found: Any = obstore.head(self._store, key)
        except FileNotFoundError:
            found = None
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what) from None
        require_version(ABSENT if found is None else version_of(found), expect, what)
        return found

    def _is(self, key: str, expect: str) -> bool:
        try:
            self._require(key, expect, f"HEAD {key!r}")
        except VersionChanged:
            return False
        return True

    def _written(self, key: str, size: int, result: Any, metadata: Mapping[str, str]) -> ObjectInfo:
        version = result["e_tag"] or self._found_version(key, size)
        return ObjectInfo(key, size, version, 0, dict(metadata))

    def _found_version(self, key: str, size: int) -> str:
        """Ask for the version of the object that was just written, which the answer did not tell."""
        what = f"HEAD {key!r}"
        try:
            meta = obstore.head(self._store, key)
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what) from None
        if meta["size"] != size:
            raise no_store(what, f"there are {meta['size']} bytes, not the {size} that were just written")
        return version_of(meta)

    def _patient_store(self) -> Any:
        return self._store_for(True, self.checked)

    def _store_for(self, patient: bool, checksums: bool) -> Any:
        with self._lock:
            store = self._stores.get((patient, checksums))
            if store is None:
                store = self._stores[patient, checksums] = self._open(patient, checksums)
            return store

    def _failure(self, exc: Exception, what: str, *, bucket_level: bool = False) -> StoreError:
        if isinstance(exc, StoreError):
            return exc
        if isinstance(exc, InvalidPathError):
            raise exc  # the driver turns to another way
        return obstore_failure(exc, self._family, what, bucket_level=bucket_level)
