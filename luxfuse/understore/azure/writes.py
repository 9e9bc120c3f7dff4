"""Writes to Azure Blob Storage through the service client that adlfs holds.

A multipart upload is a list of uncommitted blocks of the blob. The service keeps no record of it beside these: they are
forgotten after a week, or when the blob is written otherwise. So an upload's id holds the metadata that the list is
committed with, and there is nothing to abort.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobBlock, ContentSettings, StandardBlobTier
from fsspec.asyn import sync

from luxfuse.errors import StoreError, StoreRejected, StoreUnavailable
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, Abilities
from luxfuse.understore.library_failures import failure
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.object_options import ObjectOptions
from luxfuse.understore.properties import HEADERS, Properties, type_for
from luxfuse.understore.times import to_ns
from luxfuse.understore.whole_files import put_in_parts

ABILITIES = Abilities(metadata=True, conditional=True, multipart=True, part_copy=False, hierarchical=False, in_order=True)
DELETES_AT_ONCE = 32
LARGE_BYTES = 1 << 20
"""The service client gives `upload_blob` of more to aiohttp in one piece, which blocks fsspec's event loop."""

COPY_POLL_S = 0.5
COPY_LIMIT_S = 600.0


class AzureWrites:
    """The writing half of `AzureDriver`."""

    _fs: Any
    _container: Any
    _prefix: str
    _options: dict[str, Any]
    _objects: ObjectOptions

    @property
    def abilities(self) -> Abilities:
        return ABILITIES

    def _walk(self, prefix: str, what: str, *, delimiter: str | None, per_page: int) -> Iterator[list[Any]]:
        raise NotImplementedError

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        what = f"HEAD {key!r}"
        found = self._run(what, self._blob(key).get_blob_properties)
        settings = found.content_settings
        headers = {name: getattr(settings, name.lower().replace("-", "_")) for name in HEADERS}
        tags = self._run(what, self._blob(key).get_blob_tags) if whole and found.tag_count else {}
        metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
        info = ObjectInfo(key, found.size, quoted(found.etag), to_ns(found.last_modified), metadata)
        tier = None if found.blob_tier_inferred or found.blob_tier == "Archive" else found.blob_tier
        return Properties(
            info, settings.content_type, {name: value for name, value in headers.items() if value}, tier, tags
        )

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        skip = len(self._prefix)
        for items in self._walk(prefix, f"LIST {prefix!r}", delimiter=None, per_page=PAGE_ENTRIES):
            if items:
                yield ListPage([
                    ObjectInfo(item["name"][skip:], item["size"], quoted(item["etag"]), to_ns(item["last_modified"]))
                    for item in items
                ])  # fmt: skip

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"PUT {key!r}"
        metadata = checked_metadata(metadata, what)
        if len(data) >= LARGE_BYTES:
            upload = self.begin_upload(key, metadata, keep=keep)
            info = self.complete_upload(key, upload, [(1, self.upload_part(key, upload, 1, data))], expect=expect)
            return ObjectInfo(key, len(data), info.version, info.mtime_ns, info.metadata)
        answer = self._run(
            what,
            self._blob(key).upload_blob,
            _body(data),
            length=len(data),
            overwrite=True,
            metadata=metadata,
            **self._described(_kept(key, keep)),
            **_condition(expect),
        )
        return ObjectInfo(key, len(data), quoted(answer["etag"]), to_ns(answer["last_modified"]), dict(metadata))

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        return put_in_parts(self, key, path, metadata, expect, keep)

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
        if source == target and metadata is not None:
            return self._replace_metadata(target, metadata, version if version is not None else expect, what)
        keep = keep or self.examine(source)
        arguments = _condition(expect)
        # A copy has metadata and headers of its source by itself.
        if tier := keep.storage_class or self._objects.storage_class:
            arguments["standard_blob_tier"] = StandardBlobTier(tier)
        if keep.tags:
            arguments["tags"] = dict(keep.tags)
        if version is not None:
            arguments |= {"source_etag": version, "source_match_condition": MatchConditions.IfNotModified}
        # Azure takes an empty dictionary for none, and then keeps the source's.
        clear = metadata == {}
        answer = self._run(
            what, self._blob(target).start_copy_from_url, self._blob(source).url, metadata=metadata or None, **arguments
        )
        answer = self._finished(target, answer, what)
        if keep.content_type and type_for(target, keep) != keep.content_type:
            settings = self._described(_kept(target, keep))["content_settings"]
            answer = self._run(what, self._blob(target).set_http_headers, settings, **_condition(quoted(answer["etag"])))
        if clear:
            return self._replace_metadata(target, {}, quoted(answer["etag"]), what)
        kept = None if metadata is None else dict(metadata)
        return ObjectInfo(target, -1, quoted(answer["etag"]), to_ns(answer["last_modified"]), kept)

    def _finished(self, key: str, answer: dict[str, Any], what: str) -> dict[str, Any]:
        """Wait for a copy that the service makes in the background, as it may for large blobs."""
        limit_s = time.monotonic() + COPY_LIMIT_S
        while answer["copy_status"] == "pending":
            if time.monotonic() > limit_s:
                raise StoreUnavailable(f"{what}: not done after {COPY_LIMIT_S:g} s")
            time.sleep(COPY_POLL_S)
            found = self._run(what, self._blob(key).get_blob_properties)
            answer = {"etag": found.etag, "last_modified": found.last_modified, "copy_status": found.copy.status}
        if answer["copy_status"] != "success":
            raise StoreUnavailable(f"{what}: the service gave up")
        return answer

    def _replace_metadata(self, key: str, metadata: Mapping[str, str], version: str | None, what: str) -> ObjectInfo:
        answer = self._run(what, self._blob(key).set_blob_metadata, dict(metadata), **_condition(version))
        return ObjectInfo(key, -1, quoted(answer["etag"]), to_ns(answer["last_modified"]), dict(metadata))

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        slots = asyncio.Semaphore(DELETES_AT_ONCE)

        async def delete(key: str) -> StoreError | None:
            async with slots:
                try:
                    await self._blob(key).delete_blob(delete_snapshots="include", **self._options)
                except ResourceNotFoundError:
                    return None
                except Exception as exc:  # noqa: BLE001
                    return failure(exc, f"DELETE {key!r}", "az")
            return None

        async def delete_all() -> list[StoreError | None]:
            return await asyncio.gather(*map(delete, keys))

        errors = sync(self._fs.loop, delete_all)
        if len(keys) == 1 and errors[0] is not None:
            raise errors[0] from None
        return {key: error for key, error in zip(keys, errors, strict=True) if error is not None}

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        record = [secrets.token_hex(8), checked_metadata(metadata, f"BEGIN {key!r}"), _kept(key, keep)]
        return base64.urlsafe_b64encode(json.dumps(record, separators=(",", ":")).encode()).decode()

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        what = f"PUT {key!r} part {number}"
        # All block ids of a blob must have one length, those of other uploads too. Each try has a block of its own, so
        # that one that is overtaken by its repetition changes nothing.
        block = f"{_record(upload, what)[0]}-{number:05d}-{os.urandom(4).hex()}"
        self._run(what, self._blob(key).stage_block, block, _body(data), length=len(data))
        return block

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        raise StoreRejected(f"COPY {source!r} to {key!r} part {number}: this store copies no parts")

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        what = f"COMPLETE {key!r}"
        _, metadata, kept = _record(upload, what)
        answer = self._run(
            what,
            self._blob(key).commit_block_list,
            [BlobBlock(block_id=block) for _, block in parts],
            metadata=metadata,
            **self._described(kept),
            **_condition(expect),
        )
        return ObjectInfo(key, -1, quoted(answer["etag"]), to_ns(answer["last_modified"]), metadata)

    def abort_upload(self, key: str, upload: str) -> None:
        _record(upload, f"ABORT {key!r}")

    def close(self) -> None:
        raise NotImplementedError

    def _described(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a request that writes a blob, about its properties."""
        arguments: dict[str, Any] = {"content_settings": ContentSettings(**kept["headers"])}
        if tier := kept["tier"] or self._objects.storage_class:
            arguments["standard_blob_tier"] = StandardBlobTier(tier)
        return arguments | {"tags": kept["tags"]} if kept["tags"] else arguments

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(self._prefix + key)

    def _run(self, what: str, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return sync(self._fs.loop, function, *arguments, **named, **self._options)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, "az") from None


def _body(data: Buffer) -> io.BytesIO:
    """Return ``data`` as aiohttp likes to send it: in pieces, so that the event loop is not held up."""
    return io.BytesIO(data if isinstance(data, bytes) else bytes(data))


def _condition(expect: str | None) -> dict[str, Any]:
    if expect is None:
        return {}
    if expect == ABSENT:
        return {"match_condition": MatchConditions.IfMissing}
    return {"etag": expect, "match_condition": MatchConditions.IfNotModified}


def _kept(key: str, keep: Properties | None) -> dict[str, Any]:
    """Return the properties that a new blob gets of the one that it replaces, in a form that JSON can hold."""
    headers = {name.lower().replace("-", "_"): value for name, value in (keep.headers if keep else {}).items()}
    headers["content_type"] = type_for(key, keep)
    return {"headers": headers, "tier": keep and keep.storage_class, "tags": dict(keep.tags) if keep else {}}


def _record(upload: str, what: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    try:
        identity, metadata, kept = json.loads(base64.urlsafe_b64decode(upload))
    except ValueError:
        raise StoreRejected(f"{what}: no such upload id") from None
    return identity, metadata, kept


def quoted(etag: str) -> str:
    """Return ``etag`` with its quotes: listings give it without, headers with them."""
    return etag if etag.endswith('"') else f'"{etag}"'
