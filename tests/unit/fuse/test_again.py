"""What a successor believes of a change that is sent to it again, by the numbers of inodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from luxfuse.fuse import again
from luxfuse.fuse.again import RENAME_EXCHANGE, RENAME_NOREPLACE
from luxfuse.fuse.once import Begun, BegunFact, NotMade
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.numbers import ANEW_SHIFT
from luxfuse.vfs.kernel import NoKernel
from luxfuse.vfs.volumes import Volumes
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted


def handlers(m: Mount) -> Any:
    volumes = Volumes(NoKernel())
    volumes.main.serve(m.fs, negative_ttl_s=5.0, read_only=False)
    return SimpleNamespace(volumes=volumes, begun=Begun(None, volumes))


def store_of_two() -> FakeStore:
    driver = FakeStore()
    for key in ("a", "b"):
        driver.place(key, key.encode())
    return driver


async def test_a_name_is_another_only_by_a_number_of_the_same_index(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of_two()) as m:
        a, b, h = await m.inode("a"), await m.inode("b"), handlers(m)

        async def is_another(inode: int) -> bool:
            return await again.is_another(h, BegunFact(0, inode), ROOT_INODE, b"a")

        assert [await is_another(inode) for inode in (0, a, b)] == [False, False, True]
        assert not await is_another((1 << ANEW_SHIFT) + b), "the index began anew"
        for _ in range(2):
            m.namespace.renumber(await m.inode("a"))
        assert await m.inode("a") != a
        assert not await is_another(a)
        assert await is_another(b)


async def test_a_rename_is_known_by_what_was_renumbered_since(tmp_path: Path) -> None:
    async with mounted(tmp_path, store_of_two()) as m:
        a, b, h = await m.inode("a"), await m.inode("b"), handlers(m)
        m.namespace.renumber(a)
        m.namespace.renumber(b)

        async def turned(inode: int, other: int, flags: int) -> bool:
            fact = BegunFact(0, inode, other)
            return await again.turned(h, fact, ROOT_INODE, b"a", ROOT_INODE, b"b", flags)

        assert await turned(b, a, RENAME_EXCHANGE)
        assert not await turned(a, b, RENAME_EXCHANGE)
        assert await turned(b, 0, 0)
        renamed = (cast(Any, 0), ROOT_INODE, b"a", ROOT_INODE, b"b", RENAME_NOREPLACE)
        await again.renamed(h, BegunFact(0, b), *renamed)
        with pytest.raises(NotMade):
            await again.renamed(h, BegunFact(0, a), *renamed)
