"""What proves that a content which is not here any more went to the store."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from luxfuse.index.journal import FileRecord
from luxfuse.types import Kind, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.recovery.in_store import was_pushed
from tests.support.fake_store import EVERYTHING, FakeStore

STAMP, EARLIER, LATER = 2_000_000_000, 1_000_000_000, 3_000_000_000
RECORD = FileRecord(
    "a", Kind.FILE, WriteMode.ASYNC_THROUGH, 2, None, "", "", "", 0, 4, STAMP, closed=True, content=True, since_s=0.0
)  # fmt: skip


def described(mtime_ns: int) -> dict[str, str]:
    return {"mode": "0100644", "mtime": f"{mtime_ns // 10**9}"}


async def is_proof(driver: FakeStore, record: FileRecord = RECORD) -> bool:
    store = Store(driver, request_timeout_s=60, max_requests=4, rng=random.Random(0))
    return await was_pushed(store, record)


@pytest.mark.parametrize(
    ("data", "mtime_ns", "sending", "proof"),
    [
        (b"data", STAMP, None, True),
        (b"data", EARLIER, None, False),
        (b"data", EARLIER, (EARLIER, 4), False),  # it was on its way when the content was promised
        (b"later", LATER, (LATER, 5), True),
        (b"later", LATER, None, False),
        (b"dat", STAMP, None, False),
    ],
)
async def test_an_object_that_says_its_time(
    data: bytes, mtime_ns: int, sending: tuple[int, int] | None, proof: bool
) -> None:
    driver = FakeStore()
    driver.place("a", data, described(mtime_ns))
    assert await is_proof(driver, msgspec.structs.replace(RECORD, sending=sending)) is proof


async def test_an_object_that_says_no_time() -> None:
    driver = FakeStore()
    assert not await is_proof(driver)
    driver.place("a", b"data", {"mode": "0100644"})  # sent before the file was complete
    assert await is_proof(driver)
    driver.place("a", b"data")  # somebody else's
    assert not await is_proof(driver)


async def test_where_objects_say_nothing_another_version_of_the_size_has_to_do() -> None:
    driver = FakeStore(abilities=replace(EVERYTHING, metadata=False))
    version = driver.place("a", b"data").version
    assert await is_proof(driver)
    assert not await is_proof(driver, msgspec.structs.replace(RECORD, expect=version))
