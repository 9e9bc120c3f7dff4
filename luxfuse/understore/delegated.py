"""Write sides of another object, of no multipart uploads, or of a store that takes no writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from luxfuse.errors import ReadOnlyStore, StoreError, StoreRejected
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import Abilities, WriteSide
from luxfuse.understore.properties import Properties


class DelegatedWrites:
    """The write side of a driver that leaves it to another object, which is made when it is first needed."""

    def _writer(self) -> WriteSide:
        raise NotImplementedError

    @property
    def abilities(self) -> Abilities:
        return self._writer().abilities

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        return self._writer().list_all(prefix)

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        return self._writer().examine(key, whole=whole)

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        return self._writer().put(key, data, metadata, expect=expect, keep=keep)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        return self._writer().put_file(key, path, metadata, expect=expect, keep=keep)

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
        return self._writer().copy(source, target, version=version, metadata=metadata, expect=expect, size=size, keep=keep)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        return self._writer().delete(keys)

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        return self._writer().begin_upload(key, metadata, keep=keep)

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        return self._writer().upload_part(key, upload, number, data)

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        return self._writer().copy_part(key, upload, number, source, version, start, end)

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        return self._writer().complete_upload(key, upload, parts, expect=expect)

    def abort_upload(self, key: str, upload: str) -> None:
        self._writer().abort_upload(key, upload)


class NoMultipart:
    """The methods of multipart uploads for a store that has none."""

    def begin_upload(self, key: str, metadata: Mapping[str, str], *, keep: Properties | None = None) -> str:
        raise StoreRejected(f"BEGIN {key!r}: this store has no multipart uploads")

    def upload_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        raise StoreRejected(f"PUT {key!r} part {number}: this store has no multipart uploads")

    def copy_part(self, key: str, upload: str, number: int, source: str, version: str | None, start: int, end: int) -> str:
        raise StoreRejected(f"COPY {source!r} to {key!r} part {number}: this store copies no parts")

    def complete_upload(
        self, key: str, upload: str, parts: Sequence[tuple[int, str]], *, expect: str | None = None
    ) -> ObjectInfo:
        raise StoreRejected(f"COMPLETE {key!r}: this store has no multipart uploads")

    def abort_upload(self, key: str, upload: str) -> None:
        raise StoreRejected(f"ABORT {key!r}: this store has no multipart uploads")


class ReadOnlyWrites(NoMultipart):
    """The write side of a store that cannot be written to."""

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            metadata=False, conditional=False, multipart=False, part_copy=False, hierarchical=True, writable=False
        )

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        raise _read_only(f"PUT {key!r}")

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        raise _read_only(f"PUT {key!r}")

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
        raise _read_only(f"COPY {source!r} to {target!r}")

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        raise _read_only(f"DELETE of {len(keys)} keys")


def _read_only(what: str) -> ReadOnlyStore:
    return ReadOnlyStore(f"{what}: this store cannot be written to")
