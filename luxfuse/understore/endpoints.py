"""The place of a store on the network, and where its credentials come from: for those who look for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from luxfuse.understore.azure.access import AzureAccess, sas_ends_at
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import family_of, parse_location
from luxfuse.understore.reach import Reach
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.variables import variables

PORTS = {"http": 80, "https": 443, "sftp": 22, "ssh": 22, "ftp": 21, "smb": 445, "webhdfs": 9870, "hdfs": 8020}
"""The ports that are meant where a URL names none."""

_KEPT_BY = ("key", "secret", "username", "password", "token", "identity_file", "key_filename", "user")

_OF_GOOGLE = ("token", "service_account", "service_account_key", "application_credentials")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url`` without login. ``reach``: how HTTP gets there; None for stores that speak something else."""

    url: str
    reach: Reach | None

    @property
    def host(self) -> str:
        """The name or address in the URL."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int | None:
        """The port in the URL, or that of its scheme; None if it has none that is known."""
        parts = urlsplit(self.url)
        return parts.port or PORTS.get(parts.scheme)


@dataclass(frozen=True, slots=True)
class Credentials:
    """``origin``: where they were found, in words, None if nowhere. ``expires_s``: in seconds since the epoch, if known."""

    origin: str | None
    expires_s: float | None = None


def endpoint_of(source: str, endpoint_url: str | None, options: Mapping[str, str]) -> Endpoint | None:
    """Return the endpoint of a source; None where nothing is on a network, or not at a host that is known.

    Asks AWS for the region of the bucket if nobody has named one. Raises `ConfigError`.
    """
    family = family_of(source)
    if family == "s3":
        access = S3Access(parse_location(source).bucket, {**options, "anon": "true"}, endpoint_url)
        return Endpoint(safe_url(access.url), access.reach())
    if family == "az":
        url = endpoint_url or _of_azure(source, options)
    elif family == "gs":
        url = endpoint_url or options.get("endpoint_url") or options.get("base_url") or "https://storage.googleapis.com"
    elif source.startswith(("webdav://", "dav://")):
        url = endpoint_url or options.get("base_url") or ""
    else:
        url = source
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return Endpoint(safe_url(url), Reach.of((url,), options, variables()))
    return Endpoint(safe_url(url), None) if scheme in PORTS and urlsplit(url).hostname else None


def _of_azure(source: str, options: Mapping[str, str]) -> str:
    from luxfuse.understore.obstore.options import azure_endpoint  # obstore is large

    return azure_endpoint(source, options)


def credentials_of(source: str, endpoint_url: str | None, options: Mapping[str, str]) -> Credentials:
    """Find the credentials for a source where its driver does; waits where a service has to be asked.

    Raises `ConfigError`, and `StoreError` if they are to come from somewhere and cannot be had.
    """
    family = family_of(source)
    if family == "s3":
        access = S3Access(parse_location(source).bucket, options, endpoint_url)
        if access.credentials is None:
            return Credentials("nowhere: requests are not signed (anon)")
        access.prepare()
        return Credentials(access.origin, access.credentials.expires_s)
    if family == "az":
        found = AzureAccess(options, variables())
        return Credentials(found.origin, sas_ends_at(found.secret))
    if family == "gs":
        return Credentials(_google(options))
    named = [name for name in _KEPT_BY if options.get(name)]
    login = "@" in source.partition("://")[2].partition("/")[0]
    return Credentials(f"the storage options {', '.join(named)}" if named else "the source's URL" if login else None)


def _google(options: Mapping[str, str]) -> str | None:
    """Say where the clients of Google's storage look first, of what is there."""
    way = options.get("token")
    if way == "anon" or options.get("skip_signature"):
        return "nowhere: requests are not signed (token=anon)"
    named = [name for name in _OF_GOOGLE if options.get(name)]
    if named and way != "google_default":
        return f"the storage option {named[0]}"
    if path := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        missing = "" if os.access(path, os.R_OK) else ", which is not there"
        return f"the file that GOOGLE_APPLICATION_CREDENTIALS names{missing}"
    if Path("~/.config/gcloud/application_default_credentials.json").expanduser().is_file():
        return "~/.config/gcloud"
    return None
