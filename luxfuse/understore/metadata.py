"""The headers that go with the bytes of an object: user metadata as stores accept it, and the content type."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping

from luxfuse.errors import StoreRejected

DIRECTORY_TYPE = "application/x-directory"
DEFAULT_TYPE = "application/octet-stream"


def content_type(key: str) -> str:
    """Return the content type of a directory marker, or the guess from the name of a file."""
    if key.endswith("/"):
        return DIRECTORY_TYPE
    return mimetypes.guess_type(key, strict=False)[0] or DEFAULT_TYPE


def checked_metadata(metadata: Mapping[str, str], what: str) -> dict[str, str]:
    """Return ``metadata`` as a dictionary. Raises `StoreRejected` for an entry that cannot be an HTTP header unchanged."""
    for name, value in metadata.items():
        # Header values lose blanks at their ends on the way, and so does the signature's copy of them.
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise StoreRejected(f"{what}: the metadata {name!r} has characters that stores do not keep")
        if not (name.isascii() and name.isprintable() and name == name.strip().lower()):
            raise StoreRejected(f"{what}: {name!r} is no name for metadata")
    return dict(metadata)
