"""The objects below a directory whose rename was interrupted: moved page by page, and never lost or doubled."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luxfuse.cache.recovered import Recovered
from luxfuse.errors import StoreError, StoreRejected
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.operations import MOVE_DIRECTORY
from luxfuse.vfs.recovery.objects import MovedObjects
from tests.support import fake_store
from tests.support.fake_store import FakeStore

PAGE, FILES = 10, 45


class Failing(FakeStore):
    """From the copy on that is said it refuses copies."""

    passing = 10**9
    copies = 0

    def _request(self, kind: str) -> None:
        super()._request(kind)
        if kind == "copy":
            self.passing -= 1
            if self.passing < 0:
                raise StoreRejected("fake: 400")
            self.copies += 1


async def test_what_was_moved_is_not_moved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_store, "PAGE_ENTRIES", PAGE)
    driver = Failing()
    for number in range(FILES):
        driver.place(f"d/{number:02}", str(number).encode())
    driver.place("d/", b"")
    operation = OperationRecord(MOVE_DIRECTORY, {"source": "d/", "target": "e/"}, 0, 0.0)
    journal = Journal(tmp_path / "journal")
    store = Store(driver, request_timeout_s=30, max_requests=16, rng=random.Random(0))
    for passing in (3 * PAGE, 10**9):
        driver.passing = passing
        moves = MovedObjects(journal, store, Recovered(tmp_path / "recovered"))  # as after a restart
        if passing == 3 * PAGE:
            with pytest.raises(StoreError):
                await moves.make(1, operation)
            left = {key for key in driver.objects if key.startswith("d/")}
            assert "d/" in left
            assert len(left) < FILES - PAGE
            moved = driver.copies
        else:
            await moves.make(1, operation)
    journal.close()
    assert {key: data for key, (data, *_) in driver.objects.items()} == {
        "e/": b"", **{f"e/{number:02}": str(number).encode() for number in range(FILES)}
    }  # fmt: skip
    assert moved <= driver.copies <= FILES + 2, "but for the marker, each is copied once"
