"""From the options that users write (with the names of s3fs, adlfs, gcsfs and obstore) to an obstore store object."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import obstore.store
from obstore.exceptions import BaseError

from luxfuse.core.units import YES
from luxfuse.errors import ConfigError
from luxfuse.understore import object_options
from luxfuse.understore.locations import Location, parse_location
from luxfuse.understore.object_options import ObjectOptions, take_object_options
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reach
from luxfuse.understore.s3.access import OPTIONS as ACCESS_OPTIONS
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.credentials import ObstoreProvider
from luxfuse.understore.variables import changed, variables

PATIENCE = 4
"""A request that sends much may last this many times the deadline of one: 16 MiB over a slow line."""

_TRUE = (*YES, "requester")
OWN_CHECKSUMS = ("CRC64NVME",)
"""The checksums that obstore computes, of those that we know."""

_SYNONYMS: dict[str, dict[str, str]] = {
    "s3": {
        "key": "access_key_id",
        "username": "access_key_id",
        "aws_access_key_id": "access_key_id",
        "secret": "secret_access_key",
        "password": "secret_access_key",
        "aws_secret_access_key": "secret_access_key",
        "token": "session_token",
        "aws_session_token": "session_token",
        "region_name": "region",
        "aws_region": "region",
        "endpoint_url": "endpoint",
        "anon": "skip_signature",
    },
    "az": {"sas_token": "sas_key", "endpoint_url": "endpoint", "account_host": "endpoint", "anon": "skip_signature"},
    "gs": {"endpoint_url": "base_url", "anon": "skip_signature"},
}
_OWN: dict[str, frozenset[str]] = {
    "s3": frozenset({
        "access_key_id", "secret_access_key", "session_token", "region", "default_region", "endpoint", "profile",
        "skip_signature", "virtual_hosted_style_request", "imdsv1_fallback", "metadata_endpoint",
        "role_arn", "role_session_name", "web_identity_token_file", "s3_express", "unsigned_payload",
    }),
    "az": frozenset({
        "account_name", "account_key", "sas_key", "endpoint", "skip_signature", "connection_string", "client_id",
        "client_secret", "tenant_id", "authority_host", "use_azure_cli", "use_emulator", "federated_token_file",
        "msi_endpoint", "object_id",
    }),
    "gs": frozenset({
        "base_url", "skip_signature", "service_account", "service_account_key", "application_credentials", "token",
    }),
}  # fmt: skip
_CLIENT = frozenset(["allow_http", "allow_invalid_certificates", "proxy_url", "verify", "use_ssl"])
_BOOLEAN = frozenset(["skip_signature", "use_azure_cli", "use_emulator", "s3_express",
                      "virtual_hosted_style_request", "imdsv1_fallback", "unsigned_payload",
                      "allow_http", "allow_invalid_certificates", "verify", "use_ssl"])  # fmt: skip


def unknown_options(family: str, options: Mapping[str, str]) -> list[str]:
    """Return the names that obstore has no equivalent for."""
    known = known_options(family)
    return sorted(name for name in options if name not in known)


def known_options(family: str) -> frozenset[str]:
    """Return the names of options that a store on obstore can heed."""
    objects = object_options.NAMES.get(family, frozenset()) - {"expected_bucket_owner"}  # it would not be in listings
    synonyms = {written for written, name in object_options.SYNONYMS.items() if name in objects}
    return _OWN[family] | _SYNONYMS[family].keys() | _CLIENT | objects | synonyms


def open_store(
    location: Location,
    endpoint_url: str | None,
    options: Mapping[str, str],
    request_timeout_s: float,
    *,
    patient: bool = False,
    writes: bool = False,
    checksums: bool = True,
    access: S3Access | None = None,
) -> Any:
    """Build the obstore store for ``location``. ``patient`` is for requests that send much.

    ``writes``: only for requests that write objects; ``checksums``: content goes with a checksum.

    ``access``, for S3: shared with the other clients. Raises `ConfigError` for options that cannot be used and
    `NoCredentials` where none are found.
    """
    family = location.family
    if family == "s3" and access is None:
        access = S3Access(location.bucket, options, endpoint_url)
    objects, rest = take_object_options(family, options, endpoint_url)
    config = _named(family, rest)
    client: dict[str, Any] = {name: config.pop(name) for name in _CLIENT & config.keys()}
    client = {name: client[name] for name in ("allow_http",) if name in client}  # the rest is decided below
    endpoint_name = "base_url" if family == "gs" else "endpoint"
    if endpoint_url:
        config[endpoint_name] = endpoint_url
    if access is not None:
        arguments = _s3(config, access) | _s3_objects(objects, checksums)
        if (acl := objects.canned_acl) and writes:
            client["default_headers"] = {"x-amz-acl": acl}
        reach = access.reach()
    else:
        arguments = {"az": _azure, "gs": _gcs}[family](location, config)
        reach = _reach(family, arguments, options)
        if family == "gs" and arguments.get("skip_signature"):
            # Google else unpacks what is stored compressed, and heeds no Range of it. With credentials, tokens would be
            # fetched with this header, too, and nobody unpacks those.
            client["default_headers"] = {"accept-encoding": "gzip"}
    endpoint = config.get(endpoint_name)
    if endpoint and endpoint.startswith("http://"):
        client["allow_http"] = True
    client["connect_timeout"] = timedelta(seconds=min(CONNECT_TIMEOUT_S, request_timeout_s))
    # Reading begins, for this time-out, when the request begins to be sent.
    read_timeout_s = PATIENCE * request_timeout_s if patient else min(READ_TIMEOUT_S, request_timeout_s)
    client["read_timeout"] = timedelta(seconds=read_timeout_s)
    client["timeout"] = timedelta(seconds=PATIENCE * request_timeout_s if patient else request_timeout_s)
    client |= reach.client_options()
    classes: dict[str, Callable[..., Any]] = {
        "s3": obstore.store.S3Store,
        "az": obstore.store.AzureStore,
        "gs": obstore.store.GCSStore,
    }
    try:
        with changed(reach.variables()):
            return classes[family](
                location.bucket,
                prefix=location.prefix.rstrip("/") or None,
                client_options=client,
                retry_config={"max_retries": 0},
                **arguments,
            )
    except (BaseError, ValueError, OSError):
        # The library's text may repeat the values, keys among them.
        names = ", ".join(sorted(options)) or "none given"
        raise ConfigError(
            f"{family}://{location.bucket}: the store cannot be set up; check endpoint, account and storage options "
            f"({names})"
        ) from None


def azure_settings(
    location: Location, endpoint_url: str | None, options: Mapping[str, str]
) -> tuple[dict[str, Any], Reach]:
    """Return the settings of a container by the names of obstore, and how it is reached. Raises `ConfigError`."""
    config = _named("az", take_object_options("az", options, endpoint_url)[1])
    if endpoint_url:
        config["endpoint"] = endpoint_url
    config = _azure(location, config)
    return config, _reach("az", config, options)


def _named(family: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return options by the names of obstore, but those that `S3Access` decides."""
    config: dict[str, Any] = {}
    for written, value in options.items():
        if family == "s3" and written in ACCESS_OPTIONS:
            continue
        name = _SYNONYMS[family].get(written, written)
        config[name] = _boolean(value) if name in _BOOLEAN else value
    return config


