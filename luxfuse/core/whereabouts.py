"""What a request waits for, in words for operators, told from the modules in which its task stands."""

from __future__ import annotations

from collections.abc import Iterable

STORE, NODES, DISK, JOURNAL, ROOM, TURN, UPLOAD, MEMORY, WORK = (
    "the store", "other nodes", "the cache disk", "the journal", "room in the cache", "another change of the same name",
    "an upload", "memory for requests", "the daemon itself",
)  # fmt: skip
_PLACES = {
    "cache.budget": MEMORY,
    "cache.cached": STORE,
    "cache.descriptors": DISK,
    "cache.fetching": STORE,
    "cache.page_cache": DISK,
    "cache.reservations": ROOM,
    "cache.staged": DISK,
    "cache.upload": UPLOAD,
    "cluster": NODES,
    "index.journal": JOURNAL,
    "index.store": DISK,
    "peers": NODES,
    "understore": STORE,
    "vfs.asking": STORE,
    "vfs.listing": STORE,
    "vfs.promises": UPLOAD,
    "vfs.pushing": UPLOAD,
    "vfs.replicas": NODES,
    "vfs.room": ROOM,
    "vfs.shared_answers": STORE,
    "vfs.streams": STORE,
    "vfs.turns": TURN,
    "workers": DISK,
}


def waits_for(modules: Iterable[str]) -> str:
    """Return what is waited for, of the modules of a task's frames, the innermost first."""
    for module in modules:
        if module.startswith("luxfuse."):
            name = module.removeprefix("luxfuse.")
            while name:
                if name in _PLACES:
                    return _PLACES[name]
                name = name.rpartition(".")[0]
    return WORK
