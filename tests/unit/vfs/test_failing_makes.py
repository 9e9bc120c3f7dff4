"""What cannot be made, or opened for writing, is as it was before: no name, no held name, no removal that is forgotten."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.errors import StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, Options, mounted

Make = Callable[[Mount], Awaitable[object]]
CREATE = os.O_CREAT | os.O_WRONLY

pytestmark = [pytest.mark.expected_logs("journal cannot be written"), AWAY]


def create(flags: int) -> Make:
    return lambda m: m.kernel.create(m.fs, ROOT_INODE, b"new", 0o644, flags)


async def link(m: Mount) -> object:
    return await m.fs.link(await m.inode("local"), ROOT_INODE, b"new", CALLER)


MAKES: dict[str, Make] = {
    "create": create(CREATE),
    "create for reading": create(os.O_CREAT | os.O_RDONLY),
    "mknod": lambda m: m.fs.mknod(ROOT_INODE, b"new", stat.S_IFREG | 0o644, 0, CALLER),
    "mkdir": lambda m: m.fs.mkdir(ROOT_INODE, b"new", 0o755, CALLER),
    "symlink": lambda m: m.fs.symlink(ROOT_INODE, b"new", b"elsewhere", CALLER),
    "link": link,
}


def refused(code: int) -> Callable[..., object]:
    def refuse(*_: object) -> object:
        raise OSError(code, os.strerror(code))

    return refuse


def goes_away(m: Mount) -> None:
    m.driver.flaky(1.0, 1)
    m.store.presence.found_away(StoreUnavailable("down"))


def is_back(m: Mount) -> None:
    m.driver.flaky(0.0, 1)
    m.store.presence.answered()


async def removed_while_away(m: Mount) -> None:
    """Remove an object, which the store has not heard of, and promise that."""
    await m.entries()
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"local", 0o644, CREATE)
    await m.kernel.write(m.fs, handle, 0, b"of here")
    await m.kernel.release(m.fs, handle)
    await m.fs.unlink(ROOT_INODE, b"new")
    await m.fs.fsyncdir(ROOT_INODE)


@pytest.mark.parametrize("what", ["staging", "journal", "notes"])
@pytest.mark.parametrize("make", MAKES)
async def test_a_make_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, what: str
) -> None:
    """Nor does it forget that an object of that name was removed here."""
    driver = FakeStore()
    driver.place("new", b"old content")
    options = Options(write_mode="async-through", hardlinks="copy")
    async with mounted(tmp_path, driver, options) as m:
        await m.entries()
        goes_away(m)
        await removed_while_away(m)
        with monkeypatch.context() as patch:
            if what == "staging":
                patch.setattr(m.staging, "take", refused(errno.ENOSPC))
            elif what == "journal":
                patch.setattr(m.journal._file, "commit", refused(errno.EIO))
            else:
                patch.setattr(m.journal, "put_file", refused(errno.ENOSPC))
            try:
                made = await MAKES[make](m)
            except OSError as exc:
                assert exc.errno in (errno.ENOSPC, errno.EIO)  # noqa: PT017
                made = None
        if made is None:
            assert b"new" not in await m.entries()
            assert "new" in m.journal.deletes
        is_back(m)
        if isinstance(made, tuple):
            await m.kernel.release(m.fs, made[0])
        await m.drain()
        m.clock.advance(1000)
        there = await m.entries()
        assert (b"new" in there) == (made is not None)
        if made is None:
            assert sorted(driver.objects) == ["local"]
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"new", 0o644, CREATE | os.O_EXCL)
            await m.kernel.write(m.fs, handle, 0, b"once more")
            await m.kernel.release(m.fs, handle)
            await m.drain()
            assert driver.objects["new"][0] == b"once more"


@pytest.mark.parametrize("chmod", [False, True])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC])
async def test_an_open_that_fails_holds_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, chmod: bool
) -> None:
    """A change elsewhere is seen afterwards; attributes that were promised before go up."""
    driver = FakeStore()
    driver.place("f", b"old content" * 1000)
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        assert await m.read_all("f") == b"old content" * 1000
        if chmod:
            goes_away(m)
            await m.fs.setattr(await m.inode("f"), AttributeChanges(mode=0o600), None, CALLER)
            await m.fs.fsyncdir(ROOT_INODE)
        with monkeypatch.context() as patch:
            patch.setattr(m.staging, "take", refused(errno.ENOSPC))
            patch.setattr(m.staging, "adopt", refused(errno.ENOSPC))
            with pytest.raises(OSError, match="No space"):
                await m.kernel.open(m.fs, await m.inode("f"), flags)
        assert len(m.dirty) == chmod
        is_back(m)
        await m.drain()
        assert not len(m.dirty)
        if chmod:
            assert driver.objects["f"][3]["mode"] == "0100600"
        driver.place("f", b"from elsewhere")
        m.clock.advance(1000)
        assert await m.read_all("f") == b"from elsewhere"
