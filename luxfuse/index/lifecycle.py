"""How a run of the daemon begins and ends in the index: can what it says about cache files be believed?

The *epoch* numbers the runs between which pages need no verification. It rises when the last run did not end cleanly,
and when the machine has been restarted since (a power cut after a clean stop can lose cached data that was not yet on
the platter; a boot id tells). Pages of an earlier epoch are verified before their first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luxfuse.index.store import U64, IndexStore, Table

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Beginning:
    """``clean``: the last run ended cleanly on this boot. ``same_cache``: the cache directory is the one we know."""

    epoch: int
    clean: bool
    same_cache: bool


def _boot_id() -> bytes:
    return BOOT_ID.read_bytes().strip()


async def begin(store: IndexStore, cache_identity: str) -> Beginning:
    """Mark the index as in use, durably, and tell how the last run ended."""
    stored = store.get(Table.META, b"epoch")
    boot = _boot_id()
    clean = stored is not None and store.get(Table.META, b"clean") == boot
    epoch = (U64.unpack(stored)[0] if stored else 0) + (0 if clean else 1)
    same = store.get(Table.META, b"cache") == cache_identity.encode()
    store.put(Table.META, b"epoch", U64.pack(epoch))
    store.put(Table.META, b"clean", b"")
    store.put(Table.META, b"cache", cache_identity.encode())
    await store.flush()
    await store.sync()
    return Beginning(epoch, clean or stored is None, same)


def adopt(store: IndexStore, cache_identity: str) -> None:
    """Note that the cache directory was made anew while in use."""
    store.put(Table.META, b"cache", cache_identity.encode())


async def end(store: IndexStore) -> None:
    """Commit everything and mark the index as cleanly left."""
    store.put(Table.META, b"clean", _boot_id())
    await store.flush()
    await store.sync()
