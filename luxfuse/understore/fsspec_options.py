"""From what users write to constructor arguments of fsspec file systems, with their caches and retries off."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from luxfuse.core.units import NO, YES
from luxfuse.core.urls import endpoint_fault, url_fault
from luxfuse.core.values import nearest
from luxfuse.errors import ConfigError, NotFound, StoreError, StoreRejected, StoreUnavailable
from luxfuse.understore import object_options
from luxfuse.understore.failures import safe_url
from luxfuse.understore.fsspec_known import refuse_unknown, refuse_unknown_inside
from luxfuse.understore.fsspec_pool import without_listings
from luxfuse.understore.library_failures import failure
from luxfuse.understore.locations import family_of, parse_location
from luxfuse.understore.object_options import take_object_options
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TRUST_OPTIONS, Reach, said
from luxfuse.understore.reach import OPTIONS as REACH_OPTIONS
from luxfuse.understore.s3_access import OPTIONS as ACCESS_OPTIONS
from luxfuse.understore.s3_access import S3Access
from luxfuse.understore.s3_sessions import aio_session_for
from luxfuse.understore.trust import trust_for
from luxfuse.understore.variables import variables

_BOOLEAN = frozenset(["anon", "use_ssl", "requester_pays", "allow_invalid_certificates"])
_NUMBERS = frozenset(["port", "timeout", "max_concurrency", "blocksize", "block_size", "default_block_size"])
_S3_NAMES = {
    "access_key_id": "key",
    "aws_access_key_id": "key",
    "username": "key",
    "secret_access_key": "secret",
    "aws_secret_access_key": "secret",
    "password": "secret",
    "session_token": "token",
    "aws_session_token": "token",
    "skip_signature": "anon",
    "endpoint": "endpoint_url",
}
_S3_OURS = ACCESS_OPTIONS | {"allow_http", "virtual_hosted_style_request"}
_AZURE_NAMES = {"sas_key": "sas_token", "skip_signature": "anon", "endpoint": "endpoint_url"}
_TOKENS = ("anon", "google_default", "cloud", "cache", "browser")
"""What gcsfs takes for ways to a token."""
_WITH_HOST = ("http://", "https://", "sftp://", "ssh://", "ftp://", "smb://", "webhdfs://")
_WEBDAV = ("webdav://", "dav://")
_SFTP = ("sftp://", "ssh://")
_HTTP = ("http://", "https://")
_FTP = "ftp://"
_PACKAGES = {"adlfs": "luxfuse[azure]", "gcsfs": "luxfuse[gcs]", "s3fs": "s3fs", "aiohttp": "aiohttp",
             "webdav4": "webdav4[fsspec]"}  # fmt: skip
_MODULES = {"s3": "s3fs", "az": "adlfs", "gs": "gcsfs"}


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
            from luxfuse.understore import sftp_hosts

            sftp_hosts.use()
        if _FTP in schemes:
            from luxfuse.understore import ftp_tls

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


def _translated(source: str) -> frozenset[str]:
    """Return the options that `_arguments` makes others of."""
    family = family_of(source) or ""
    objects = object_options.NAMES.get(family, frozenset())
    names = objects | {written for written, name in object_options.SYNONYMS.items() if name in objects}
    if family == "s3":
        return names | _S3_NAMES.keys() | _S3_OURS
    if family == "az":
        return names | _AZURE_NAMES.keys() | REACH_OPTIONS | {"endpoint_url", "allow_http"}
    if family == "gs" or source.startswith((*_HTTP, *_WEBDAV)):
        return names | REACH_OPTIONS
    if source.startswith(_FTP):
        return names | TRUST_OPTIONS
    if source.startswith(_SFTP):
        return names | {"known_hosts"}
    return names


def _refused(shown: str, exc: Exception, options: Mapping[str, str]) -> ConfigError:
    # The library's text may repeat values, keys among them, so only its kind and the names are shown.
    names = ", ".join(sorted(options)) or "none given"
    return ConfigError(f"source {shown!r}: cannot be opened ({type(exc).__name__}); check URL and storage options "
                       f"({names})")  # fmt: skip


def _arguments(
    source: str, endpoint_url: str | None, options: Mapping[str, str], timeout_s: float, access: S3Access | None
) -> dict[str, Any]:
    family = family_of(source)
    if family == "s3":
        arguments = s3_arguments(options, endpoint_url, timeout_s, access)
        return {**arguments, "session": aio_session_for(arguments.pop("access"))}
    options = take_object_options(family or "", options)[1]
    reaching = {name: value for name, value in options.items() if name in REACH_OPTIONS}
    arguments = {name: _convert(name, value) for name, value in options.items() if name not in REACH_OPTIONS}
    if family == "az":
        return _azure(source, arguments, endpoint_url)
    token = arguments.get("token", "anon")
    if family == "gs" and (named := said(reaching)) and token not in _TOKENS and not Path(token).exists():
        raise ConfigError(f"storage option {named[0]}: gcsfs asks about a token that is given itself without heeding it; "
                          "let token name a file with a key, or set HTTPS_PROXY and REQUESTS_CA_BUNDLE")  # fmt: skip
    if source.startswith(_WEBDAV):
        return _webdav(source, arguments, endpoint_url, timeout_s, reaching)
    if endpoint_url:
        if family != "gs":
            raise ConfigError(f"--endpoint-url: {safe_url(source)!r} has no endpoint to choose")
        arguments["endpoint_url"] = endpoint_url
    if source.startswith(_HTTP):
        import aiohttp

        client = arguments.setdefault("client_kwargs", {})
        client.setdefault(
            "timeout",
            aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
        )
        arguments["get_client"] = _client_maker(Reach.of((source,), reaching, variables()))
        arguments.setdefault("encoded", True)
        arguments.setdefault("simple_links", False)
    if source.startswith(_SFTP):
        for name in ("timeout", "banner_timeout", "auth_timeout", "channel_timeout"):
            arguments.setdefault(name, min(READ_TIMEOUT_S, timeout_s))
    elif source.startswith(_FTP):
        arguments.setdefault("timeout", min(READ_TIMEOUT_S, timeout_s))
        _encrypt(arguments, reaching)
    elif family != "gs" and not source.startswith(_HTTP):
        # Of another package's client they may be options with a meaning of their own.
        return {**arguments, **{name: _convert(name, value) for name, value in reaching.items()}}
    return arguments


def _encrypt(arguments: dict[str, Any], reaching: Mapping[str, str]) -> None:
    """Put what FTP inside TLS needs in the place of the option tls."""
    from luxfuse.understore.ftp_tls import Tls

    wanted = arguments.pop("tls", False)
    if wanted not in (True, False, "tls"):
        raise ConfigError("storage option tls: write true, false, or tls for implicit TLS")
    if wanted:
        arguments["tls"] = Tls(trust_for(reaching, variables()).ssl_context(), implicit=wanted == "tls")
    elif reaching:
        raise ConfigError(f"storage option {min(reaching)}: FTP has no certificates without the storage option tls=true")


def _webdav(
    source: str, arguments: dict[str, Any], endpoint_url: str | None, timeout_s: float, reaching: Mapping[str, str]
) -> dict[str, Any]:
    base_url = arguments.setdefault("base_url", endpoint_url)
    if not base_url or endpoint_fault(str(base_url)):
        raise ConfigError(f"source {safe_url(source)!r}: does not say the server; add --endpoint-url https://HOST/PATH, "
                          "or the storage option base_url")  # fmt: skip
    if "username" in arguments:
        arguments["auth"] = (arguments.pop("username"), arguments.pop("password", ""))
    reach = Reach.of((str(base_url),), reaching, variables())
    arguments |= {"verify": reach.trust.ssl_context(), "trust_env": False}
    arguments.setdefault("proxy", next(iter(reach.proxies().values()), None))
    arguments.setdefault("timeout", min(READ_TIMEOUT_S, timeout_s))
    return arguments


def _client_maker(reach: Reach) -> Any:
    async def get_client(*, loop: Any, **named: Any) -> Any:
        import aiohttp

        connector = aiohttp.TCPConnector(ssl=reach.trust.ssl_context())
        proxy = next(iter(reach.proxies().values()), None)
        return aiohttp.ClientSession(loop=loop, connector=connector, proxy=proxy, **named)

    return get_client


def _convert(name: str, value: str) -> Any:
    """Give booleans, numbers and JSON objects their type; keys made of digits stay text."""
    plain = value.strip().lower()
    if name in _NUMBERS and plain.isdigit():
        return int(plain)
    if plain in ("true", "false") or name in _BOOLEAN:
        if plain not in YES + NO:
            raise ConfigError(f"storage option {name}: write true or false")
        return plain in YES
    if name.endswith("kwargs"):
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise ConfigError(f"storage option {name}: is not JSON, or no object")
        return found
    return value


def s3_arguments(
    options: Mapping[str, str], endpoint_url: str | None, timeout_s: float, access: S3Access | None = None
) -> dict[str, Any]:
    """Return the arguments of `s3fs.S3FileSystem`, but for "access", which holds what to make its session of.

    ``client_kwargs`` and ``config_kwargs`` are always among them. ``access`` is what is shared with other clients.
    """
    objects, options = take_object_options("s3", options, endpoint_url)
    given = {_S3_NAMES.get(name, name): _convert(name, value) for name, value in options.items()}
    _check_inner(given)
    client = dict(given.pop("client_kwargs", {}))
    access = access or S3Access("", options, endpoint_url)
    arguments = {name: value for name, value in given.items() if name not in ACCESS_OPTIONS}
    arguments["anon"] = access.anonymous
    arguments["requester_pays"] = objects.requester_pays
    # botocore finds endpoints in variables, too, but then takes host names for buckets.
    if access.endpoint:
        arguments["endpoint_url"] = access.endpoint
    client.setdefault("region_name", access.region)
    reach = access.reach()
    client["verify"] = reach.trust.verify
    for name in ("allow_http", "virtual_hosted_style_request", "unsigned_payload", "s3_express"):
        arguments.pop(name, None)
    config = dict(arguments.pop("config_kwargs", {}))
    config.setdefault("connect_timeout", min(CONNECT_TIMEOUT_S, timeout_s))
    config.setdefault("read_timeout", min(READ_TIMEOUT_S, timeout_s))
    config.setdefault("retries", {"total_max_attempts": 1})
    config.setdefault("max_pool_connections", 64)
    config = {**reach.botocore_config(), **config}
    if access.endpoint:
        config.setdefault("s3", {"addressing_style": "path"})
    return {**arguments, "client_kwargs": client, "config_kwargs": config, "access": access}


def _check_inner(arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what botocore would fail on later, with a TypeError."""
    if not arguments.keys() & {"client_kwargs", "config_kwargs"}:
        return
    import botocore.config  # type: ignore[import-untyped]
    import botocore.session  # type: ignore[import-untyped]

    if inner := arguments.get("client_kwargs"):
        parameters = inspect.signature(botocore.session.Session.create_client).parameters
        refuse_unknown_inside("client_kwargs", inner, parameters.keys() - {"self", "service_name", "config"})
    if inner := arguments.get("config_kwargs"):
        refuse_unknown_inside("config_kwargs", inner, botocore.config.Config.OPTION_DEFAULTS)


