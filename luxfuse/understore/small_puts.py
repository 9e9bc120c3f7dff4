"""Small objects that are put several at once, in one turn of a thread, by a driver that can do that.

Few can (see `understore.s3.small_puts`); with the others, and for all that is not simply stored so, callers put as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from luxfuse.errors import StoreError
from luxfuse.types import Buffer, ObjectInfo

MOST_BYTES = 128 << 10
"""The largest object that is put in this way: the content of all stays in memory until the last one has ended."""
MOST_PUTS = 8
"""Put at once, at most: as many as C makes at once (`MOST_PARALLEL`)."""


class SmallPut(NamedTuple):
    """An object that is to be put; see `UnderStore.put`."""

    key: str
    data: Buffer
    metadata: Mapping[str, str]
    expect: str | None


class PutAnswer(NamedTuple):
    """The outcome for one object: it is stored, or the request failed; or neither, and it has to be put as usual.

    The store may have it where it is not said that it is stored.
    """

    seconds: float | None = None
    """How long the request took; None: none was made."""
    info: ObjectInfo | None = None
    error: StoreError | None = None


Tell = Callable[[Sequence[tuple[int, PutAnswer]]], object]
"""Told the outcomes of some of them, by their numbers, in the thread that puts them."""


class PutsSmall(Protocol):
    """A driver that puts several small objects at once."""

    @property
    def puts_small(self) -> bool:
        """Whether it does, with its settings and this server."""

    def put_small(self, puts: Sequence[SmallPut], tell: Tell) -> None:
        """Put objects, and tell of each soon after it ends; those that are not told have to be put as usual. Blocks.

        Raises `StoreError` only before it tells of any.
        """


def puts_small(driver: object) -> bool:
    """Whether a driver puts several small objects at once."""
    return bool(getattr(driver, "puts_small", False))


def put_small(driver: object, puts: Sequence[SmallPut], tell: Tell) -> None:
    """Let a driver put several small objects, if it does; see `PutsSmall.put_small`."""
    if puts and puts_small(driver):
        cast(PutsSmall, driver).put_small(puts, tell)
