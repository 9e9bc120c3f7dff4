"""An S3 store in the names of boto's requests, over either `Transport`: every request, and exact keys."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luxfuse.core.vain import Pause
from luxfuse.errors import NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT, Buffer, ObjectInfo
from luxfuse.understore.base import Abilities
from luxfuse.understore.causes import Said
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.conditions import Conditions
from luxfuse.understore.failures import from_status, require_version
from luxfuse.understore.library_failures import failure, status_of
from luxfuse.understore.locations import CONTROL
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.object_options import NO_OPTIONS, ObjectOptions
from luxfuse.understore.properties import Properties, type_for
from luxfuse.understore.s3.answers import Answered
from luxfuse.understore.s3.properties import beside, described, for_new
from luxfuse.understore.s3.reads import S3Reads
from luxfuse.understore.s3.requests import Requests
from luxfuse.understore.s3.transport import Body, Transport
from luxfuse.understore.times import to_ns
from luxfuse.understore.whole_files import in_parts, put_in_parts

log = logging.getLogger(__name__)

SINGLE_COPY_BYTES = 1 << 30
"""Larger objects are copied in parts: S3 itself draws the line at 5 GiB, but takes long for that."""

COPIED_PART_BYTES = 256 << 20

NO_VERSION = '"no-such-version"'

OF_CEPH = "multipart completion is already in progress"
"""Says Ceph 16 of an upload that is gone, too, of which it then lists no parts as the key is not there."""

ABILITIES = Abilities(metadata=True, conditional=True, multipart=True, part_copy=True, hierarchical=False, start_after=True)
UNCONDITIONAL = dataclasses.replace(ABILITIES, conditional=False)


class S3Client(S3Reads):
    """An `UnderStore` of the keys below ``prefix`` in ``bucket``."""

    driver = "fsspec"

    def __init__(
        self,
        bucket: str,
        prefix: str,
        open_transport: Callable[[Checksums], Transport],
        objects: ObjectOptions = NO_OPTIONS,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        """Make no request. ``given``: further parameters, in boto's names, of the requests that create an object."""
        super().__init__(Requests(bucket, open_transport, objects, given or {}), prefix)
        self._bucket = bucket
        self._examiner = self._requests.examiner
        self._conditions = Conditions()
        self._matches_sources: bool | None = None
        self._parts_differ = Pause()
        """While it is on, the server does not compare the versions of sources that went up in parts."""

    @property
    def abilities(self) -> Abilities:
        """Everything but directories; conditions until the server turns out to have none."""
        return ABILITIES if self._conditions.are_made else UNCONDITIONAL

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        found = self._head(key)
        return self._examiner.properties(self._prefix + key, self._describe(key, found), found, whole=whole)

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
        arguments = {"Body": Body(data), "Metadata": metadata, **for_new(key, keep)}
        answer = self._as_expected("put_object", what, key, expect, arguments)
        return ObjectInfo(key, len(data), self._version(key, answer), 0, dict(metadata))

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
        if keep is None:
            keep = self.examine(source, whole=metadata is not None or size is None or size > SINGLE_COPY_BYTES)
            if metadata is None and keep.content_type and type_for(target, keep) != keep.content_type:
                metadata, keep = dict(keep.info.metadata or {}), self.examine(source)
        found = keep.info
        require_version(found.version, version, what)
        if found.size > SINGLE_COPY_BYTES:
            return self._copy_in_parts(source, target, metadata, expect, keep, what)
        arguments = beside(keep)
        if metadata is not None:
            arguments |= {"MetadataDirective": "REPLACE", "Metadata": metadata, **described(target, keep)}
        answer = self._copy_from("copy_object", what, source, found.version, target, expect, arguments, looked=True)
        answer = answer["CopyObjectResult"]
        if metadata is not None and keep.tags:
            self._examiner.restore_tags(self._prefix + target, keep.tags)
        mtime_ns = to_ns(answer["LastModified"]) if answer.get("LastModified") else 0
        return ObjectInfo(target, found.size, self._version(target, answer), mtime_ns, metadata)

    def _copy_in_parts(
        self,
        source: str,
        target: str,
        metadata: Mapping[str, str] | None,
        expect: str | None,
        keep: Properties,
        what: str,
    ) -> ObjectInfo:
        found = keep.info
        kept = dict(found.metadata or {}) if metadata is None else dict(metadata)
        upload = self._begin(target, kept, keep, what)

        def copy(number: int, start: int, end: int) -> str:
            return self.copy_part(target, upload, number, source, found.version, start, end)

        info = in_parts(self, target, upload, found.size, COPIED_PART_BYTES, copy, expect)
        return ObjectInfo(target, found.size, info.version, info.mtime_ns, kept)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        # XML cannot say control characters.
        single = keys if len(keys) == 1 else [key for key in keys if CONTROL.search(key)]
        for key in single:
            try:
                self._call("delete_object", f"DELETE {key!r}", Key=self._prefix + key)
            except NotFound:
                pass
            except StoreError as exc:
                if len(keys) == 1:
                    raise
                failures[key] = exc
        if not (many := [key for key in keys if key not in single]):
            return failures
        objects = [{"Key": self._prefix + key} for key in many]
        what = f"DELETE of {len(many)} keys"
        answer = self._call("delete_objects", what, Delete={"Objects": objects, "Quiet": True})
        for entry in answer.get("Errors", ()):
            code, key = entry.get("Code", ""), entry["Key"][len(self._prefix) :]
            if code != "NoSuchKey":
                failures[key] = from_status(
                    400, f"DELETE {key!r}", code=code, family="s3", said=Said(entry.get("Message", ""))
                )
        return failures

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        what = f"BEGIN {key!r}"
        return self._begin(key, checked_metadata(metadata, what), keep, what)

    def _begin(self, key: str, metadata: Mapping[str, str], keep: Properties | None, what: str) -> str:
        arguments = {"Metadata": metadata, **for_new(key, keep)}
        answer = self._call("create_multipart_upload", what, Key=self._prefix + key, **arguments)
        upload: str = answer["UploadId"]
        return upload

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        answer = self._call(
            "upload_part",
            f"PUT {key!r} part {number}",
            Key=self._prefix + key,
            UploadId=upload,
            PartNumber=number,
            Body=Body(data),
        )
        tag: str = answer["ETag"]
        return tag

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        what = f"COPY {source!r} [{start}, {end}) to {key!r} part {number}"
        arguments = {"UploadId": upload, "PartNumber": number, "CopySourceRange": f"bytes={start}-{end - 1}"}
        answer = self._copy_from("upload_part_copy", what, source, version, key, None, arguments)
        if version is not None and not self._matches(version):
            self._require(source, version, what)
        tag: str = answer["CopyPartResult"]["ETag"]
        return tag

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        what = f"COMPLETE {key!r}"
        listed = [{"PartNumber": number, "ETag": tag} for number, tag in parts]
        arguments = {"UploadId": upload, "MultipartUpload": {"Parts": listed}}
        try:
            answer = self._as_expected("complete_multipart_upload", what, key, expect, arguments)
        except StoreUnavailable as exc:
            # Some servers answer 500 for an upload that is gone, and would for ever.
            self._require_open(key, upload, what, ("NoSuchUpload", *(["NoSuchKey"] if OF_CEPH in str(exc) else [])))
            raise
        return ObjectInfo(key, -1, self._version(key, answer), 0)

    def _as_expected(
        self, method: str, what: str, key: str, expect: str | None, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write ``key`` if that is as expected; without the condition at a server that refuses any."""

        def write(given: str | None) -> dict[str, Any]:
            return self._conditionally(method, what, key, given, **arguments)

        return self._conditions.write(method, expect, write, lambda version: self._is(key, version))

    def _is(self, key: str, expect: str) -> bool:
        """Whether ``key`` holds the version, or nothing for `ABSENT`."""
        try:
            return self.head(key).version == expect
        except NotFound:
            return expect == ABSENT

    def _require_open(self, key: str, upload: str, what: str, gone: Sequence[str]) -> None:
        """Raise `NotFound` if the store says that an upload is gone; one that cannot list parts says something else."""
        try:
            self._call("list_parts", what, Key=self._prefix + key, UploadId=upload, MaxParts=1)
        except StoreError as exc:
            if exc.code in gone:
                raise

    def abort_upload(self, key: str, upload: str) -> None:
        try:
            self._call("abort_multipart_upload", f"ABORT {key!r}", Key=self._prefix + key, UploadId=upload)
        except NotFound:
            pass

    def close(self) -> None:
        """Free connections."""
        self._requests.close()

    def _copy_from(
        self,
        method: str,
        what: str,
        source: str,
        version: str | None,
        key: str,
        expect: str | None,
        arguments: Mapping[str, Any],
        *,
        looked: bool = False,
    ) -> dict[str, Any]:
        """Make a request that copies ``source`` if that is ``version``; ``looked``: a HEAD has just said that it is.

        Some servers (Ceph's is one) ignore the condition. A first copy with a version that cannot be tells; as such a
        server makes it, its outcome is that of the copy: where the source is the target, it may be a new version.
        """
        arguments = {**arguments, "CopySource": {"Bucket": self._bucket, "Key": self._prefix + source}}
        if version is None:
            return self._conditionally(method, what, key, expect, **arguments)
        comparable = version.startswith('"')
        probing = comparable and self._matches_sources is None and expect is None
        if not looked and (probing or not self._matches(version)):
            self._require(source, version, what)
        if probing:
            try:
                answer = self._conditionally(method, what, key, None, **arguments, CopySourceIfMatch=NO_VERSION)
            except VersionChanged:
                self._matches_sources = True
            else:
                self._matches_sources = False
                return answer
        if not comparable or self._is_of_odd_parts(version):
            return self._conditionally(method, what, key, expect, **arguments)
        for _ in range(2):
            try:
                answer = self._conditionally(method, what, key, expect, **arguments, CopySourceIfMatch=version)
            except VersionChanged as exc:
                refused = exc.code == "PreconditionFailed" and _of_parts(version) and self._is(source, version)
                if not refused or not (expect is None or self._is(key, expect)):
                    raise
            else:
                if _of_parts(version):
                    self._parts_differ.end()
                return answer
        # Swift's S3 layer compares another ETag of what went up in parts than it tells; see `_complete`.
        if self._parts_differ.note(time.monotonic()):
            log.info("the store does not compare versions of what went up in parts; for a while it is not asked to")
        return self._conditionally(method, what, key, expect, **arguments)

    def _matches(self, version: str) -> bool:
        """Whether the server is known to compare the version of a source by itself."""
        return version.startswith('"') and bool(self._matches_sources) and not self._is_of_odd_parts(version)

    def _is_of_odd_parts(self, version: str) -> bool:
        """Whether it is a version of parts, and the server does not compare these."""
        return _of_parts(version) and self._parts_differ.is_on(time.monotonic())

    def _conditionally(self, method: str, what: str, key: str, expect: str | None, **arguments: Any) -> dict[str, Any]:
        """Make a request that writes ``key`` if that is as expected."""
        condition: dict[str, str] = {}
        if expect is not None and self._conditions.are_made:
            if expect == ABSENT:
                condition = {"IfNoneMatch": "*"}
            elif expect.startswith('"'):
                condition = {"IfMatch": expect}
            else:
                self._require(key, expect, what)
        try:
            answer = Answered(self._requests.attempt(method, Key=self._prefix + key, **condition, **arguments), what)
        except Exception as exc:  # noqa: BLE001
            status, code = status_of(exc)
            if condition and (status == 501 or code == "NotImplemented"):
                if method == "copy_object":  # that it knows none of copies says nothing of other writes
                    self._require(key, expect or ABSENT, what)
                else:
                    self._conditions.end()
                return self._call(method, what, Key=self._prefix + key, **arguments)
            if condition and status == 404 and code in ("", "NoSuchKey"):
                raise VersionChanged(f"{what}: the object is gone") from None
            raise failure(exc, what, "s3") from None
        if condition:
            self._conditions.met(method, expect)
        return answer

    def _require(self, key: str, version: str, what: str) -> None:
        """Compare a version where the server cannot do it: it is no ETag, or the server knows no such condition."""
        try:
            found = self.head(key).version
        except NotFound:
            if version != ABSENT:
                raise
            found = ABSENT
        require_version(found, version, what)

    def _version(self, key: str, answer: Mapping[str, Any]) -> str:
        etag: str = answer.get("ETag") or ""
        if not etag:
            try:
                return self.head(key).version
            except NotFound:
                raise StoreUnavailable(f"{key!r}: 200 OK, but the object is not there") from None
        return etag if etag.endswith('"') else f'"{etag}"'


def _of_parts(version: str) -> bool:
    """Whether it is the ETag of an object that went up in parts."""
    return version.startswith('"') and "-" in version
