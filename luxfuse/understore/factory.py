"""Chooses and opens the driver for a source URL."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, cast

from luxfuse.core.units import NO, YES
from luxfuse.core.urls import endpoint_fault
from luxfuse.errors import ConfigError, StoreRejected
from luxfuse.understore.azure.access import AzureAccess
from luxfuse.understore.base import UnderStore
from luxfuse.understore.credential_files import require_files
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import family_of, has_odd_segment, parse_location
from luxfuse.understore.renewing import Access, OnlyOptions, RenewingDriver
from luxfuse.understore.variables import variables

if TYPE_CHECKING:
    from luxfuse.understore.s3.access import S3Access

log = logging.getLogger(__name__)

DriverChoice = Literal["auto", "obstore", "fsspec"]


def open_driver(
    source: str,
    *,
    endpoint_url: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    driver: DriverChoice = "auto",
    request_timeout_s: float = 30.0,
    reread: Callable[[], Mapping[str, str]] | None = None,
    direct_gets: int = 0,
) -> UnderStore:
    """Open ``source``; what the driver "auto" means is said by `_prefers_fsspec`, and obstore must know all options.

    ``reread`` returns the storage options as they are written now, for when the store refuses the credentials.
    ``direct_gets``: see `ObstoreDriver`. Makes no
    request to the store (`UnderStore.probe` does), except to find the region of an AWS bucket. Raises `ConfigError` with
    one line that says the fault or the package to install, `AccessDenied` if no credentials are found.
    """
    if endpoint_url and (fault := endpoint_fault(endpoint_url)):
        raise ConfigError(f"--endpoint-url {safe_url(endpoint_url)!r}: {fault}; write https://HOST[:PORT]")

    def reach(options: Mapping[str, str]) -> Access | None:
        if family_of(source) == "az":
            return AzureAccess(options, variables())
        if family_of(source) is None:
            return OnlyOptions()
        if family_of(source) != "s3":
            return None
        from luxfuse.understore.s3.access import S3Access

        return S3Access(parse_location(source).bucket, options, endpoint_url)

    def open_with(options: Mapping[str, str], access: Access | None) -> UnderStore:
        shared = cast("S3Access", access) if family_of(source) == "s3" else None
        return _open(source, endpoint_url, options, driver, request_timeout_s, shared, direct_gets)

    options = dict(storage_options or {})
    require_files(source, options, variables())
    if family_of(source) is None and reread is None:
        opened = open_with(options, None)
    else:
        opened = cast(UnderStore, RenewingDriver(reach, open_with, options, reread))
    _warn_of_unchecked_certificates(source, options)
    return opened


def release_memory() -> None:
    """Give back the memory that drivers keep for bodies of answers, and that nobody uses."""
    if (client := sys.modules.get("luxfuse.understore.gets.client")) is not None:  # imported where it is needed
        client.release_memory()


def _open(
    source: str,
    endpoint_url: str | None,
    options: Mapping[str, str],
    driver: DriverChoice,
    request_timeout_s: float,
    access: S3Access | None,
    direct_gets: int,
) -> UnderStore:
    def open_fsspec_driver() -> UnderStore:
        from luxfuse.understore.opening import open_fsspec

        return open_fsspec(
            source, endpoint_url=endpoint_url, storage_options=options, request_timeout_s=request_timeout_s, access=access,
            direct_gets=direct_gets if driver == "auto" else 0,
        )  # fmt: skip

    if driver == "fsspec" or (driver == "auto" and _prefers_fsspec(source, options)):
        return open_fsspec_driver()
    if refusal := _refusal(source, options):
        if driver == "auto":
            return open_fsspec_driver()
        raise ConfigError(f"--driver obstore: {refusal}; use --driver fsspec")
    from luxfuse.understore.obstore.driver import ObstoreDriver

    return ObstoreDriver(
        source,
        endpoint_url=endpoint_url,
        storage_options=options,
        request_timeout_s=request_timeout_s,
        fallback=_as_rejection(open_fsspec_driver),
        access=access,
        direct_gets=direct_gets,
    )


def _prefers_fsspec(source: str, options: Mapping[str, str]) -> bool:
    """Whether fsspec is the better driver: where obstore has none, and for Google where gcsfs is installed.

    Of Google's storage obstore can neither make directories nor replace metadata, and is not told generations by listings.
    """
    if family_of(source) is None:
        return True
    if family_of(source) != "gs" or importlib.util.find_spec("gcsfs") is None:
        return False
    from luxfuse.understore.opening import knows_options

    return knows_options(source, options)


def _warn_of_unchecked_certificates(source: str, options: Mapping[str, str]) -> None:
    off = options.get("verify", "").strip().lower() in NO
    if off or options.get("allow_invalid_certificates", "").strip().lower() in YES:
        log.warning(
            "%s: certificates are not verified, so anybody between here and the store can read and change everything; "
            "name the certificate authority with the storage option verify=FILE", safe_url(source)
        )  # fmt: skip


def _refusal(source: str, options: Mapping[str, str]) -> str | None:
    """Say why obstore cannot serve ``source``, or None if it can."""
    family = family_of(source)
    if family is None:
        return f"knows only s3://, az:// and gs://, not {safe_url(source)!r}"
    location = parse_location(source)
    if location.prefix and has_odd_segment(location.prefix[:-1]):
        return f"cannot name the prefix {location.prefix!r}"
    from luxfuse.understore.obstore.options import known_options, unknown_options

    if unknown := unknown_options(family, options):
        near = difflib.get_close_matches(unknown[0], known_options(family), 1)
        return f"does not know the storage option {unknown[0]!r}" + (f", but {near[0]}" if near else "")
    return None


def _as_rejection(opener: Callable[[], UnderStore]) -> Callable[[], UnderStore]:
    """Turn a `ConfigError` (adlfs is not installed, say) into a `StoreError`, as this happens in a request."""

    def open_or_reject() -> UnderStore:
        try:
            return opener()
        except ConfigError as exc:
            raise StoreRejected(f"this key needs the fsspec driver: {exc}") from None

    return open_or_reject
