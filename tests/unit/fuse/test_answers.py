"""The table of answers in the extension beside a dictionary. The lanes' part is in `test_lane_sanitized`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from luxfuse.fuse.lowlevel import passthrough

DIRECTORIES = range(1 << 41, (1 << 41) + 4)
NAMES = [b"a", b"b", b"a-longer-name", b"\xff", b"n" * 255]
STEPS = 20_000
LATER_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def nothing_offered() -> Iterator[None]:
    """What is left is taken out with the directory's other names."""
    yield
    for directory in DIRECTORIES:
        for name in NAMES:
            passthrough.revoke(directory, name)
    assert passthrough.statistics()["answers"] == passthrough.statistics()["answers_bytes"] == 0


def offer(parent: int, name: bytes, ino: int, *, valid_ns: int = LATER_NS, mtime_ns: int = 0, ahead: bool = False) -> bool:
    until_ns = time.monotonic_ns() + valid_ns
    return passthrough.offer(parent, name, ino, 0o100644, 0, 0, 0, 3, 8, mtime_ns, 0, 0, until_ns, False, ahead)


class Model:
    """Each name with its inode; an inode has one name."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, bytes], int] = {}

    def forget(self, *, inode: int | None = None, directory: int | None = None) -> None:
        self.names = {k: v for k, v in self.names.items() if v != inode and k[0] != directory}

    def step(self, rng: random.Random) -> None:
        parent, name, inode = rng.choice(DIRECTORIES), rng.choice(NAMES), rng.randrange(1, 12)
        match rng.randrange(20):
            case 0:
                passthrough.revoke_below(parent)
                self.forget(directory=parent)
            case 1 if rng.randrange(20) == 0:
                passthrough.revoke_all()
                self.names.clear()
            case 2 | 3:
                passthrough.revoke_inode(inode)
                self.forget(inode=inode)
            case 4 | 5 | 6:
                passthrough.revoke(parent, name)
                self.names.pop((parent, name), None)
            case 7:
                assert offer(parent, name, inode, valid_ns=-1), "there is room"
                self.forget(inode=inode)
                self.names.pop((parent, name), None)
            case _:
                assert offer(parent, name, inode, ahead=rng.random() < 0.5), "there is room"
                self.forget(inode=inode)
                self.names[parent, name] = inode


def test_names_are_there_until_they_are_revoked() -> None:
    rng, model = random.Random(7), Model()
    for _ in range(STEPS):
        model.step(rng)
        parent, name = rng.choice(DIRECTORIES), rng.choice(NAMES)
        assert passthrough.knows(parent, name) == ((parent, name) in model.names)
    for directory in DIRECTORIES:
        for name in NAMES:
            assert passthrough.knows(directory, name) == ((directory, name) in model.names)


def test_names_hold_for_as_long_as_was_said() -> None:
    assert offer(DIRECTORIES[0], b"a", 5, valid_ns=20_000_000)
    time.sleep(0.03)
    assert not passthrough.knows(DIRECTORIES[0], b"a")


def test_times_before_the_epoch_go_to_python() -> None:
    assert offer(DIRECTORIES[0], b"a", 5)
    assert not offer(DIRECTORIES[0], b"a", 5, mtime_ns=-1)
    assert not passthrough.knows(DIRECTORIES[0], b"a"), "what was said before does not count either"


def test_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="a name of 65536 bytes"):
        offer(DIRECTORIES[0], b"n" * 65536, 5)


KNOWN = DIRECTORIES[0]


def offer_missing(names: list[bytes] | None, *, valid_ns: int = LATER_NS, directory: int = KNOWN) -> bool:
    now_ns = time.monotonic_ns()
    return passthrough.offer_missing(directory, now_ns + valid_ns, now_ns + 2 * valid_ns, names)


def known() -> tuple[int, int]:
    counts = passthrough.statistics()
    return counts["known_directories"], counts["known_directories_bytes"]


def test_directories_are_known_until_they_are_revoked() -> None:
    assert not offer_missing(None), "its names were not given"
    assert offer_missing([])
    assert offer_missing([b"a", b"a-longer-name"])
    assert offer_missing(None)
    assert offer_missing([b"%d" % number for number in range(1000)], directory=DIRECTORIES[1])
    assert known()[0] == 2
    passthrough.revoke_missing(KNOWN)
    assert not offer_missing(None)
    assert offer_missing(None, directory=DIRECTORIES[1])
    passthrough.revoke_below(DIRECTORIES[1])
    assert known() == (0, 0)
    assert offer_missing([b"a"])
    passthrough.revoke_all()
    assert known() == (0, 0)


def test_a_directory_of_too_many_names_is_not_known() -> None:
    assert not offer_missing([b"%d" % number for number in range(20_000)])
    assert offer_missing([])
    for number in range(20_000):
        passthrough.revoke(KNOWN, b"%d" % number)
    assert known() == (0, 0)


def test_names_are_bytes() -> None:
    with pytest.raises(TypeError, match="expected bytes"):
        passthrough.offer_missing(KNOWN, 0, 0, ["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a sequence of bytes, or None"):
        passthrough.offer_missing(KNOWN, 0, 0, 5)  # type: ignore[arg-type]
    assert known() == (0, 0)
