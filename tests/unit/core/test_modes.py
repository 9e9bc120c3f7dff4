"""Open modes, all cases and under any interleaving, against the rule that the kernel enforces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luxfuse.core.modes import OpenMode, decide

FLAGS = list(itertools.product([False, True], [0, 1, 5], [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("registered", "copied", "whole", "fetchable", "possible"), FLAGS)
def test_every_combination(registered: bool, copied: int, whole: bool, fetchable: bool, possible: bool) -> None:
    def ask() -> OpenMode:
        return decide(
            registered=registered, copied_opens=copied, whole=whole, fetchable=fetchable, passthrough_possible=possible
        )

    if registered and copied:
        with pytest.raises(AssertionError):
            ask()
        return
    mode = ask()
    assert (mode is OpenMode.JOIN) == registered
    assert (mode is OpenMode.PASSTHROUGH) == (not registered and not copied and possible and whole)
    assert (mode is OpenMode.FETCH) == (not registered and not copied and possible and not whole and fetchable)


class KernelInode:
    """fs/fuse/iomode.c for one inode."""

    def __init__(self) -> None:
        self.passthrough_opens = 0
        self.cached_opens = 0
        self.backing: int | None = None

    def open_passthrough(self, backing: int) -> None:
        assert self.cached_opens == 0, "EIO: passthrough while cached opens live"
        assert self.backing in (None, backing), "EIO: another backing file"
        self.backing = backing
        self.passthrough_opens += 1

    def open_cached(self) -> None:
        assert self.passthrough_opens == 0, "EIO: cached while passthrough opens live"
        self.cached_opens += 1

    def release_passthrough(self) -> None:
        self.passthrough_opens -= 1
        if self.passthrough_opens == 0:
            self.backing = None

    def release_cached(self) -> None:
        self.cached_opens -= 1


class Opener:
    """One open on its way, as `vfs.files` makes it: decide, perhaps wait, decide again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fetched = False
        self.waits_for: str | None = None
        self.mode: OpenMode | None = None

    def step(self) -> bool:
        """Go on as far as possible without waiting; True once open."""
        world = self.world
        if self.waits_for == "fetch":
            world.whole = world.whole or world.fetch_succeeds
        elif self.waits_for == "verify" and world.registered is None and not world.copied:
            world.next_backing += 1
            world.registered = world.next_backing
        mode = decide(
            registered=world.registered is not None,
            copied_opens=world.copied,
            whole=world.whole,
            fetchable=not self.fetched,
            passthrough_possible=world.possible,
        )
        if mode is OpenMode.JOIN:
            assert world.registered is not None
            world.kernel.open_passthrough(world.registered)
        elif mode is OpenMode.COPY:
            world.kernel.open_cached()
            world.copied += 1
        else:
            self.fetched = self.fetched or mode is OpenMode.FETCH
            self.waits_for = "fetch" if mode is OpenMode.FETCH else "verify"
            return False
        self.mode = mode
        return True


class World:
    def __init__(self) -> None:
        self.kernel = KernelInode()
        self.registered: int | None = None
        self.next_backing = 0
        self.copied = 0
        self.whole = False
        self.possible = True
        self.fetch_succeeds = True


ACTIONS = ["open", "open", "step", "step", "release", "whole", "evict", "retire", "flip", "fail"]


@settings(max_examples=200)
@given(st.data())
def test_any_interleaving_of_opens_and_releases_obeys_the_kernel(data: st.DataObject) -> None:
    world = World()
    opening: list[Opener] = []
    opened: list[Opener] = []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(ACTIONS))
        if action == "open":
            opener = Opener(world)
            (opened if opener.step() else opening).append(opener)
        elif action == "step" and opening:
            opener = opening.pop(data.draw(st.integers(0, len(opening) - 1)))
            (opened if opener.step() else opening).append(opener)
        elif action == "release" and opened:
            opener = opened.pop(data.draw(st.integers(0, len(opened) - 1)))
            if opener.mode is OpenMode.COPY:
                world.kernel.release_cached()
                world.copied -= 1
            else:
                world.kernel.release_passthrough()
        elif action == "whole":
            world.whole = True
        elif action == "evict" and not world.kernel.passthrough_opens:
            world.whole, world.registered = False, None
        elif action == "retire" and not world.kernel.passthrough_opens:
            world.registered = None
        elif action == "flip":
            world.possible = not world.possible
        elif action == "fail":
            world.fetch_succeeds = not world.fetch_succeeds
    for opener in opening:  # nobody waits for ever
        assert any(opener.step() for _ in range(4))
