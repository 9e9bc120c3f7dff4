"""How an open of an inode is served: in passthrough, or by copying through the daemon.

The kernel's rule (fs/fuse/iomode.c): while any passthrough open of an inode lives, all are passthrough with the same
backing file; while any cached open lives, none may be. Breaking it gives the application EIO.
"""

from __future__ import annotations

import enum


class OpenMode(enum.Enum):
    """The decision on an open."""

    JOIN = "join"
    """Passthrough, with the backing id that the inode has."""
    PASSTHROUGH = "passthrough"
    """Passthrough: register a backing id first."""
    COPY = "copy"
    """Through the daemon."""
    FETCH = "fetch"
    """Undecided: fetch the whole object first, then ask again."""


def decide(*, registered: bool, copied_opens: int, whole: bool, fetchable: bool, passthrough_possible: bool) -> OpenMode:
    """Choose the mode of one open from the inode's present state; must be asked again after every wait.

    ``registered``: the inode has a backing id. ``copied_opens``: live opens that copy. ``whole``: every page is in
    the cache and verified. ``fetchable``: small enough to be fetched whole, and the last try did not fail.
    """
    assert not (registered and copied_opens), "an inode is never open in both modes"
    if registered:
        return OpenMode.JOIN
    if copied_opens or not passthrough_possible:
        return OpenMode.COPY
    if whole:
        return OpenMode.PASSTHROUGH
    return OpenMode.FETCH if fetchable else OpenMode.COPY
