"""Random operations on a mounted tree while the bucket changes behind its back, against a plain history of the bucket.

Promises checked: what is seen (names, listings, bytes) was true at some instant of the last ``metadata_ttl``; every
read returns bytes of one single version; an open handle keeps its version or says that it is stale; an outage is
never an absence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luxfuse.errors import StoreUnavailable
from luxfuse.vfs.errors import NoSuchName, NotADirectory, Stale
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages

KEYS = ["a", "b1", "b2", "d/x", "d/y", "d/e/z"]
TTL_S = 60.0
NEGATIVE_TTL_S = 5.0
TIMEOUT_S, OUTAGE_TIMEOUT_S = 30.0, 0.1
SIZES = [0, 1, 5000, pages(1), pages(2) + 17, pages(3)]


@dataclass
class History:
    """Every content that a key ever had, with the time from which it had it; None: absent."""

    driver: FakeStore
    contents: dict[str, list[tuple[float, bytes | None]]] = field(
        default_factory=lambda: {key: [(0.0, None)] for key in KEYS}
    )

    def put(self, key: str, data: bytes, now_s: float) -> None:
        self.driver.place(key, data)
        self.contents[key].append((now_s, data))

    def delete(self, key: str, now_s: float) -> None:
        if key in self.driver.objects:
            self.driver.remove(key)
            self.contents[key].append((now_s, None))

    def possible(self, key: str, since_s: float) -> list[bytes | None]:
        """What the key held at some instant since then."""
        states = self.contents[key]
        return [
            content
            for (begin, content), (end, _) in zip(states, [*states[1:], (float("inf"), None)], strict=True)
            if end > since_s
        ]

    def may_exist(self, path: str, since_s: float) -> bool:
        return any(
            content is not None
            for key in KEYS
            if key == path or key.startswith(path + "/")
            for content in self.possible(key, since_s)
        )

    def may_be_absent(self, path: str, since_s: float) -> bool:
        """Whether every key at or below the path may have been absent at one instant: at its changes, or now."""
        keys = [key for key in KEYS if key == path or key.startswith(path + "/")]
        instants = {since_s} | {when for key in keys for when, _ in self.contents[key] if when >= since_s}
        return any(all(self.at(key, when) is None for key in keys) for when in instants)

    def at(self, key: str, when_s: float) -> bytes | None:
        return next(content for begin, content in reversed(self.contents[key]) if begin <= when_s)


class Player:
    """Applies operations to a mount and checks each against the history."""

    def __init__(self, mount: Mount, history: History, rng: random.Random, ttl_s: float) -> None:
        self.m = mount
        self.h = history
        self.rng = rng
        self.ttl_s = ttl_s
        self.handles: list[tuple[int, bytes]] = []
        self.outage = False

    @property
    def now_s(self) -> float:
        return self.m.clock.now_s

    def since_s(self, ttl_s: float | None = None) -> float:
        return self.now_s - (self.ttl_s if ttl_s is None else ttl_s) - 0.5

    async def play(self, action: str) -> None:
        self.m.clock.advance(0.001)
        key = self.rng.choice(KEYS)
        try:
            await getattr(self, action)(key)
        except StoreUnavailable:
            assert self.outage, "unavailable without an outage"

    async def put(self, key: str) -> None:
        self.h.put(key, self.rng.randbytes(self.rng.choice(SIZES)), self.now_s)

    async def delete(self, key: str) -> None:
        self.h.delete(key, self.now_s)

    async def wait(self, _key: str) -> None:
        self.m.clock.advance(self.rng.choice([0.1, 6, 30, 61, 61]))
        for backing in self.m.kernel.table.values():
            backing.fresh = False

    async def look_up(self, key: str) -> None:
        try:
            stat = await self.m.kernel.getattr(self.m.fs, await self.m.inode(key))
        except NoSuchName:
            if not self.outage:
                assert self.absent_as_path(key), f"{key} is not found, though it was there all the time"
        except Stale:
            pass  # replaced between the two questions
        else:
            if not self.outage:
                sizes = {len(content) for content in self.h.possible(key, self.since_s()) if content is not None}
                assert stat.size in sizes, f"{key} has a size of no version of the last {self.ttl_s} s"

    def absent_as_path(self, key: str) -> bool:
        # Each name on the way is answered for from its own instant.
        parts = key.split("/")
        return any(self.h.may_be_absent("/".join(parts[:n]), self.since_s()) for n in range(1, len(parts) + 1))

    async def read(self, key: str) -> None:
        try:
            data = await self.m.read_all(key)
        except NoSuchName:
            if not self.outage:
                assert self.absent_as_path(key)
        except Stale:
            # Within the ttl an expired version can meet a store that no longer has it.
            assert len(self.h.contents[key]) > 2 or self.absent_as_path(key)
        else:
            window = 0.0 if self.outage else self.since_s()
            assert data in self.h.possible(key, window), f"{key}: bytes of no version of the last {self.ttl_s} s"

    async def open(self, key: str) -> None:
        try:
            handle = await self.m.open(key)
        except (NoSuchName, Stale):
            return
        try:
            data = await self.m.kernel.read_all(self.m.fs, handle)
        except Stale:
            await self.m.kernel.release(self.m.fs, handle)
            return
        except StoreUnavailable:
            await self.m.kernel.release(self.m.fs, handle)
            raise
        assert data in [content for _, content in self.h.contents[key]]
        self.handles.append((handle, data))

    async def read_open(self, _key: str) -> None:
        if self.handles:
            handle, data = self.rng.choice(self.handles)
            try:
                assert await self.m.kernel.read_all(self.m.fs, handle) == data, "an open handle changed its version"
            except Stale:
                assert not self.m.kernel.is_passthrough(handle)

    async def close(self, _key: str) -> None:
        if self.handles:
            handle, _ = self.handles.pop(self.rng.randrange(len(self.handles)))
            await self.m.kernel.release(self.m.fs, handle)

    async def list(self, key: str) -> None:
        path = self.rng.choice(["", "d", "d/e"])
        try:
            entries = await self.m.entries(path)
        except (NoSuchName, NotADirectory, Stale):
            if not self.outage:
                assert path
                assert self.absent_as_path(path)
            return
        if self.outage:
            return
        names = {key[len(path) :].strip("/").split("/")[0] for key in KEYS if not path or key.startswith(path + "/")}
        assert {name.decode() for name in entries} <= names
        for name in names:
            below = f"{path}/{name}".strip("/")
            if name.encode() in entries:
                assert self.h.may_exist(below, self.since_s()), f"{below} is listed, long after it went"
            else:
                assert self.h.may_be_absent(below, self.since_s()), f"{below} is not listed, though it was there"

    async def refresh(self, key: str) -> None:
        path = self.rng.choice([key, "d", ""])
        try:
            await self.m.fs.refresh(path)
        except (NoSuchName, Stale):
            return
        if path == key and not self.outage:
            data = await self.m.read_all(key)
            assert data == self.h.at(key, self.now_s), "refreshed, and still not the newest"

    async def evict(self, _key: str) -> None:
        async with self.m.space._evicting:
            await self.m.space._evict(pages(2))

    async def fail(self, _key: str) -> None:
        if self.outage:
            self.m.driver.flaky(0.0, 1)
            self.m.store._timeout_s = TIMEOUT_S
            await self.m.store.probe()
            self.m.clock.advance(self.ttl_s + 1)  # what was served stale has to be asked for again
        else:
            self.m.driver.flaky(1.0, 1)
            self.m.store._timeout_s = OUTAGE_TIMEOUT_S
        self.outage = not self.outage


ACTIONS = (
    ["put"] * 4
    + ["delete"] * 2
    + ["wait"] * 3
    + ["look_up"] * 4
    + ["read"] * 4
    + ["list"] * 3
    + ["open"] * 2
    + ["read_open", "close", "refresh", "evict"]
)


def run(path: Path, actions: list[str], seed: int, **changes: object) -> None:
    driver = FakeStore()
    rng = random.Random(seed)
    options = Options(
        capacity_bytes=pages(6), whole_file_bytes=pages(2), metadata_ttl_s=TTL_S, negative_ttl_s=NEGATIVE_TTL_S
    )

    async def main() -> None:
        async with mounted(path, driver, options, **changes) as m:
            player = Player(m, History(driver), rng, options.metadata_ttl_s)
            for key in KEYS[::2]:
                player.h.put(key, rng.randbytes(rng.choice(SIZES)), BEGINNING_S - 1000)
            for action in actions:
                await player.play(action)
            if player.outage:
                driver.flaky(0.0, 1)
            for handle, _ in player.handles:
                await m.kernel.release(m.fs, handle)
            assert not m.files.copied._handles
            assert not m.files.copied._inodes

    trio.run(main)


model = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@model
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=15, max_size=60), seed=st.integers(0, 2**32))
def test_a_tree_that_changes_behind_the_back(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], seed: int
) -> None:
    run(tmp_path_factory.mktemp("tree"), actions, seed)


@settings(model, max_examples=20)
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=15, max_size=40), seed=st.integers(0, 2**32))
def test_a_tree_without_passthrough_and_ttl(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], seed: int
) -> None:
    run(tmp_path_factory.mktemp("tree"), actions, seed, passthrough=False, metadata_ttl_s=0.0, negative_ttl_s=0.0)


@settings(model, max_examples=20)
@given(actions=st.lists(st.sampled_from([*ACTIONS, "fail", "fail"]), min_size=15, max_size=40), seed=st.integers(0, 2**32))
def test_a_tree_over_outages(tmp_path_factory: pytest.TempPathFactory, actions: list[str], seed: int) -> None:
    run(tmp_path_factory.mktemp("tree"), actions, seed)
