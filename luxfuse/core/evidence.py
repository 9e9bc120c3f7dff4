"""Whether the objects of an under-store carry attributes of their own: mode, owner, times, as s3fs, rclone and we write.

A listing does not tell attributes. Where objects carry them, what a listing has told must not be shown first, as it would
change under a program that looks twice; where none does, a request for each of them would be for nothing. So a few
are asked for: `SAMPLE` in each directory that is looked at closely, until `ENOUGH` in all were asked for in vain. From then
on none is, until an answer that comes anyhow shows that there are such objects: then each directory is judged by itself.
"""

from __future__ import annotations

from collections import OrderedDict

SAMPLE = 4
ENOUGH = 16
SHARE = 16
"""A directory carries attributes if at least one in so many of its objects that are known does."""
DIRECTORIES_KEPT = 10_000


class Evidence:
    """The findings. ``in_vain`` and ``found`` outlive a mount: how many had none before the first had, and if one had."""

    def __init__(self, in_vain: int = 0, *, found: bool = False) -> None:
        self.in_vain = in_vain
        self.found = found
        self._directories: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """By inode: how many objects carry attributes, and how many do not."""

    def note(self, directory: int | None, *, carries: bool) -> bool:
        """Take an object into account; returns whether what outlives the mount has changed.

        ``directory``: its directory, None if that is not to be judged by it, because it was written here.
        """
        if directory is not None:
            with_them, without = self._directories.get(directory, (0, 0))
            self._directories[directory] = with_them + carries, without + (not carries)
            self._directories.move_to_end(directory)
            if len(self._directories) > DIRECTORIES_KEPT:
                self._directories.popitem(last=False)
        if self.found or (not carries and self.in_vain >= ENOUGH):
            return False
        self.found = carries
        self.in_vain += not carries
        return True

    @property
    def decided(self) -> bool:
        """Whether enough were asked for in vain: one more without attributes changes nothing of what is expected."""
        return not self.found and self.in_vain >= ENOUGH

    def expects(self, directory: int) -> bool | None:
        """Whether the objects of a directory are thought to carry attributes; None: some have to be asked for."""
        if self.decided:
            return False
        with_them, without = self._directories.get(directory, (0, 0))
        if with_them:
            return with_them * SHARE >= without
        return None if without < SAMPLE else False


class Ahead:
    """How many entries of a directory are asked for before anybody looks at them: more, the more are looked at."""

    def __init__(self) -> None:
        self._looks = 0
        self.budget = 0

    def looked(self) -> None:
        """An entry is looked at. A program that looks at one or two needs none ahead."""
        self._looks += 1
        self.budget = min(MOST_AHEAD, self.budget + min(AHEAD_A_LOOK, STEP * (self._looks - 1)))


STEP = 8
AHEAD_A_LOOK = 64
MOST_AHEAD = 512
