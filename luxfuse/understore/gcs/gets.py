"""Reads of Google's objects in C (`understore.gets`), by the XML interface, with the tokens of gcsfs.

Versions are generations there, too. What comes with content says when an object was changed, but it is not documented
whether that is also said of its metadata, as listings do; so it describes nothing.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from luxfuse.understore.gcs.reach import STORED
from luxfuse.understore.gets.client import IS_BUILT, NOT_BUILT, Dialect, Door, Elsewhere, Gets, Sent, is_plain_url
from luxfuse.understore.reach import Reach

log = logging.getLogger(__name__)

DIALECT = Dialect(
    "gs", "x-goog-meta-", "x-goog-if-generation-match", "x-goog-generation", re.compile("[1-9][0-9]{0,19}"), describes=False
)
MOST_LINES = 8


def open_gets(filesystem: Any, bucket: str, prefix: str, reach: Reach, timeout_s: float, most: int) -> Gets | None:
    """Open the reads of a bucket, if they can be made; ``most``: requests at once, 0: they are not wanted."""
    if not most:
        return None
    url = f"{filesystem._location.rstrip('/')}/{bucket}"
    if reason := refusal(filesystem, url, reach):
        log.info("files are fetched by gcsfs: %s", reason)
        return None
    assert reach.trust.bundle is not None
    door = DoorOfGcsfs(filesystem.credentials)
    return Gets(DIALECT, url, prefix, door, bundle=reach.trust.bundle, timeout_s=timeout_s, most=most)


class DoorOfGcsfs(Door):
    """The tokens of gcsfs, or nothing where it has none."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens

    def __call__(self) -> Sent:
        headers = dict(STORED)
        self._tokens.apply(headers)  # which renews what ends soon; it raises `StoreError`
        if len(headers) > MOST_LINES:
            raise Elsewhere
        return Sent(None, tuple(f"{name}: {value}" for name, value in headers.items()))


def refusal(filesystem: Any, url: str, reach: Reach) -> str | None:
    """Say why a bucket is not read in C, or None if it is."""
    if not IS_BUILT:
        return NOT_BUILT
    if filesystem.requester_pays:
        return "options that each request has to repeat"
    if filesystem._use_client_cert or filesystem.session_kwargs:
        return "connections of an own kind"
    if reach.trust.bundle is None:
        return "certificates are not verified"
    if reach.proxy:
        return "there is a proxy"
    return None if is_plain_url(url) else "an unusual endpoint, or name of the bucket"
