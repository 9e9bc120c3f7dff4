"""How a run of the daemon begins and ends in the index: can what it says about cache files be believed?

The *epoch* numbers the runs between which pages need no verification. It rises when the last run did not end cleanly,
and when the machine has been restarted since (a power cut after a clean stop can lose cached data that was not yet on
the platter; a boot id tells). Pages of an earlier epoch are verified before their first use.

Each cache directory has a number here, by its identity. It keeps that, and what is known of its files, also while it is
not in use: a disk that comes back is as warm as it left.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from luxfuse.errors import ConfigError
from luxfuse.index.object_records import DIRECTORIES
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import U64, Table

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Beginning:
    """``clean``: the last run ended cleanly on this boot."""

    epoch: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Known:
    """A cache directory as the index has it. ``same``: its files are the ones that the index knows."""

    number: int
    same: bool


def boot_id() -> bytes:
    """Return the kernel's name for this boot of the machine."""
    return BOOT_ID.read_bytes().strip()


def was_cut_short(store: IndexStore) -> bool:
    """Whether the machine went down while the index was in use."""
    last = store.get(Table.META, b"boot")
    return last is not None and last != boot_id() and store.get(Table.META, b"clean") == b""


async def begin(store: IndexStore) -> Beginning:
    """Mark the index as in use, durably, and tell how the last run ended."""
    stored = store.get(Table.META, b"epoch")
    boot = boot_id()
    clean = stored is not None and store.get(Table.META, b"clean") == boot
    epoch = (U64.unpack(stored)[0] if stored else 0) + (0 if clean else 1)
    store.put(Table.META, b"epoch", U64.pack(epoch))
    store.put(Table.META, b"clean", b"")
    store.put(Table.META, b"boot", boot)
    await store.flush()
    await store.sync()
    return Beginning(epoch, clean or stored is None)


def raise_epoch(store: IndexStore) -> int:
    """Begin another epoch in the middle of a run, and return it."""
    stored = store.get(Table.META, b"epoch")
    epoch = (U64.unpack(stored)[0] if stored else 0) + 1
    store.put(Table.META, b"epoch", U64.pack(epoch))
    return epoch


def number_of(store: IndexStore, path: str, identity: str, taken: Collection[int]) -> Known:
    """Return the number of a cache directory by its identity, else by its path; a new one gets one that is not ``taken``.

    What the index knows of a number whose directory is not the same must go. Raises `ConfigError` if there are too many.
    """
    free = {
        number: (store.get(Table.META, _directory_key(number)) or b"\0").decode().split("\0", 1)
        for number in range(DIRECTORIES) if number not in taken
    }  # fmt: skip
    for number, (known, _) in free.items():
        if known == identity:
            return Known(number, same=True)
    if not free:
        raise ConfigError(f"--cache-dir: more than {DIRECTORIES} directories; give fewer")
    number = min(free, key=lambda number: (free[number][1] != path, bool(free[number][0]), number))
    adopt(store, number, path, identity)
    return Known(number, same=False)


def adopt(store: IndexStore, number: int, path: str, identity: str) -> None:
    """Note which directory has a number now."""
    store.put(Table.META, _directory_key(number), f"{identity}\0{path}".encode())


def _directory_key(number: int) -> bytes:
    return b"cache" + bytes((number,))


async def end(store: IndexStore) -> None:
    """Commit everything and mark the index as cleanly left."""
    store.put(Table.META, b"clean", boot_id())
    await store.flush()
    await store.sync()