def _boolean(value: str) -> bool:
    return value.strip().lower() in _TRUE


def _s3(config: dict[str, Any], access: S3Access) -> dict[str, Any]:
    config["region"] = access.region
    if access.endpoint:
        config["endpoint"] = access.endpoint
    if access.credentials is None:
        config["skip_signature"] = True
    else:
        # A provider rather than config values: AWS_SESSION_TOKEN from the environment must not join another key.
        config["credential_provider"] = ObstoreProvider(access.credentials)
    return config


def _s3_objects(objects: ObjectOptions, checksums: bool) -> dict[str, Any]:
    """Return the options about how objects are stored. Others may come from variables of obstore's own."""
    config: dict[str, Any] = {"request_payer": objects.requester_pays}
    if objects.customer_key is not None:
        config["server_side_encryption"] = "sse-c"
        config["sse_customer_key_base64"] = base64.b64encode(objects.customer_key).decode()
    elif objects.encryption is not None:
        config["server_side_encryption"] = objects.encryption
        if objects.kms_key_id is not None:
            config["sse_kms_key_id"] = objects.kms_key_id
    if checksums and objects.checksum in OWN_CHECKSUMS:
        config["checksum_algorithm"] = objects.checksum
    return config


def _reach(family: str, config: Mapping[str, Any], options: Mapping[str, str]) -> Reach:
    """Return how requests to the service and to where its tokens come from get there."""
    if family == "gs":
        urls = (config.get("base_url") or "https://storage.googleapis.com", "https://oauth2.googleapis.com")
    else:
        account = config.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        endpoint = config.get("endpoint") or f"https://{account}.blob.core.windows.net"
        urls = (endpoint, config.get("authority_host") or "https://login.microsoftonline.com")
    return Reach.of(urls, options, variables())


def _azure(location: Location, config: dict[str, Any]) -> dict[str, Any]:
    text = config.pop("connection_string", None)
    if text is None and not config.get("account_key") and not config.get("sas_key"):
        text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    for name, value in _connection_string(text).items() if text else ():
        config.setdefault(name, value)
    if location.account:
        config.setdefault("account_name", location.account)
    if config.get("sas_key"):
        config["sas_key"] = config["sas_key"].lstrip("?")
    if not config.get("account_name") and not os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise ConfigError(f"az://{location.bucket}: no storage account; set the storage option account_name")
    if (endpoint := config.get("endpoint")) and "://" not in endpoint:
        config["endpoint"] = f"https://{endpoint}"
    return config


def azure_endpoint(source: str, options: Mapping[str, str]) -> str:
    """Return the URL of the account that ``source`` is in. Raises `ConfigError` if nobody names one."""
    config = _azure(parse_location(source), {_SYNONYMS["az"].get(name, name): value for name, value in options.items()})
    account = config.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return config.get("endpoint") or f"https://{account}.blob.core.windows.net"


def _connection_string(text: str) -> dict[str, str]:
    parts = dict(part.partition("=")[::2] for part in text.strip().strip(";").split(";"))
    names = {"AccountName": "account_name", "AccountKey": "account_key", "SharedAccessSignature": "sas_key",
             "BlobEndpoint": "endpoint"}  # fmt: skip
    found = {ours: parts[theirs] for theirs, ours in names.items() if parts.get(theirs)}
    if "endpoint" not in found and "account_name" in found and parts.get("EndpointSuffix"):
        scheme = parts.get("DefaultEndpointsProtocol", "https")
        found["endpoint"] = f"{scheme}://{found['account_name']}.blob.{parts['EndpointSuffix']}"
    return found


def _gcs(location: Location, config: dict[str, Any]) -> dict[str, Any]:
    source = config.pop("token", None)
    if source == "anon":
        config["skip_signature"] = True
    elif source and source != "google_default":
        if not os.access(source, os.R_OK):
            raise ConfigError("storage option token: write the path of a JSON key file, google_default or anon")
        config.setdefault("service_account", source)
    return config
