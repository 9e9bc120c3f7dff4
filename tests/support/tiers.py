"""What tests of several cache directories have in common."""

from __future__ import annotations

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.space import Space
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, pages, random_bytes


def store(count: int = 12, size: int = pages(1)) -> FakeStore:
    """A store with ``count`` objects, k00, k01 and so on."""
    driver = FakeStore()
    for number in range(count):
        driver.place(f"k{number:02}", random_bytes(size, number))
    return driver


def acquire(m: Mount, key: str) -> CachedObject:
    """Return a key's object, counted as used no more."""
    data, version, _, _ = m.driver.objects[key]
    obj = m.cache.acquire(key, version, len(data))
    m.cache.release(obj)
    return obj


def tier(m: Mount, key: str) -> str | None:
    """Return in which tier something of an object is."""
    obj = acquire(m, key)
    return obj.space.tier if obj.space is not None and obj.pages.count else None


def space(m: Mount, name: str) -> Space:
    """Return the first directory of a tier."""
    return next(s for s in m.hierarchy if s.tier == name)


def consistent(m: Mount) -> None:
    """Every directory holds the files that the index has there, and counts their bytes."""
    for s in m.hierarchy:
        stored = set(s.directory.stored())
        assert stored == {oid for oid in stored if m.objects.directory_of(oid) == s.number}
        on_disk = sum(s.directory.file_of(oid).stat().st_blocks * 512 for oid in stored)
        assert s.ledger.used_bytes == m.objects.used_bytes_in(s.number) + s.staged_bytes == on_disk + s.staged_bytes
        assert s.ledger.reserved_bytes == 0
        assert not list((s.directory.path / "moving").iterdir())
    assert not m.hierarchy.moving
