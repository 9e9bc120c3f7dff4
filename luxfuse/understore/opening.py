"""Opens the best driver on fsspec for a source: its arguments, its file system, its class."""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from luxfuse.core.urls import url_fault
from luxfuse.core.values import nearest
from luxfuse.errors import ConfigError, NotFound, StoreError, StoreRejected, StoreUnavailable
from luxfuse.understore import object_options
from luxfuse.understore.azure.arguments import TRANSLATED as AZURE_OPTIONS
from luxfuse.understore.azure.arguments import azure_arguments
from luxfuse.understore.base import UnderStore
from luxfuse.understore.failures import safe_url
from luxfuse.understore.gcs.arguments import check_token
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.generic.known import refuse_unknown
from luxfuse.understore.generic.pool import without_listings
from luxfuse.understore.generic.values import convert
from luxfuse.understore.http.arguments import http_arguments, webdav_arguments
from luxfuse.understore.library_failures import failure
from luxfuse.understore.locations import HDFS, family_of, parse_location
from luxfuse.understore.object_options import take_object_options
from luxfuse.understore.reach import OPTIONS as REACH_OPTIONS
from luxfuse.understore.reach import READ_TIMEOUT_S, TRUST_OPTIONS
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.arguments import TRANSLATED as S3_OPTIONS
from luxfuse.understore.s3.arguments import s3_arguments
from luxfuse.understore.s3.sessions import aio_session_for

_WITH_HOST = ("http://", "https://", "sftp://", "ssh://", "ftp://", "smb://", "webhdfs://")
_WEBDAV = ("webdav://", "dav://")
_SFTP = ("sftp://", "ssh://")
_HTTP = ("http://", "https://")
_FTP = "ftp://"
_PACKAGES = {"adlfs": "luxfuse[azure]", "gcsfs": "luxfuse[gcs]", "s3fs": "s3fs", "aiohttp": "aiohttp",
             "webdav4": "luxfuse[webdav]", "paramiko": "luxfuse[sftp]"}  # fmt: skip
_MODULES = {"s3": "s3fs", "az": "adlfs", "gs": "gcsfs"}


def open_fsspec(
    source: str,
    *,
    endpoint_url: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    request_timeout_s: float = 30.0,
    access: S3Access | None = None,
    direct_gets: int = 0,
) -> UnderStore:
    """Open the best driver on fsspec for ``source``; ``access``, for S3, is shared with other clients.

    ``direct_gets``, for Google: so many requests for content may be made in C at once.

    Raises `ConfigError`, or `StoreError` if connecting fails.
    """
    require_root(source)
    if source.startswith(HDFS):
        from luxfuse.understore.hdfs.arguments import open_hdfs

        return open_hdfs(source, endpoint_url, storage_options or {}, request_timeout_s)
    filesystem, root = open_filesystem(source, endpoint_url, storage_options or {}, request_timeout_s, access)
    family = family_of(source) or ""
    if family == "s3":
        from luxfuse.understore.s3.client import S3Client
        from luxfuse.understore.s3.fsspec import S3fsTransport

        location = parse_location(source)
        objects = take_object_options(family, storage_options or {}, endpoint_url)[0]
        open_transport = partial(S3fsTransport, filesystem)
        return S3Client(location.bucket, location.prefix, open_transport, objects, filesystem.s3_additional_kwargs)
    if family == "az":
        from luxfuse.understore.azure.fsspec import AzureDriver

        objects = take_object_options(family, storage_options or {})[0]
        return AzureDriver(filesystem, root, storage_options or {}, request_timeout_s=request_timeout_s, objects=objects)
    if family == "gs":
        from luxfuse.understore.gcs.fsspec import GcsDriver

        return GcsDriver(
            filesystem, root, storage_options or {}, request_timeout_s=request_timeout_s, direct_gets=direct_gets
        )
    return _by_class(filesystem, root, request_timeout_s)


def _by_class(filesystem: Any, root: str, request_timeout_s: float) -> FsspecDriver:
    match type(filesystem).__name__:
        case "HTTPFileSystem":
            from luxfuse.understore.http.fsspec import HttpDriver

            return HttpDriver(filesystem, root, request_timeout_s=request_timeout_s)
        case "KnownSFTPFileSystem":
            from luxfuse.understore.sftp.fsspec import SftpDriver

            return SftpDriver(filesystem, root, request_timeout_s=request_timeout_s)
        case "WebdavFileSystem":
            from luxfuse.understore.http.webdav import Dav, WebDavDriver

            return WebDavDriver(Dav(filesystem), root, request_timeout_s=request_timeout_s)
        case "LocalFileSystem":
            from luxfuse.understore.local.fsspec import LocalDriver

            return LocalDriver(filesystem, root)
    return FsspecDriver(filesystem, root, request_timeout_s=request_timeout_s)


def require_root(source: str) -> None:
    """Raise `ConfigError` for a source that names nothing to mount."""
    if family_of(source):
        parse_location(source)
    elif not source or (source.endswith("://") and not source.startswith(_WEBDAV)):
        raise ConfigError(f"source {safe_url(source)!r}: names nothing; write PROTOCOL://PLACE/PATH")
    elif source.startswith(_WITH_HOST) and (fault := url_fault(source)):
        raise ConfigError(f"source {safe_url(source)!r}: {fault}; write PROTOCOL://HOST[:PORT]/PATH")


def knows_options(source: str, options: Mapping[str, str]) -> bool:
    """Whether the driver on fsspec heeds all ``options``."""
    try:
        refuse_unknown(source, family_of(source) or "", options, _translated(source), source.partition("://")[0])
    except ConfigError:
        return False
    return True


