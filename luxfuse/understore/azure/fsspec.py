"""Azure Blob Storage through the service client that adlfs holds: exact names, page-wise listings, If-Match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
from azure.core import MatchConditions
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import BlobServiceClient
from fsspec.asyn import sync

from luxfuse.errors import ConfigError, NotFound, VersionChanged
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.azure.writes import AzureWrites, quoted
from luxfuse.understore.base import PAGE_ENTRIES, OnDescribed
from luxfuse.understore.failures import checked
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.library_failures import failure
from luxfuse.understore.object_options import NO_OPTIONS, ObjectOptions
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reach, said
from luxfuse.understore.times import to_ns
from luxfuse.understore.trust import Authorities
from luxfuse.understore.variables import variables


class AzureDriver(AzureWrites, FsspecDriver):
    """An `UnderStore` on adlfs."""

    def __init__(
        self,
        filesystem: Any,
        root: str,
        options: Mapping[str, str],
        *,
        request_timeout_s: float = 30.0,
        objects: ObjectOptions = NO_OPTIONS,
    ) -> None:
        """``options``: the storage options. Raises `ConfigError` for certificates or a proxy that cannot be used."""
        filesystem.service_client = _reaching(filesystem.service_client, options)
        super().__init__(filesystem, root, family="az", request_timeout_s=request_timeout_s)
        self._objects = objects
        container, _, prefix = self._root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._container = filesystem.service_client.get_container_client(container)
        # Retries are made above the drivers.
        self._options = {
            "retry_total": 0,
            "connection_timeout": min(CONNECT_TIMEOUT_S, request_timeout_s),
            "read_timeout": min(READ_TIMEOUT_S, request_timeout_s),
        }

    def probe(self) -> None:
        next(self._walk("", "LIST ''", delimiter=None, per_page=1), None)

    def head(self, key: str) -> ObjectInfo:
        what = f"HEAD {key!r}"
        blob = self._container.get_blob_client(self._prefix + key)
        try:
            found = sync(self._fs.loop, blob.get_blob_properties, **self._options)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family) from None
        info = _describe(key, found)
        if (info.metadata or {}).get("hdi_isfolder") == "true":
            raise NotFound(f"{what}: is a directory")
        return info

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        full, skip = self._prefix + prefix, len(self._prefix)
        found = False
        for items in self._walk(prefix, f"LIST {prefix!r}", delimiter="/", per_page=PAGE_ENTRIES):
            if items or (not prefix and not found):
                found = True
                page = ListPage()
                for item in items:
                    if "size" not in item or item.get("etag") is None:  # a BlobPrefix
                        page.prefixes.append(item["name"][skip:])
                    elif item["name"] != full:
                        name, mtime_ns = item["name"][skip:], to_ns(item["last_modified"])
                        page.objects.append(ObjectInfo(name, item["size"], quoted(item["etag"]), mtime_ns))
                yield page

    def has_prefix(self, prefix: str) -> bool:
        pages = self._walk(prefix, f"LIST {prefix!r}", delimiter=None, per_page=1)
        return any(pages)

    def _walk(self, prefix: str, what: str, *, delimiter: str | None, per_page: int) -> Iterator[list[Any]]:
        """Yield the items of each page of a listing, flat if ``delimiter`` is None."""
        arguments = {"name_starts_with": self._prefix + prefix, "results_per_page": per_page, **self._options}
        if delimiter:
            items = self._container.walk_blobs(delimiter=delimiter, **arguments)
        else:
            items = self._container.list_blobs(**arguments)
        pager = items.by_page()

        async def next_page() -> list[Any] | None:
            try:
                return [item async for item in await anext(pager)]
            except StopAsyncIteration:
                return None

        while True:
            try:
                page: list[Any] | None = sync(self._fs.loop, next_page)
            except Exception as exc:  # noqa: BLE001
                raise failure(exc, what, self._family, bucket_level=True) from None
            if page is None:
                return
            yield page

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        if start == end:
            return b""
        what = f"GET {key!r} [{start}, {end})"
        blob = self._container.get_blob_client(self._prefix + key)

        async def fetch() -> tuple[bytes, ObjectInfo]:
            stream = await blob.download_blob(
                offset=start,
                length=end - start,
                etag=version,
                match_condition=MatchConditions.IfNotModified,
                decompress=False,
                **self._options,
            )
            properties = stream.properties
            properties.size = int(properties.content_range.rpartition("/")[2])  # else it is that of the range
            return await stream.readall(), _describe(key, properties)

        try:
            data, found = sync(self._fs.loop, fetch)
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, what, self._family)
            if isinstance(error, VersionChanged):
                self.head(key)  # Azure answers 412 for a blob that is gone, too
            raise error from None
        data = checked(data, end - start, found.version, version, what)
        if on_described is not None:
            on_described(found)
        return data

    def close(self) -> None:
        """Close the connections on fsspec's own event loop."""
        sync(self._fs.loop, self._fs.service_client.close)
        FsspecDriver.close(self)


def _describe(key: str, found: Any) -> ObjectInfo:
    metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
    return ObjectInfo(key, found.size, quoted(found.etag), to_ns(found.last_modified), metadata)


class _Transport(AioHttpTransport):  # type: ignore[misc]
    """A transport that reads the certificates that it believes once. Azure's own would read a bundle for each request."""

    def __init__(self, trust: Authorities) -> None:
        super().__init__(use_env_settings=False, connection_verify=True)  # which leaves it to the session
        self._context = trust.ssl_context()

    async def open(self) -> None:
        """Open the session, in the event loop that uses it."""
        if not self.session and not self._has_been_opened:  # type: ignore[has-type]
            connector = aiohttp.TCPConnector(ssl=self._context)
            jar = aiohttp.DummyCookieJar()
            self.session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False)
        await super().open()


def _reaching(service: Any, options: Mapping[str, str]) -> Any:
    """Return a client like ``service`` with the certificates and proxy of the options; adlfs can make none."""
    reach = Reach.of((service.url,), options, variables())
    if (named := said(options)) and hasattr(service.credential, "get_token"):
        raise ConfigError(f"storage option {named[0]}: the driver fsspec fetches tokens of az:// without heeding it; use "
                          "the driver obstore, or set SSL_CERT_FILE or HTTPS_PROXY")  # fmt: skip
    return BlobServiceClient(
        service.url,
        credential=service.credential,
        transport=_Transport(reach.trust),
        proxies=reach.proxies() or None,
    )
