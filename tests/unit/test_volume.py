"""Beginnings of a volume that fail."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luxfuse import volume
from luxfuse.config import build
from luxfuse.errors import MountError, StoreUnavailable
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore


class Refusing(FakeStore):
    """Answers each request in the same way."""

    def probe(self) -> None:
        raise StoreUnavailable("LIST '': 503 Service Unavailable (SlowDown)")


async def test_mount_that_fails_says_what_the_store_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "PROBE_DEADLINE_S", 1.3)
    store = Store(Refusing(), request_timeout_s=30, max_requests=4, rng=random.Random(1))
    life: Any = object.__new__(volume.VolumeLife)
    life.settings = build({"source": "s3://bucket", "mountpoint": "/mnt"}, environ={})
    with pytest.raises(MountError, match=r"s3://bucket: LIST '': 503 Service Unavailable \(SlowDown\)"):
        await life._probe(store)
    store.close()
