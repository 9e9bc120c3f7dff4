"""From the options that users write for S3 to the arguments of `s3fs.S3FileSystem`, and of the client of botocore."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from luxfuse.understore.generic.known import refuse_unknown_inside
from luxfuse.understore.generic.values import convert
from luxfuse.understore.object_options import take_object_options
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from luxfuse.understore.s3.access import OPTIONS as ACCESS_OPTIONS
from luxfuse.understore.s3.access import S3Access

_NAMES = {
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
TRANSLATED = _NAMES.keys() | ACCESS_OPTIONS | {"allow_http", "virtual_hosted_style_request"}
"""The storage options that others are made of here."""


def s3_arguments(
    bucket: str, options: Mapping[str, str], endpoint_url: str | None, timeout_s: float, access: S3Access | None = None
) -> dict[str, Any]:
    """Return the arguments of `s3fs.S3FileSystem`, ``client_kwargs`` and ``config_kwargs`` always among them.

    Two are not its: "access", to make a session of (``access`` is given if other clients share it), and "read_timeout_s",
    of requests that only read.
    """
    objects, options = take_object_options("s3", options, endpoint_url)
    given = {_NAMES.get(name, name): convert(name, value) for name, value in options.items()}
    _check_inner(given)
    client = dict(given.pop("client_kwargs", {}))
    access = access or S3Access(bucket, options, endpoint_url)
    arguments = {name: value for name, value in given.items() if name not in ACCESS_OPTIONS}
    arguments["anon"] = access.anonymous
    arguments["requester_pays"] = objects.requester_pays
    for name in ("allow_http", "virtual_hosted_style_request", "unsigned_payload", "s3_express"):
        arguments.pop(name, None)
    client.setdefault("region_name", access.region)
    reach = access.reach()
    client["verify"] = reach.trust.verify
    config = {**reach.botocore_config(), **arguments.pop("config_kwargs", {})}
    config.setdefault("connect_timeout", min(CONNECT_TIMEOUT_S, timeout_s))
    read_timeout_s = config.get("read_timeout", min(READ_TIMEOUT_S, timeout_s))
    config["read_timeout"] = max(read_timeout_s, timeout_s)
    config.setdefault("retries", {"total_max_attempts": 1})
    config.setdefault("max_pool_connections", 64)
    if "request_checksum_calculation" in botocore_options():  # `Checksums` adds them
        config.setdefault("request_checksum_calculation", "when_required")
    # botocore finds endpoints in variables, too, but then takes host names for buckets.
    if endpoint := client.pop("endpoint_url", None) or access.endpoint:
        if urlsplit(endpoint).netloc.startswith(f"{bucket}."):  # as obstore's virtual_hosted_style_request
            endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
            config["s3"] = {**config.get("s3", {}), "addressing_style": "virtual"}
        arguments["endpoint_url"] = endpoint
    if access.endpoint:
        config.setdefault("s3", {"addressing_style": "path"})
    return {
        **arguments, "client_kwargs": client, "config_kwargs": config, "access": access, "read_timeout_s": read_timeout_s,
    }  # fmt: skip


def botocore_options() -> Collection[str]:
    """Return the names of the options of `botocore.config.Config`."""
    import botocore.config  # type: ignore[import-untyped]

    names: Collection[str] = botocore.config.Config.OPTION_DEFAULTS
    return names


def _check_inner(arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that botocore would fail on later, with a TypeError."""
    if not arguments.keys() & {"client_kwargs", "config_kwargs"}:
        return
    import botocore.session  # type: ignore[import-untyped]

    if inner := arguments.get("client_kwargs"):
        parameters = inspect.signature(botocore.session.Session.create_client).parameters
        refuse_unknown_inside("client_kwargs", inner, parameters.keys() - {"self", "service_name", "config"})
    if inner := arguments.get("config_kwargs"):
        refuse_unknown_inside("config_kwargs", inner, botocore_options())
