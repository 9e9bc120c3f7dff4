"""The file of an LMDB environment is longer than what is in use of it."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from luxfuse.index.growth import STEP_BYTES, Growth


def test_there_is_room_behind_what_is_in_use(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path), map_size=1 << 30)
    growth = Growth(tmp_path)
    for number in range(300):
        growth.ahead(env)
        size = (tmp_path / "data.mdb").stat().st_size
        used = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        assert STEP_BYTES // 4 <= size - used <= STEP_BYTES * 5 // 4
        with env.begin(write=True) as txn:
            txn.put(number.to_bytes(8, "big"), bytes([number % 251]) * 10_000)
    env.close()
    env = lmdb.open(str(tmp_path), map_size=1 << 30)
    with env.begin() as txn:
        assert [value[0] for _, value in txn.cursor()] == [number % 251 for number in range(300)]
    env.close()


def test_a_disk_with_little_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = lmdb.open(str(tmp_path), map_size=1 << 30)
    full = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((*full[:4], 1, *full[5:])))
    before = (tmp_path / "data.mdb").stat().st_size
    Growth(tmp_path).ahead(env)
    assert (tmp_path / "data.mdb").stat().st_size == before
    env.close()
