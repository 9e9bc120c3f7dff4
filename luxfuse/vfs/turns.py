"""Turns by name or key: one task at a time changes what has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import trio

from luxfuse.workers import take

K = TypeVar("K", str, tuple[int, bytes])
"""Keys of the store, or names: (parent inode, name)."""


class Turns(Generic[K]):
    """A lock for each key that somebody has, or waits for."""

    def __init__(self) -> None:
        self._locks: dict[K, tuple[trio.Lock, int]] = {}
        """With the number of tasks that have it or wait for it."""

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._locks)

    def has(self, key: K) -> bool:
        """Whether somebody has a key, or waits for it."""
        return key in self._locks

    def of(self, keys: Iterable[K]) -> Turn[K]:
        """Wait for a turn at each of the keys, for the block."""
        return Turn(self._locks, keys)


class Turn(Generic[K]):
    """Waits for several keys in one order, the same for all, so that none of two waits for the other."""

    def __init__(self, locks: dict[K, tuple[trio.Lock, int]], keys: Iterable[K]) -> None:
        self._locks: dict[K, tuple[trio.Lock, int]] = locks
        self._keys: list[K] = sorted(set(keys))
        self._held: list[K] = []

    async def __aenter__(self) -> None:
        for key in self._keys:
            lock, users = self._locks.get(key) or (trio.Lock(), 0)
            self._locks[key] = lock, users + 1
            try:
                await take(lock)
            except BaseException:
                self._leave(key)
                await self.__aexit__()
                raise
            self._held.append(key)

    async def __aexit__(self, *_: object) -> None:
        while self._held:
            key = self._held.pop()
            self._locks[key][0].release()
            self._leave(key)

    def _leave(self, key: K) -> None:
        lock, users = self._locks.pop(key)
        if users > 1:
            self._locks[key] = lock, users - 1
