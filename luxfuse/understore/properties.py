"""The properties of an object: all that others set besides its bytes, which a new version of it has to have again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luxfuse.types import ObjectInfo
from luxfuse.understore.metadata import DEFAULT_TYPE, content_type

_NOBODYS_TYPES = (DEFAULT_TYPE, "binary/octet-stream")
"""The type where nobody has said one."""

HEADERS = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language")
"""Those that every store keeps, beside the type."""


@dataclass(frozen=True, slots=True)
class Properties:
    """An object as `UnderStore.examine` found it. ``info`` has its metadata, ours among them.

    ``headers`` are some of `HEADERS`; ``storage_class`` is None where a new version gets the mount's; ``own``: properties
    that only the driver that found them can send, in its own terms.
    """

    info: ObjectInfo
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)


def type_for(key: str, kept: Properties | None) -> str:
    """Return the content type of a new object ``key`` in place of ``kept``, which may have had another name.

    It changes with the name only, and only if it was the one that its old name lets one guess, or nobody's.
    """
    guessed = content_type(key)
    if kept is None or not kept.content_type:
        return guessed
    before = content_type(kept.info.key)
    if guessed == before or kept.content_type not in (before, *_NOBODYS_TYPES):
        return kept.content_type
    return guessed
