"""The obstore driver: obstore for reads and whole objects, and for each family a driver that fills obstore's gaps.

S3 has `S3Client` (copies, multipart uploads, bulk deletes, exact listings), Azure the driver on adlfs if that is installed.
Keys that obstore cannot name go there too, and for Google to the driver on gcsfs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from obstore.exceptions import InvalidPathError

from luxfuse.errors import NotFound, StoreError, StoreRejected
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.azure.gets import open_gets as open_azure_gets
from luxfuse.understore.base import Abilities, ListedPart, ListsFromKeys, OnDescribed, UnderStore, WriteSide
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.delegated import DelegatedWrites
from luxfuse.understore.gets.client import FetchesByGets, Gets, read_by
from luxfuse.understore.locations import has_odd_segment, parse_location
from luxfuse.understore.object_options import NO_CHECKSUM, take_object_options
from luxfuse.understore.obstore.options import OWN_CHECKSUMS, azure_settings, open_store
from luxfuse.understore.obstore.reads import ObstoreReads
from luxfuse.understore.obstore.writes import NeedsMd5, ObstoreWrites
from luxfuse.understore.properties import Properties
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.arguments import s3_arguments
from luxfuse.understore.s3.client import S3Client
from luxfuse.understore.s3.direct import open_direct
from luxfuse.understore.s3.native import NativeTransport
from luxfuse.understore.s3.small_puts import DirectPuts
from luxfuse.understore.s3.transport import Transport
from luxfuse.understore.small_puts import PutAnswer, SmallPut, Tell
from luxfuse.understore.variables import variables

MARKERS_AT_ONCE = 16


class ObstoreDriver(FetchesByGets, DelegatedWrites, ObstoreReads):
    """An `UnderStore` on obstore. ``fallback`` opens the driver for keys that obstore cannot name, if that is not S3's.

    ``access``, for S3: shared by all clients of the bucket. ``direct_gets``: so many requests for small files may be made
    past obstore at once, where that can be done; 0: and no others past it, either.
    """

    def __init__(
        self,
        source: str,
        *,
        endpoint_url: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        request_timeout_s: float = 30.0,
        fallback: Callable[[], UnderStore],
        access: S3Access | None = None,
        direct_gets: int = 0,
    ) -> None:
        location, options = parse_location(source), storage_options or {}
        objects = take_object_options(location.family, options, endpoint_url)[0]

        def open_s3_client() -> UnderStore:
            arguments = partial(s3_arguments, location.bucket, options, endpoint_url, request_timeout_s, access)

            def open_botocore(checksums: Checksums) -> Transport:
                from luxfuse.understore.s3.botocore import BotocoreTransport

                return BotocoreTransport(arguments(), checksums)

            def open_native(checksums: Checksums) -> Transport:
                assert direct is not None
                return NativeTransport(direct, checksums, partial(open_botocore, checksums))

            if direct is not None:  # else there may be further parameters of all objects, among others
                return S3Client(location.bucket, location.prefix, open_native, objects)
            given = arguments().get("s3_additional_kwargs")
            return S3Client(location.bucket, location.prefix, open_botocore, objects, given)

        direct = open_direct(location, options, objects, access, request_timeout_s, direct_gets) if access else None
        self._gets: Gets | None = direct
        """The reads in C, of S3 and Azure; ``direct`` can do more."""
        if location.family == "az":
            settings, reach = azure_settings(location, endpoint_url, options)
            self._gets = open_azure_gets(location, settings, variables(), reach, request_timeout_s, direct_gets)
        self._direct_puts = None if direct is None else DirectPuts(direct, location.prefix, objects)

        super().__init__(
            source,
            endpoint_url=endpoint_url,
            storage_options=storage_options,
            request_timeout_s=request_timeout_s,
            fallback=open_s3_client if location.family == "s3" else fallback,
            access=access,
            direct=direct,
        )

        def open_for_writes(patient: bool, checksums: bool) -> Any:
            return open_store(
                location,
                endpoint_url,
                options,
                request_timeout_s,
                patient=patient,
                writes=True,
                checksums=checksums,
                access=access,
            )

        self._own = ObstoreWrites(self._store, open_for_writes, self._family, objects)

        self._elsewhere = self._family == "s3" and objects.checksum not in (*OWN_CHECKSUMS, NO_CHECKSUM)
        """Whether whole objects are put by `S3Client`, because obstore cannot send their headers."""
        self._adlfs = self._azure and importlib.util.find_spec("adlfs") is not None
        self._abilities: Abilities | None = None

    @property
    def abilities(self) -> Abilities:
        s3 = self._fallback_driver if self._family == "s3" else None
        conditional = self._own.conditional and (s3 is None or s3.abilities.conditional)
        # To open S3's client takes long: the first listing does without, where it is not asked for in C.
        start_after = s3 is not None or self._direct is not None
        known = self._abilities
        if known is None or (known.conditional, known.start_after) != (conditional, start_after):
            known = self._abilities = dataclasses.replace(
                self._own.abilities,
                conditional=conditional,
                multipart=self._family == "s3" or self._adlfs,
                part_copy=self._family == "s3",
                start_after=start_after,
            )
        return known

    @property
    def puts_small(self) -> bool:
        puts = self._direct_puts
        return puts is not None and not self._elsewhere and not puts.given_up

    def put_small(self, puts: Sequence[SmallPut], tell: Tell) -> None:
        direct = self._direct_puts
        if direct is not None and not self._elsewhere:
            conditional = self._own.conditional

            def told(answers: Sequence[tuple[int, PutAnswer]]) -> None:
                for number, answer in answers:
                    if conditional and answer.info is not None:
                        self._own.met(puts[number].expect)
                tell(answers)

            direct.put(puts, told, conditional=conditional, checked=self._own.checked)

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        part = read_by(self._gets, key, start, end, version, on_described)
        return super().read(key, start, end, version, on_described=on_described) if part is None else part

    def close(self) -> None:
        self._direct = self._gets = self._direct_puts = None
        super().close()

    def _writer(self) -> WriteSide:
        return self._fallback() if self._adlfs or self._family == "s3" else self._own

    def _writer_for(self, *keys: str) -> WriteSide:
        """Return the write side that can name ``keys`` and makes the requests that obstore has no call for."""
        writer = self._writer()
        return self._fallback() if writer is self._own and any(map(has_odd_segment, keys)) else writer

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        return self._writer_for(key).examine(key, whole=whole)

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        odd = has_odd_segment(key) or (expect not in (None, ABSENT) and expect[:1] != '"')
        if self._elsewhere or odd or (keep is not None and keep.own):
            return self._writer_for(key).put(key, data, metadata, expect=expect, keep=keep)
        try:
            return self._own.put(key, data, metadata, expect=expect, keep=keep)
        except InvalidPathError:
            pass
        except NeedsMd5:
            self._elsewhere = True
        return self._writer_for(key).put(key, data, metadata, expect=expect, keep=keep)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        return self._writer_for(key).put_file(key, path, metadata, expect=expect, keep=keep)

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
        writer = self._writer_for(source, target)
        return writer.copy(source, target, version=version, metadata=metadata, expect=expect, size=size, keep=keep)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        if self._family == "s3":  # obstore makes a bulk request even for one key, and tells only of its first failure
            return self._writer().delete(keys)
        plain = [key for key in keys if not has_odd_segment(key)]
        failures = self._own.delete(plain) if plain else {}
        if odd := [key for key in keys if has_odd_segment(key)]:
            failures |= self._writer_for(*odd).delete(odd)
        return failures

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        direct = self._direct
        part = direct.list_page(prefix, after, token) if direct is not None else None
        return cast(ListsFromKeys, self._fallback()).list_page(prefix, after, token) if part is None else part

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        writer = self._writer_for(prefix[:-1] or "root")
        if writer is not self._own:
            yield from writer.list_all(prefix)
            return
        try:
            pages = list(self._own.list_all(prefix))
        except InvalidPathError:
            yield from self._fallback().list_all(prefix)
            return
        if not pages:
            self._require_store(f"LIST {prefix!r}")
        yield from pages if self._family != "gs" else map(self._with_known_markers, pages)

    def _with_known_markers(self, page: ListPage) -> ListPage:
        """Return a page in which markers have the versions of the driver that can name them, for which ETags are none."""
        markers = [info for info in page.objects if info.key.endswith("/")]
        with ThreadPoolExecutor(MARKERS_AT_ONCE) as pool:
            known = dict(zip((info.key for info in markers), pool.map(self._known, markers), strict=True))
        return ListPage([found for info in page.objects if (found := known.get(info.key, info)) is not None])

    def _known(self, info: ObjectInfo) -> ObjectInfo | None:
        try:
            other = self._fallback()
        except StoreRejected:  # there is no such driver
            return info
        try:
            return other.head(info.key)
        except NotFound:  # it has gone meanwhile
            return None
