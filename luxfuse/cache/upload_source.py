"""The source of an upload, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luxfuse.cache.open_uploads import OpenUpload
from luxfuse.cache.staged import StagedBytes, Stamp
from luxfuse.errors import StoreError
from luxfuse.types import ObjectInfo
from luxfuse.understore.properties import Properties


class Cancelled(StoreError):
    """Nobody wants the upload any more."""


@dataclass(frozen=True, slots=True)
class OldObject:
    """The object that the store holds of the file: key, version, size in bytes, and the checksums known of its pages."""

    key: str
    version: str
    size: int
    checksums: Mapping[int, int]


@dataclass(slots=True)
class Source:
    """A file that is to go up. ``old``: the object that parts may be copied from; ``cancelled`` ends the upload soon.

    ``open``: an upload that began while the file was written, or failed: parts of it that have arrived are not sent again.
    ``retrying``: it failed lately: try with one request before all the others. ``keep``: what others set on the object
    that is replaced, but its metadata.
    """

    key: str
    bytes: StagedBytes
    old: OldObject | None = None
    open: OpenUpload | None = None
    cancelled: bool = False
    retrying: bool = False
    keep: Properties | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The outcome: the store's word on the object, the checksum of each page that the staging file has, its stamp.

    ``metadata``: that of the object, where the upload was begun before it was asked for; None: as it was asked for.
    """

    info: ObjectInfo
    checksums: dict[int, int]
    stamp: Stamp
    metadata: Mapping[str, str] | None = None
