"""Names whose key the store could not hold: refused when they are made, and given up where a journal has one already."""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.core import names
from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.moves.operations import EXCHANGE
from luxfuse.volume import assembly
from tests.crash.lives import User, seen
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, snapshot

DEEP = "/".join(["d" * 199] * 5)
"""The key of 999 bytes of a directory: 24 more fit, after a slash."""


def placed(*keys: str) -> FakeStore:
    driver = FakeStore()
    for key in keys:
        driver.place(key, b"" if key.endswith("/") else b"content")
    return driver


async def refused(call: Callable[[], Awaitable[object]], number: int = errno.ENAMETOOLONG) -> None:
    """The call must fail with ENAMETOOLONG, or ``number``."""
    with pytest.raises(LuxError) as failure:
        await call()
    assert failure.value.errno == number


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_a_character_that_the_store_does_not_take_is_refused_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(assembly, "key_limits", lambda _source, hierarchical: names.KeyLimits(refused=":"))
    async with mounted(tmp_path, placed("f"), Options(write_mode=mode)) as m:  # type: ignore[arg-type]
        fs = m.fs
        await refused(lambda: fs.create(ROOT_INODE, b"a:b", 0o644, 1, CALLER), errno.EINVAL)
        await refused(lambda: fs.mkdir(ROOT_INODE, b"a:b", 0o755, CALLER), errno.EINVAL)
        await refused(lambda: fs.symlink(ROOT_INODE, b"a:b", b"target", CALLER), errno.EINVAL)
        await refused(lambda: fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"a:b", 0), errno.EINVAL)
        await fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"ab", 0)
        await m.drain()


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_what_no_key_can_hold_is_refused_when_it_is_made(tmp_path: Path, mode: str) -> None:
    driver = placed(DEEP + "/f", "f")
    async with mounted(tmp_path, driver, Options(write_mode=mode)) as m:  # type: ignore[arg-type]
        deep = await m.inode(DEEP)
        fs = m.fs
        await refused(lambda: fs.symlink(ROOT_INODE, b"l" * 245, b"target", CALLER))
        await refused(lambda: fs.symlink(deep, b"l" * 14, b"target", CALLER))
        await refused(lambda: fs.create(deep, b"n" * 25, 0o644, 1, CALLER))
        await refused(lambda: fs.mknod(deep, b"n" * 25, stat.S_IFREG | 0o644, 0, CALLER))
        await refused(lambda: fs.mknod(deep, b"n" * 25, stat.S_IFIFO | 0o644, 0, CALLER))
        await refused(lambda: fs.mkdir(deep, b"n" * 24, 0o755, CALLER))
        await refused(lambda: fs.rename(ROOT_INODE, b"f", deep, b"n" * 25, 0))
        assert await m.entries(DEEP) == {b"f": await m.inode(f"{DEEP}/f")}
        await fs.symlink(ROOT_INODE, b"l" * 244, b"target", CALLER)
        await fs.symlink(deep, b"l" * 13, b"target", CALLER)
        await fs.mkdir(deep, b"n" * 23, 0o755, CALLER)
        await fs.rename(ROOT_INODE, b"f", deep, b"n" * 24, 0)
        await m.drain()
    assert {"l" * 244 + ".rclonelink", f"{DEEP}/{'l' * 13}.rclonelink", f"{DEEP}/{'n' * 24}"} < driver.objects.keys()


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_a_directory_whose_content_would_be_too_deep_stays_where_it_is(tmp_path: Path, mode: str) -> None:
    driver = placed(f"{DEEP}/{'n' * 24}", f"{DEEP}/also", "other/f", "short/f")
    top = "d" * 199
    async with mounted(tmp_path, driver, Options(write_mode=mode)) as m:  # type: ignore[arg-type]
        before = dict(driver.objects)
        await refused(lambda: m.fs.rename(ROOT_INODE, top.encode(), ROOT_INODE, b"e" * 200, 0))
        other = await m.inode("other")
        await refused(lambda: m.fs.rename(ROOT_INODE, top.encode(), other, top.encode(), 0))
        await m.fs.mkdir(other, b"x" * 220, 0o755, CALLER)
        await m.drain()
        await refused(lambda: m.fs.rename(ROOT_INODE, top.encode(), other, b"x" * 220, EXCHANGE))
        assert {key for key in driver.objects if not key.startswith("other/")} == before.keys() - {"other/f"}
        await m.fs.rename(ROOT_INODE, top.encode(), ROOT_INODE, b"e" * 199, 0)
        await m.drain()
        assert f"{'e' * 199}{DEEP[199:]}/{'n' * 24}" in driver.objects


async def test_content_that_is_not_in_the_store_yet_counts_as_well(tmp_path: Path) -> None:
    driver = placed(f"{DEEP}/f")
    top = b"d" * 199
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        await m.fs.symlink(await m.inode(DEEP), b"l" * 13, b"target", CALLER)
        await refused(lambda: m.fs.rename(ROOT_INODE, top, ROOT_INODE, b"e" * 200, 0))
        await m.drain()


@pytest.mark.expected_logs("can never be brought to the under-store")
async def test_what_an_earlier_version_left_is_kept_aside_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, file, empty = "l" * 245, f"{DEEP}/{'f' * 25}", f"{DEEP}/{'e' * 25}"

    async def life(m: Mount) -> FakeStore:
        user = User(m, {})
        await user.symlink(link, "where/it/leads")
        for path, data in ((file, b"what was written"), (empty, b"")):
            await user.create(path, data)
        await user.create("good", b"goes up")
        await m.fs.fsyncdir(ROOT_INODE)
        return snapshot(m, tmp_path / "b")

    with monkeypatch.context() as patched:
        patched.setattr(names, "too_long", lambda _key, _limits: None)
        async with mounted(tmp_path / "a", placed(f"{DEEP}/f"), Options(write_mode="async-through")) as m:
            driver = await life(m)
    options = Options(write_mode="async-through", beginning_s=BEGINNING_S + 1000)
    async with mounted(tmp_path / "b", driver, options) as m:
        assert m.outcome.refused == 3
        assert m.outcome.files == 1
        await m.drain()
        assert {path: what for path, what in (await seen(m)).items() if what} == {
            "good": (b"goes up", 0o644),
            f"{DEEP}/f": (b"content", 0o644),
        }
        assert m.recovered.count() == 2
        kept = sorted(path.read_bytes() for path in m.recovered.directory.iterdir())
        assert kept == [b"what was written", b"where/it/leads"]
    assert not [key for key in driver.objects if key.startswith("l") or "f" * 25 in key]
    async with mounted(tmp_path / "b", driver, options) as m:
        assert m.outcome.refused == 0
