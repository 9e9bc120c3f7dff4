"""From the options that users write for Azure to the arguments of `adlfs.AzureBlobFileSystem`."""

from __future__ import annotations

import os
from typing import Any

from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import parse_location
from luxfuse.understore.reach import OPTIONS as REACH_OPTIONS

_NAMES = {"sas_key": "sas_token", "skip_signature": "anon", "endpoint": "endpoint_url"}
TRANSLATED = _NAMES.keys() | REACH_OPTIONS | {"endpoint_url", "allow_http"}
"""The storage options that others are made of here, or that the driver reads itself."""


def azure_arguments(source: str, given: dict[str, Any], endpoint_url: str | None) -> dict[str, Any]:
    """Return the arguments for the options that are ``given``. Raises `ConfigError` if they name no account."""
    arguments = {_NAMES.get(name, name): value for name, value in given.items()}
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
