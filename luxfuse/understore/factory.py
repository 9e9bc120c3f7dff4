"""Chooses and opens the driver for a source URL."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Literal

from luxfuse.errors import ConfigError, StoreRejected
from luxfuse.understore.base import UnderStore
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import family_of, has_odd_segment, parse_location

DriverChoice = Literal["auto", "obstore", "fsspec"]


def open_driver(
    source: str,
    *,
    endpoint_url: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    driver: DriverChoice = "auto",
    request_timeout_s: float = 30.0,
) -> UnderStore:
    """Open ``source``: "auto" means obstore for S3, Azure and GCS if it knows all options, fsspec otherwise.

    Makes no request to the store (`UnderStore.probe` does), except to find the region of an AWS bucket. Raises
    `ConfigError` with one line that says what is wrong or what to install, `AccessDenied` if no credentials are found.
    """
    options = dict(storage_options or {})
    if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint-url {safe_url(endpoint_url)!r}: must start with http:// or https://")

    def open_fsspec_driver() -> UnderStore:
        from luxfuse.understore.fsspec_driver import open_fsspec

        return open_fsspec(
            source, endpoint_url=endpoint_url, storage_options=options, request_timeout_s=request_timeout_s
        )

    if driver == "fsspec" or (driver == "auto" and family_of(source) is None):
        return open_fsspec_driver()
    if refusal := _refusal(source, options):
        if driver == "auto":
            return open_fsspec_driver()
        raise ConfigError(f"--driver obstore: {refusal}; use --driver fsspec")
    from luxfuse.understore.obstore_driver import ObstoreDriver

    return ObstoreDriver(
        source,
        endpoint_url=endpoint_url,
        storage_options=options,
        request_timeout_s=request_timeout_s,
        fallback=_as_rejection(open_fsspec_driver),
    )


def _refusal(source: str, options: Mapping[str, str]) -> str | None:
    """Say why obstore cannot serve ``source``, or None if it can."""
    family = family_of(source)
    if family is None:
        return f"knows only s3://, az:// and gs://, not {safe_url(source)!r}"
    location = parse_location(source)
    if location.prefix and has_odd_segment(location.prefix[:-1]):
        return f"cannot name the prefix {location.prefix!r}"
    from luxfuse.understore.obstore_options import known_options, unknown_options

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
