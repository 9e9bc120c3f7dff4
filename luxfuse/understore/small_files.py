"""Whole small files, fetched many at a time by a driver that also puts them into their cache files.

Few drivers can (see `understore.gets`); with the others, and for all that is not simply there, callers ask as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from luxfuse.errors import StoreError
from luxfuse.types import ObjectInfo

MOST_BYTES = 2 << 20
"""The largest file that is fetched in this way."""


class WantedFile(NamedTuple):
    """An object of ``size`` bytes; ``path``: the cache file to put it into, None if into none, open if ``stay_open``."""

    key: str
    version: str
    size: int
    path: str | None
    stay_open: bool


class ArrivedFile(NamedTuple):
    """An object that came whole, in the version that was wanted, with one xxh3-64 checksum a page.

    ``info``: its description, if that came along.

    If there was a ``path``: the ``errno`` of writing the file, or 0 and its mtime and number, and the descriptor if it is
    open, else -1. ``opened``: it had been opened, however that went on. Where writing failed, it may be there in part.
    """

    info: ObjectInfo | None
    data: bytes
    checksums: tuple[int, ...]
    stamp: int
    file_number: int
    fd: int
    errno: int
    opened: bool


class Answer(NamedTuple):
    """The outcome for one file: it arrived, or the request failed; or neither, and it has to be asked for as usual."""

    seconds: float | None = None
    """How long the request took; None: none was made."""
    arrived: ArrivedFile | None = None
    error: StoreError | None = None


class SmallFiles(Protocol):
    """A driver that fetches small files."""

    @property
    def fetches_small(self) -> bool:
        """Whether it does, with its settings."""

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        """Fetch files of at most `MOST_BYTES`; ``abandoned``: a byte that becomes 1 when nobody waits for them any more.

        No cache file is opened after that. Blocks.
        """


def fetches_small(driver: object) -> bool:
    """Whether a driver fetches small files."""
    return bool(getattr(driver, "fetches_small", False))


def fetch_small(driver: object, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
    """Let a driver fetch small files, if it does; see `SmallFiles.fetch_small`."""
    if not fetches_small(driver):
        return [Answer()] * len(files)
    return cast(SmallFiles, driver).fetch_small(files, abandoned)