def open_filesystem(
    source: str,
    endpoint_url: str | None,
    options: Mapping[str, str],
    request_timeout_s: float,
    access: S3Access | None = None,
) -> tuple[Any, str]:
    """Return the file system and the root path in it.

    Raises `ConfigError` for an unknown protocol, a missing package or options that cannot be used.
    """
    shown = safe_url(source)
    protocol = source.partition("://")[0] if "://" in source else "file"
    if (module := _MODULES.get(family_of(source) or "")) and importlib.util.find_spec(module) is None:
        raise ConfigError(f"source {shown!r}: needs the package {module}; install it with: pip install "
                          f"'{_PACKAGES[module]}'")  # fmt: skip
    refuse_unknown(source, family_of(source) or "", options, _translated(source), protocol)
    arguments = _arguments(source, endpoint_url, options, request_timeout_s, access)
    try:
        schemes = re.findall(r"\w+://", source)  # of a chain, the inner ones, too
        if not set(_SFTP).isdisjoint(schemes):
            from luxfuse.understore.sftp import hosts as sftp_hosts

            sftp_hosts.use()
        if _FTP in schemes:
            from luxfuse.understore.generic import ftp_tls

            ftp_tls.use()
        filesystem, root = url_to_fs(source, skip_instance_cache=True, **arguments)
    except ImportError as exc:
        package = _PACKAGES.get(exc.name or "", exc.name)
        known = known_implementations.get(protocol, {}).get("err", str(exc))
        hint = f"install it with: pip install '{package}'" if package else known
        raise ConfigError(f"source {shown!r}: a package is missing; {hint}") from None
    except ssl.SSLError as exc:
        raise failure(exc, f"connecting to {shown}") from None
    except ValueError as exc:
        if protocol not in fsspec.available_protocols():
            hint = nearest(protocol, fsspec.available_protocols()) or "; see PROTOCOL:// in the documentation of fsspec"
            raise ConfigError(f"source {shown!r}: unknown protocol {protocol!r}{hint}") from None
        raise _refused(shown, exc, options) from None
    except TypeError as exc:
        raise _refused(shown, exc, options) from None
    except StoreError:
        raise
    except Exception as exc:  # noqa: BLE001
        # Some file systems (SFTP, WebDAV, HDFS) connect while they are made.
        error = failure(exc, f"connecting to {shown}", family_of(source) or "")
        if type(error) in (StoreUnavailable, StoreRejected, NotFound):
            raise type(error)(f"{error}; check the URL, and whether the server runs there") from None
        raise error from None
    return without_listings(filesystem), str(root)


def _refused(shown: str, exc: Exception, options: Mapping[str, str]) -> ConfigError:
    # The library's text may repeat values, keys among them, so only its kind and the names are shown.
    names = ", ".join(sorted(options)) or "none given"
    return ConfigError(f"source {shown!r}: cannot be opened ({type(exc).__name__}); check URL and storage options "
                       f"({names})")  # fmt: skip


def _translated(source: str) -> frozenset[str]:
    """Return the options that `_arguments` makes others of."""
    family = family_of(source) or ""
    objects = object_options.NAMES.get(family, frozenset())
    names = objects | {written for written, name in object_options.SYNONYMS.items() if name in objects}
    if family == "s3":
        return names | S3_OPTIONS
    if family == "az":
        return names | AZURE_OPTIONS
    if family == "gs" or source.startswith((*_HTTP, *_WEBDAV)):
        return names | REACH_OPTIONS
    if source.startswith(_FTP):
        return names | TRUST_OPTIONS
    if source.startswith(_SFTP):
        return names | {"known_hosts"}
    return names


def _arguments(
    source: str, endpoint_url: str | None, options: Mapping[str, str], timeout_s: float, access: S3Access | None
) -> dict[str, Any]:
    family = family_of(source)
    if family == "s3":
        arguments = s3_arguments(parse_location(source).bucket, options, endpoint_url, timeout_s, access)
        session = aio_session_for(arguments.pop("access"), arguments.pop("read_timeout_s"))
        return {**arguments, "session": session}
    options = take_object_options(family or "", options)[1]
    reaching = {name: value for name, value in options.items() if name in REACH_OPTIONS}
    arguments = {name: convert(name, value) for name, value in options.items() if name not in REACH_OPTIONS}
    if family == "az":
        return azure_arguments(source, arguments, endpoint_url)
    if family == "gs":
        check_token(arguments.get("token", "anon"), reaching)
    if source.startswith(_WEBDAV):
        return webdav_arguments(source, arguments, endpoint_url, timeout_s, reaching)
    if endpoint_url:
        if family != "gs":
            raise ConfigError(f"--endpoint-url: {safe_url(source)!r} has no endpoint to choose")
        arguments["endpoint_url"] = endpoint_url
    if source.startswith(_HTTP):
        return http_arguments(source, arguments, timeout_s, reaching)
    if source.startswith(_SFTP):
        for name in ("timeout", "banner_timeout", "auth_timeout", "channel_timeout"):
            arguments.setdefault(name, min(READ_TIMEOUT_S, timeout_s))
    elif source.startswith(_FTP):
        from luxfuse.understore.generic.ftp_tls import encrypt

        arguments.setdefault("timeout", min(READ_TIMEOUT_S, timeout_s))
        encrypt(arguments, reaching)
    elif family != "gs":
        # Of another package's client they may be options with a meaning of their own.
        return {**arguments, **{name: convert(name, value) for name, value in reaching.items()}}
    return arguments
