"""From what users write (the names that s3fs, adlfs, gcsfs and obstore know) to an obstore store object."""

from __future__ import annotations

import base64
import http.client
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import obstore.store
from obstore.exceptions import BaseError

from luxfuse.errors import AccessDenied, ConfigError
from luxfuse.understore import object_options
from luxfuse.understore.failures import CREDENTIAL_PLACES
from luxfuse.understore.locations import Location
from luxfuse.understore.object_options import ObjectOptions, take_object_options

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0

PATIENCE = 4
"""A request that sends much may last this many times the deadline of one: 16 MiB over a slow line."""

_TRUE = ("1", "true", "yes", "on", "requester")
_REGION_TIMEOUT_S = 3.0
OWN_CHECKSUMS = ("CRC64NVME",)
"""What obstore computes, of those that we know."""

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
) -> Any:
    """Build the obstore store for ``location``. ``patient`` is for requests that send much.

    ``writes``: only for requests that write objects; ``checksums``: what is written goes with a checksum.

    Raises `ConfigError` for options that cannot be used and `AccessDenied` where no credentials are found.
    """
    family = location.family
    objects, rest = take_object_options(family, options, endpoint_url)
    config: dict[str, Any] = {}
    for written, value in rest.items():
        name = _SYNONYMS[family].get(written, written)
        config[name] = _boolean(value) if name in _BOOLEAN else value
    client: dict[str, Any] = {name: config.pop(name) for name in _CLIENT & config.keys()}
    if client.pop("verify", True) is False:
        client["allow_invalid_certificates"] = True
    client.pop("use_ssl", None)  # the endpoint's scheme says it
    endpoint_name = "base_url" if family == "gs" else "endpoint"
    if endpoint_url:
        config[endpoint_name] = endpoint_url
    arguments = {"s3": _s3, "az": _azure, "gs": _gcs}[family](location, config)
    if family == "s3":
        arguments |= _s3_objects(objects, checksums)
        if (acl := objects.canned_acl) and writes:
            client["default_headers"] = {"x-amz-acl": acl}
    endpoint = config.get(endpoint_name)
    if endpoint and endpoint.startswith("http://"):
        client["allow_http"] = True
    client["connect_timeout"] = timedelta(seconds=min(CONNECT_TIMEOUT_S, request_timeout_s))
    # Reading begins, for this time-out, when the request begins to be sent.
    read_timeout_s = PATIENCE * request_timeout_s if patient else min(READ_TIMEOUT_S, request_timeout_s)
    client["read_timeout"] = timedelta(seconds=read_timeout_s)
    client["timeout"] = timedelta(seconds=PATIENCE * request_timeout_s if patient else request_timeout_s)
    classes: dict[str, Callable[..., Any]] = {
        "s3": obstore.store.S3Store,
        "az": obstore.store.AzureStore,
        "gs": obstore.store.GCSStore,
    }
    try:
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


def _boolean(value: str) -> bool:
    return value.strip().lower() in _TRUE


def _s3(location: Location, config: dict[str, Any]) -> dict[str, Any]:
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
    region = config.pop("default_region", None) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    profile_region = _s3_credentials(location, config)
    if not config.get("region"):
        config["region"] = region or profile_region or ("us-east-1" if endpoint else bucket_region(location.bucket))
    return config


def _s3_objects(objects: ObjectOptions, checksums: bool) -> dict[str, Any]:
    """Return what says how objects are stored. Whatever is left open here may come from variables of obstore's own."""
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


def bucket_region(bucket: str) -> str:
    """Ask AWS where ``bucket`` is, as its SDKs do when no region is set; us-east-1 if it does not answer."""
    connection = http.client.HTTPSConnection("s3.amazonaws.com", timeout=_REGION_TIMEOUT_S)
    try:
        connection.request("HEAD", f"/{quote(bucket)}")
        return connection.getresponse().getheader("x-amz-bucket-region") or "us-east-1"
    except (OSError, http.client.HTTPException):
        return "us-east-1"
    finally:
        connection.close()


def _s3_credentials(location: Location, config: dict[str, Any]) -> str | None:
    """Replace the credentials in ``config`` by a provider where needed; return the region of the profile in use."""
    profile = config.pop("profile", None)
    key, secret = config.pop("access_key_id", None), config.pop("secret_access_key", None)
    token = config.pop("session_token", None)
    if config.get("skip_signature"):
        return None
    if bool(key) != bool(secret):
        raise ConfigError("storage options: key and secret are needed together")
    if key:
        # A provider rather than config values: AWS_SESSION_TOKEN from the environment must not join another key.
        credential = {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}
        config["credential_provider"] = lambda: credential
    elif profile or not _obstore_finds_s3_credentials():
        provider, region = _botocore_credentials(location, profile)
        config["credential_provider"] = provider
        return region
    return None


def _obstore_finds_s3_credentials() -> bool:
    environ = os.environ
    return bool(environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY")) or (
        environ.get("AWS_SKIP_SIGNATURE", "").lower() in _TRUE
    )


def _botocore_credentials(location: Location, profile: str | None) -> tuple[Callable[[], dict[str, Any]], str | None]:
    """Find credentials where the AWS tools do (files, SSO, container and instance roles); obstore reads no files."""
    try:
        import botocore.exceptions  # type: ignore[import-untyped]
        import botocore.session  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("credentials in ~/.aws need botocore; install it with: pip install s3fs") from None
    try:
        session = botocore.session.Session(profile=profile)
        credentials = session.get_credentials()
        region = session.get_config_variable("region")
    except botocore.exceptions.BotoCoreError as exc:
        raise AccessDenied(f"s3://{location.bucket}: {_one_line(exc)}") from None
    if credentials is None:
        raise AccessDenied(f"s3://{location.bucket}: no credentials found in: {CREDENTIAL_PLACES['s3']}")

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        expires_at = getattr(credentials, "_expiry_time", None)  # botocore tells it in no other way
        return {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token,
                "expires_at": expires_at}  # fmt: skip

    return provide, region


def _one_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__


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
        if not Path(source).is_file():
            raise ConfigError("storage option token: write the path of a JSON key file, google_default or anon")
        config.setdefault("service_account", source)
    return config
