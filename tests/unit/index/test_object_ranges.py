"""Who listens hears exactly which ranges come to the cache whole, and which go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luxfuse.core.members import RANGE_PAGES
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.index.pages import Pages
from luxfuse.index.store import IndexStore
from luxfuse.types import PAGE_BYTES

OID = b"0123456789abcdef"


class Listening:
    """An index of objects, and what it says to be held."""

    def __init__(self, path: Path) -> None:
        self.store = IndexStore(path)
        self.objects = Objects(self.store)
        self.held: set[tuple[bytes, int]] = set()
        self.told = 0
        self.objects.on_held.append(self._told)

    def _told(self, oid: bytes, number: int, held: bool) -> None:
        assert ((oid, number) in self.held) != held, "it is told once"
        (self.held.add if held else self.held.remove)((oid, number))
        self.told += 1

    def save(self, size: int, pages: Pages, changed: range | None, oid: bytes = OID) -> None:
        record = ObjectRecord("key", "1", size, whole=pages.whole)
        assert self.objects.save(oid, record, pages, changed)

    def ranges(self) -> set[tuple[bytes, int]]:
        return {(oid, n) for oid, record in self.objects.scan(b"", 99) for n in self.objects.ranges(oid, record)}


def full(pages: Pages) -> set[tuple[bytes, int]]:
    """What is held of an object, page by page."""
    ranges = range(-(-pages.total // RANGE_PAGES))
    return {
        (OID, n)
        for n in ranges
        if all(pages.has(page) for page in range(n * RANGE_PAGES, min(pages.total, (n + 1) * RANGE_PAGES)))
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    total=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 192, 300]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "remove", "drop", "touch", "flush"]), st.integers(0, 299), st.integers(1, 140)
        ),
        max_size=25,
    ),
)
async def test_what_is_told_is_what_is_there(tmp_path_factory: pytest.TempPathFactory, total: int, steps: list) -> None:
    here = Listening(tmp_path_factory.mktemp("i") / "i")
    size = total * PAGE_BYTES - 5
    pages = Pages(size)
    for action, first, count in steps:
        changed = range(first % total, min(total, first % total + count))
        if action == "flush":
            await here.objects.flush()
        elif action == "drop":
            here.objects.drop(OID)
            pages = Pages(size)
        elif action == "touch":
            if here.objects.known(OID):
                here.save(size, pages, None)
        else:
            for page in changed:
                if action == "add":
                    pages.add(page, page)
                else:
                    pages.remove(page)
            here.save(size, pages, changed)
        assert here.held == full(pages)
    await here.objects.flush()
    assert here.ranges() == full(pages)
    here.store.close()


async def test_a_directory_that_is_cleared_takes_its_ranges_along(tmp_path: Path) -> None:
    here = Listening(tmp_path / "i")
    changes: list[int] = []
    here.objects.on_change.append(lambda _oid, _record, sign: changes.append(sign))
    for number, total in enumerate((1, 64, 65, 300)):
        pages = Pages(total * PAGE_BYTES)
        for page in range(total if number < 3 else 290):
            pages.add(page, 1)
        here.save(total * PAGE_BYTES, pages, range(total), OID[:-1] + bytes((number,)))
    assert len(here.held) == 1 + 1 + 2 + 4
    await here.objects.clear(0)
    assert here.held == set()
    assert sum(changes) == 0
    assert here.ranges() == set()
    here.store.close()


async def test_an_empty_object_has_no_range(tmp_path: Path) -> None:
    here = Listening(tmp_path / "i")
    here.save(0, Pages(0), None)
    here.objects.drop(OID)
    assert here.told == 0
    here.store.close()


@pytest.mark.expected_logs("is not recorded")
async def test_what_the_index_does_not_take_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Listening(tmp_path / "i")
    pages = Pages(5)
    pages.add(0, 1)

    def refuse(_changes: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(here.store, "apply", refuse)
    assert not here.objects.save(OID, ObjectRecord("key", "1", 5, whole=True), pages, range(1))
    assert here.told == 0
    here.store.close()
