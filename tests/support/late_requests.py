"""Writes that were given up, and may be carried out yet."""

from __future__ import annotations

from luxfuse.understore.late import Write
from luxfuse.understore.retrying import Store


def given_up(store: Store, *keys: str) -> Write:
    """A write of ``keys`` whose thread has not ended: until it does not run any more."""
    write = Write(keys, conditional=False)
    write.running = True
    store.late.end(write)
    return write