def _azure(source: str, given: dict[str, Any], endpoint_url: str | None) -> dict[str, Any]:
    arguments = {_AZURE_NAMES.get(name, name): value for name, value in given.items()}
    location = parse_location(source)
    if location.account:
        arguments.setdefault("account_name", location.account)
    account = arguments.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    endpoint_url = endpoint_url or arguments.pop("endpoint_url", None)
    arguments.pop("allow_http", None)
    connection = arguments.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if endpoint_url and not arguments.get("connection_string"):
        # adlfs takes a plain-HTTP or path-style endpoint in a connection string only.
        key = arguments.get("account_key") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
        sas = arguments.get("sas_token") or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
        parts = [f"BlobEndpoint={endpoint_url}", f"AccountName={account}" if account else ""]
        parts.append(f"AccountKey={key}" if key else f"SharedAccessSignature={str(sas).lstrip('?')}" if sas else "")
        if key or sas:
            arguments["connection_string"] = connection = ";".join(part for part in parts if part)
        elif account:
            arguments["account_host"] = endpoint_url.partition("://")[2]
    if not account and not connection:
        raise ConfigError(f"source {safe_url(source)!r}: no storage account; set the storage option account_name")
    arguments.setdefault("assume_container_exists", True)
    return arguments


def require_root(source: str) -> None:
    """Raise `ConfigError` for a source that names nothing to mount."""
    if family_of(source):
        parse_location(source)
    elif not source or (source.endswith("://") and not source.startswith(_WEBDAV)):
        raise ConfigError(f"source {safe_url(source)!r}: names nothing; write PROTOCOL://PLACE/PATH")
    elif source.startswith(_WITH_HOST) and (fault := url_fault(source)):
        raise ConfigError(f"source {safe_url(source)!r}: {fault}; write PROTOCOL://HOST[:PORT]/PATH")
