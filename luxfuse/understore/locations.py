"""Where a source URL points: protocol family, bucket and prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luxfuse.core.names import PATH_MOST_BYTES, KeyLimits
from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url

CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_NOT_IN_BUCKETS = re.compile(r"[\s\x00-\x20\x7f?#%\\\[\]]")

HDFS = ("hdfs://", "viewfs://", "webhdfs://")
"""The sources on Hadoop's file system."""

FAMILIES = {
    "s3": "s3",
    "s3a": "s3",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "azure": "az",
    "gs": "gs",
    "gcs": "gs",
}
"""URL protocols of the object stores that both drivers know."""


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and the prefix below it, which is "" or ends in "/". ``account`` is Azure's, if the URL names it."""

    family: str
    bucket: str
    prefix: str
    account: str | None = None


def family_of(source: str) -> str | None:
    """Return "s3", "az" or "gs" if ``source`` is on such a store."""
    return FAMILIES.get(source.partition("://")[0].lower()) if "://" in source else None


def parse_location(source: str) -> Location:
    """Split ``s3://bucket/prefix`` and the like; raises `ConfigError` if it names no bucket."""
    family = family_of(source)
    assert family is not None
    netloc, _, prefix = source.partition("://")[2].partition("/")
    account = None
    if family == "az" and "@" in netloc:  # abfs://container@account.dfs.core.windows.net/prefix
        netloc, _, host = netloc.partition("@")
        account = host.partition(".")[0]
    if not netloc or "@" in netloc or ":" in netloc:
        raise ConfigError(f"source {safe_url(source)!r}: names no bucket; write {family}://BUCKET[/PREFIX]")
    if _NOT_IN_BUCKETS.search(netloc):
        raise ConfigError(
            f"source {safe_url(source)!r}: no bucket can have that name; write {family}://BUCKET[/PREFIX], without "
            "blanks, ? and #"
        )
    prefix = prefix.strip("/")
    return Location(family, netloc, f"{prefix}/" if prefix else "", account)


def key_limits(source: str, *, hierarchical: bool) -> KeyLimits:
    """Return how long keys may be at ``source``; ``hierarchical``: its directories exist by themselves."""
    family = family_of(source)
    if family is not None:
        return KeyLimits(prefix=parse_location(source).prefix, characters=family == "az")
    if not hierarchical:
        return KeyLimits()
    path = source.partition("://")[2] if "://" in source else source
    refused = ":" if source.startswith(HDFS) else ""
    return KeyLimits(PATH_MOST_BYTES, path.rstrip("/") + "/", refused=refused)


def has_odd_segment(path: str) -> bool:
    """Whether obstore cannot name ``path`` as it is: empty, "." or ".." segments, or control characters.

    One trailing "/" is an empty segment too: obstore would silently strip it and address another object.
    """
    return has_dot_segment(path) or CONTROL.search(path) is not None


def has_dot_segment(path: str) -> bool:
    """Whether ``path`` has an empty, "." or ".." segment: no name below a directory, and maybe a way out of it."""
    return any(segment in ("", ".", "..") for segment in path.split("/"))
