"""Which cached objects make room: the least recently used that nobody uses now."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def choose_victims(oldest_first: Iterable[tuple[bytes, int]], in_use: Collection[bytes], needed_bytes: int) -> list[bytes]:
    """Return the ids of the objects to drop so that ``needed_bytes`` become free.

    ``oldest_first`` gives (object id, allocated bytes) from the least recently used on; objects of ``in_use`` (open,
    with a live backing id, or being filled) are left alone. If all the rest is not enough, all the rest is returned:
    the caller sees by the bytes that it fell short.
    """
    victims = []
    freed = 0
    for object_id, allocated_bytes in oldest_first:
        if freed >= needed_bytes:
            break
        if object_id in in_use:
            continue
        victims.append(object_id)
        freed += allocated_bytes
    return victims
