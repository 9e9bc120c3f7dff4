"""Beginnings of a volume that fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from luxfuse.configuration.building import build
from luxfuse.errors import StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from luxfuse.shares import shares
from luxfuse.understore.retrying import Store
from luxfuse.volume import store_opening
from tests.support.fake_store import FakeStore
from tests.support.harness import mounted


class Refusing(FakeStore):
    """Answers each request in the same way."""

    def probe(self) -> None:
        raise StoreUnavailable("LIST '': 503 Service Unavailable (SlowDown)")


async def test_mount_that_fails_says_what_the_store_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_opening, "PROBE_DEADLINE_S", 1.3)
    store = Store(Refusing(), request_timeout_s=30, max_requests=4, rng=random.Random(1))
    settings = build({"source": "s3://bucket", "mountpoint": "/mnt"}, environ={})
    failed = await store_opening.prove(store, settings)
    assert "s3://bucket: LIST '': 503 Service Unavailable (SlowDown)" in str(failed)
    store.close()


async def test_spare_staging_files_are_made_when_they_run_low_and_nobody_looks_for_them_otherwise(tmp_path: Path) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode="async-through") as m:
        m.nursery.start_soon(m.writing.spares.run)
        with trio.fail_after(60):
            while m.staging.spares_low:
                await trio.sleep(0.01)
        refills, refill = [], m.staging.refill
        m.staging.refill = lambda: (refills.append(len(m.staging._spares)), refill())  # type: ignore[method-assign, func-returns-value]
        spares = shares().spares
        for number in range(spares):
            await m.kernel.close(m.fs, (await m.kernel.create(m.fs, ROOT_INODE, b"%d" % number))[0])
            with trio.fail_after(60):
                while m.staging.spares_low:
                    await trio.sleep(0.001)
        assert 0 < len(refills) < spares / 2
        assert max(refills) <= spares // 2
        assert min(refills) > 0
