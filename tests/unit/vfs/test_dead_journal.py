"""The disk of the journal dies: a change of names that fails is not seen, and one that is seen has not failed."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from tests.crash.lives import DEFAULT_MODE, Tree, User, moved, placed, seen, tree_of
from tests.support.fake_kernel import CALLER
from tests.support.harness import Mount, Options, mounted

BEFORE: Tree = {name: (name.encode() * 3000, DEFAULT_MODE) for name in ("a", "b", "c", "d")} | {
    "empty": None, "full": None, "full/x": (b"x", DEFAULT_MODE),
}  # fmt: skip
Act = Callable[[User], Awaitable[None]]

pytestmark = pytest.mark.expected_logs("journal cannot be written", "an exchange .* cannot be undone yet")


def dies(m: Mount) -> None:
    def dead(_changes: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    m.journal._file.commit = dead  # type: ignore[method-assign, assignment]


def is_back(m: Mount) -> None:
    del m.journal._file.commit


def without(*names: str) -> Tree:
    return {name: what for name, what in BEFORE.items() if name not in names}


async def rename(user: User, old: str, new: str, flags: int = 0) -> None:
    await user.m.fs.rename(*(await user.place(old)), *(await user.place(new)), flags)


ACTS: dict[str, tuple[Act, Tree]] = {
    "unlink": (lambda u: u.m.fs.unlink(ROOT_INODE, b"a"), without("a")),
    "unlink_dirty": (lambda u: u.m.fs.unlink(ROOT_INODE, b"b"), without("b")),
    "rmdir": (lambda u: u.m.fs.rmdir(ROOT_INODE, b"empty"), without("empty")),
    "rename": (lambda u: rename(u, "a", "c"), moved(BEFORE, "a", "c", exchange=False)),
    "rename_dirty": (lambda u: rename(u, "b", "c"), moved(BEFORE, "b", "c", exchange=False)),
    "rename_directory": (lambda u: rename(u, "full", "new"), moved(BEFORE, "full", "new", exchange=False)),
    "exchange": (lambda u: rename(u, "a", "c", 2), moved(BEFORE, "a", "c", exchange=True)),
}  # fmt: skip


async def attempt(act: Act, user: User) -> int:
    """Return its error, 0 if it was made."""
    try:
        await act(user)
    except OSError as exc:
        return exc.errno or -1
    return 0


async def remove_and_sync(user: User) -> None:
    await user.m.fs.unlink(ROOT_INODE, b"d")
    await user.m.fs.fsyncdir(ROOT_INODE)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ACTS)
async def test_what_is_seen_is_what_was_said(tmp_path: Path, name: str, known: bool) -> None:
    act, after = ACTS[name]
    driver = placed(without("b"))
    async with mounted(tmp_path, driver, Options(write_mode="async-through")) as m:
        await seen(m)
        user = User(m, without("b"))
        await user.create("b", b"b" * 3000)
        assert await seen(m) == BEFORE
        dies(m)
        if known:
            await user.m.fs.mkdir(ROOT_INODE, b"e", 0o755, CALLER)
            with pytest.raises(OSError, match="Input/output"):
                await m.fs.fsyncdir(ROOT_INODE)
        error = await attempt(act, user)
        assert error in ((errno.EIO,) if known else (0, errno.EIO))
        found = await seen(m)
        found.pop("e", None)
        assert found == (BEFORE if error else after)
        assert await attempt(remove_and_sync, user) == errno.EIO
        now = await seen(m)
        is_back(m)
        await m.drain()
        assert await seen(m) == now
        assert tree_of(driver) == now
