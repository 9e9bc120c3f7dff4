"""Random changes of a mounted tree, with evictions, remounts and kills in between, against plain Python objects.

Promises checked: what a program sees through any handle or path is what was written; errors are those of POSIX; a clean
remount changes nothing; after a kill everything is there that was closed or synced, with the names as they were when a
directory was synced; in the end the bucket holds the same tree, and nothing is left over here.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from luxfuse.cache import upload
from luxfuse.core import parts
from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import WriteMode
from luxfuse.vfs.attributes import AttributeChanges
from luxfuse.vfs.errors import Stale
from tests.crash.lives import Tree, explain, idle, tree_of
from tests.support.fake_kernel import CALLER, ref_of
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages, snapshot
from tests.support.seeds import seeds

NAMES = ["a", "b", "c"]
REMOTE = ["remote", "remote-2"]
SIZES = [0, 1, 700, 5000, 20_000, 20_000, pages(1), pages(2) + 17]
SECONDS = 5.0
"""How long one of the tests here may take; examples that come later pass unseen."""


SPECIAL = [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
EVERY = "file directory symlink special"


@dataclass(eq=False)
class Node:
    """A file, directory, symlink, or what is of this machine only: a FIFO, socket or device."""

    kind: str
    mode: int
    """Of a special file with its type."""
    data: bytes = b""
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, Node] = field(default_factory=dict)
    states: set[bytes] | None = None
    """Contents that a kill may leave, None while there is only one: all was closed or synced."""
    promised: bool = True
    """Whether the file was ever closed or synced."""

    def changed(self, data: bytes) -> None:
        self.states = {*(self.states or {self.data}), data}
        self.data = data

    def synced(self) -> None:
        self.states, self.promised = None, True


@dataclass
class Open:
    handle: int
    node: Node
    writing: bool
    truncated: bool = False
    """Whether it was opened with O_TRUNC: what is truncated while it is open is promised by its close."""


class Player:
    """Does the same to a mount and to the nodes."""

    def __init__(self, mount: Mount, rng: random.Random) -> None:
        self.m = mount
        self.rng = rng
        self.root = Node("directory", 0o755)
        self.open_files: list[Open] = []
        self.remote: dict[str, tuple[float, bytes]] = {}
        self.log: list[str] = []

    def place_objects(self) -> None:
        """Begin with what others have put into the bucket; its directory has no marker."""
        objects = {"a": b"theirs", "c/b": self.some_bytes(), "c/a": b""}
        for key, data in objects.items():
            self.m.driver.place(key, data)
        self.m.driver.place("b.rclonelink", b"a")
        below = {name: Node("file", 0o644, objects[f"c/{name}"]) for name in ("a", "b")}
        self.root.entries = {
            "a": Node("file", 0o644, b"theirs"), "b": Node("symlink", 0o777, target="a"),
            "c": Node("directory", 0o755, entries=below),
        }  # fmt: skip

    # -- choosing

    def paths(self, kinds: str = EVERY) -> list[str]:
        found = []

        def walk(node: Node, prefix: str) -> None:
            for name, child in node.entries.items():
                if child.kind in kinds:
                    found.append(prefix + name)
                walk(child, f"{prefix}{name}/")

        walk(self.root, "")
        return found

    def node(self, path: str) -> Node | None:
        node: Node | None = self.root
        for name in path.split("/") if path else []:
            node = node.entries.get(name) if node is not None else None
        return node

    def anywhere(self) -> str:
        """A path whose parent exists; there may be something or not."""
        parents = ["", *(p for p in self.paths("directory") if p.count("/") < 2)]
        return f"{self.rng.choice(parents)}/{self.rng.choice(NAMES)}".strip("/")

    def existing(self, kinds: str = EVERY) -> str | None:
        found = self.paths(kinds)
        return self.rng.choice(found) if found else None

    def split(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        parent = self.node(above)
        assert parent is not None
        return parent, name

    async def place(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return (await self.m.inode(above) if above else ROOT_INODE), name.encode()

    def some_bytes(self) -> bytes:
        return self.rng.randbytes(self.rng.choice(SIZES[1:]))

    async def expect(self, call: Callable[[], Awaitable[object]], *errors: int) -> object | None:
        """Make a call that is to fail with one of these errors, or to succeed if there is none."""
        wanted = [errno.errorcode[e] for e in errors]
        failure, result = None, None
        try:
            result = await call()
        except LuxError as exc:
            failure = exc
        if failure is not None:
            assert failure.errno in errors, f"{errno.errorcode[failure.errno]} ({failure}), not {wanted or 'success'}"
            return None
        assert not errors, f"success, not {wanted}"
        return result

    # -- files

    async def create(self) -> None:
        path = self.anywhere()
        parent, name = self.split(path)
        there = parent.entries.get(name)
        flags = self.rng.choice([0, 0, os.O_EXCL, os.O_TRUNC]) | self.rng.choice([os.O_RDWR, os.O_WRONLY, os.O_RDONLY])
        if there is not None and there.kind in ("symlink", "special"):
            return  # the kernel follows it, or opens it itself
        errors = []
        if there is not None:
            if flags & os.O_EXCL:
                errors = [errno.EEXIST]
            elif there.kind == "directory":
                errors = [errno.EISDIR]
        mode = self.rng.choice([0o644, 0o600])
        place = await self.place(path)
        opened = await self.expect(lambda: self.m.kernel.create(self.m.fs, *place, mode, flags | os.O_CREAT), *errors)
        if opened is None:
            return
        is_new = there is None
        if there is None:
            there = parent.entries[name] = Node("file", mode, promised=False, states={b""})
        elif flags & os.O_TRUNC:
            there.changed(b"")
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        truncated = not is_new and bool(flags & os.O_TRUNC)
        self.open_files.append(Open(opened[0], there, writing, truncated))  # type: ignore[index]

    async def open(self) -> None:
        path = self.existing("file")
        if path is None:
            return
        flags = self.rng.choice([os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC])
        node = self.node(path)
        assert node is not None
        handle = await self.m.kernel.open(self.m.fs, await self.m.inode(path), flags)
        if flags & os.O_TRUNC:
            node.changed(b"")
        self.open_files.append(Open(handle, node, flags & os.O_ACCMODE != os.O_RDONLY))

    def pick(self, *, writing: bool = False) -> Open | None:
        found = [o for o in self.open_files if o.writing or not writing]
        return self.rng.choice(found) if found else None

    async def write(self) -> None:
        o = self.pick(writing=True)
        if o is None:
            return
        size = len(o.node.data)
        offset = self.rng.choice([0, size, size, self.rng.randrange(size + 1), size + 3000])
        data = self.some_bytes()
        if offset + len(data) > pages(4):
            return
        await self.m.kernel.write(self.m.fs, o.handle, offset, data)
        old = o.node.data
        o.node.changed(old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :])

    async def read(self) -> None:
        o = self.pick()
        if o is not None:
            offset = self.rng.choice([0, 0, self.rng.randrange(len(o.node.data) + 1)])
            data = await self.m.kernel.read(self.m.fs, o.handle, offset, 1 << 20)
            assert data == o.node.data[offset : offset + (1 << 20)], "a handle reads something else than was written"

    async def fsync(self) -> None:
        o = self.pick(writing=True)
        if o is not None:
            await self.m.kernel.fsync(self.m.fs, o.handle)
            o.node.synced()

    async def close(self) -> None:
        o = self.pick()
        if o is not None:
            self.open_files.remove(o)
            await self.m.kernel.close(self.m.fs, o.handle)
            if o.writing:
                o.node.synced()

    async def truncate(self) -> None:
        path = self.existing("file directory")
        if path is None:
            return
        node = self.node(path)
        assert node is not None
        inode = await self.m.inode(path)
        size = self.rng.choice([0, len(node.data) // 2, len(node.data), len(node.data) + 5000])
        errors = [errno.EISDIR] if node.kind == "directory" else []
        await self.expect(lambda: self.set(inode, size=size), *errors)
        if not errors:
            node.changed(node.data[:size].ljust(size, b"\0"))
            if not any(o.node is node and (o.writing or o.truncated) for o in self.open_files):
                node.synced()

    async def ftruncate(self) -> None:
        o = self.pick(writing=True)
        if o is not None:
            size = self.rng.randrange(len(o.node.data) + 100)
            inode = self.inode_of(o)
            changes = AttributeChanges(None, None, None, size, None, None)
            await self.m.fs.setattr(inode, changes, ref_of(o.handle), CALLER)
            o.node.changed(o.node.data[:size].ljust(size, b"\0"))

    def inode_of(self, o: Open) -> int:
        ref = ref_of(o.handle)
        return ref.inode if ref.inode is not None else self.m.kernel.handles[o.handle]

    async def set(self, inode: int, **changes: int) -> None:
        every = {"mode": None, "uid": None, "gid": None, "size": None, "atime_ns": None, "mtime_ns": None}
        await self.m.fs.setattr(inode, AttributeChanges(**{**every, **changes}), None, CALLER)

    async def read_path(self) -> None:
        path = self.existing("file")
        if path is not None:
            node = self.node(path)
            assert node is not None
            assert await self.patiently(path) == node.data, f"{path} reads as something else than was written"

    async def patiently(self, path: str) -> bytes:
        for _ in range(20):
            try:
                return await self.m.read_all(path)
            except Stale:
                await trio.sleep(0.005)
        return await self.m.read_all(path)

    # -- names and attributes

    async def mkdir(self) -> None:
        path = self.anywhere()
        parent, name = self.split(path)
        place = await self.place(path)
        errors = [errno.EEXIST] if name in parent.entries else []
        await self.expect(lambda: self.m.fs.mkdir(*place, 0o755, CALLER), *errors)
        parent.entries.setdefault(name, Node("directory", 0o755))

    async def symlink(self) -> None:
        path = self.anywhere()
        parent, name = self.split(path)
        place, target = await self.place(path), self.rng.choice(["a", "../b", "x" * 200])
        errors = [errno.EEXIST] if name in parent.entries else []
        await self.expect(lambda: self.m.fs.symlink(*place, target.encode(), CALLER), *errors)
        parent.entries.setdefault(name, Node("symlink", 0o777, target=target))

    async def mknod(self) -> None:
        path = self.anywhere()
        parent, name = self.split(path)
        place, mode = await self.place(path), self.rng.choice(SPECIAL) | 0o644
        errors = [errno.EEXIST] if name in parent.entries else []
        await self.expect(lambda: self.m.fs.mknod(*place, mode, 0, CALLER), *errors)
        parent.entries.setdefault(name, Node("special", mode))

    async def unlink(self) -> None:
        path = self.existing() if self.rng.random() < 0.8 else self.anywhere()
        if path is None:
            return
        parent, name = self.split(path)
        node, place = parent.entries.get(name), await self.place(path)
        errors = [errno.ENOENT] if node is None else [errno.EISDIR] if node.kind == "directory" else []
        await self.expect(lambda: self.m.fs.unlink(*place), *errors)
        if not errors:
            del parent.entries[name]

    async def rmdir(self) -> None:
        path = self.existing("directory") if self.rng.random() < 0.8 else self.anywhere()
        if path is None:
            return
        parent, name = self.split(path)
        node, place = parent.entries.get(name), await self.place(path)
        errors = (
            [errno.ENOENT] if node is None else [errno.ENOTDIR] if node.kind != "directory"
            else [errno.ENOTEMPTY] if node.entries else []
        )  # fmt: skip
        await self.expect(lambda: self.m.fs.rmdir(*place), *errors)
        if not errors:
            del parent.entries[name]

    async def rename(self) -> None:
        path, new = self.existing(), self.anywhere()
        if path is None or (new + "/").startswith(path + "/") or (path + "/").startswith(new + "/"):
            return  # the kernel refuses it, or does nothing
        flags = self.rng.choice([0, 0, 0, 0, 1, 2, 4, 5])
        parent, name = self.split(path)
        new_parent, new_name = self.split(new)
        node, target = parent.entries[name], new_parent.entries.get(new_name)
        errors = []
        if flags == 2:
            errors = [] if target is not None else [errno.ENOENT]
        elif target is not None:
            if flags & 1:
                errors = [errno.EEXIST]
            elif target.kind == "directory" and node.kind != "directory":
                errors = [errno.EISDIR]
            elif target.kind != "directory" and node.kind == "directory":
                errors = [errno.ENOTDIR]
            elif target.entries:
                errors = [errno.ENOTEMPTY]
        places = [*await self.place(path), *await self.place(new)]
        await self.expect(lambda: self.m.fs.rename(*places, flags), *errors)  # type: ignore[arg-type]
        if errors:
            return
        del parent.entries[name]
        new_parent.entries[new_name] = node
        if flags == 2:
            assert target is not None
            parent.entries[name] = target
        elif flags & 4:
            parent.entries[name] = Node("special", stat.S_IFCHR)

    async def chmod(self) -> None:
        path = self.existing("file directory special")
        if path is not None:
            node = self.node(path)
            assert node is not None
            mode = self.rng.choice([0o600, 0o640, 0o755])
            await self.set(await self.m.inode(path), mode=mode)
            node.mode = mode | stat.S_IFMT(node.mode)

    async def set_xattr(self) -> None:
        path = self.existing("file directory")
        if path is not None:
            node = self.node(path)
            assert node is not None
            inode, name = await self.m.inode(path), self.rng.choice(["user.x", "user.y"])
            if name in node.xattrs and self.rng.random() < 0.5:
                await self.m.fs.xattrs.remove(inode, name.encode())
                del node.xattrs[name]
            else:
                node.xattrs[name] = self.rng.randbytes(10)
                await self.m.fs.xattrs.set(inode, name.encode(), node.xattrs[name])

    # -- looking

    async def look(self, path: str, node: Node) -> None:
        """Compare one name with its node."""
        found = await self.m.kernel.getattr(self.m.fs, await self.m.inode(path))
        kinds = {stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFREG: "file"}
        assert kinds.get(stat.S_IFMT(found.mode), "special") == node.kind, path
        if node.kind == "symlink":
            assert (await self.m.fs.readlink(found.inode)).decode() == node.target
            return
        mode = found.mode if node.kind == "special" else stat.S_IMODE(found.mode)
        assert mode == node.mode, f"{path} has mode {mode:o}, not {node.mode:o}"
        if node.kind == "special":
            return
        for name in ("user.x", "user.y"):
            errors = [] if name in node.xattrs else [errno.ENODATA]
            value = await self.expect(lambda name=name: self.m.fs.xattrs.get(found.inode, name.encode()), *errors)
            assert value == node.xattrs.get(name), f"{path} has another {name}"
        if node.kind == "file":
            assert found.size == len(node.data), f"{path} has size {found.size}, not {len(node.data)}"
        else:
            below = {n.decode() for n in await self.m.entries(path)}
            assert below == set(node.entries), f"{path} lists {sorted(below)}, not {sorted(node.entries)}"

    async def look_at_one(self) -> None:
        path = self.existing()
        if path is not None:
            node = self.node(path)
            assert node is not None
            await self.look(path, node)

    async def look_at_all(self) -> None:
        shown = {n.decode() for n in await self.m.entries()} - set(REMOTE)
        assert shown == set(self.root.entries), f"the root lists {sorted(shown)}, not {sorted(self.root.entries)}"
        for path in self.paths():
            node = self.node(path)
            assert node is not None
            await self.look(path, node)
            if node.kind == "file":
                assert await self.patiently(path) == node.data, f"{path} reads as something else than was written"

    # -- what happens around

    async def wait(self) -> None:
        self.m.clock.advance(self.rng.choice([1, 61, 61]))
        for backing in self.m.kernel.table.values():
            backing.fresh = False

    async def remote_change(self) -> None:
        key, data = self.rng.choice(REMOTE), self.some_bytes()
        self.m.driver.place(key, data)
        self.m.clock.advance(61)
        for backing in self.m.kernel.table.values():
            backing.fresh = False
        assert await self.m.read_all(key) == data

    async def evict(self) -> None:
        async with self.m.space._evicting:
            await self.m.space._evict(pages(3))

    async def drain(self) -> None:
        if self.rng.random() < 0.5:
            await trio.sleep(0.01)
        else:
            self.m.writeback.hurry()
            await trio.sleep(0.02)

    async def close_all(self) -> None:
        for o in self.open_files:
            await self.m.kernel.close(self.m.fs, o.handle)
            if o.writing:
                o.node.synced()
        self.open_files = []

    async def accept(self) -> None:
        """After a kill: each content that nothing was promised of may be any of those that it went through."""
        self.open_files = []
        for path in self.paths("file"):
            node = self.node(path)
            assert node is not None
            if node.promised and node.states is None:
                continue
            parent, name = self.split(path)
            try:
                inode = await self.m.inode(path)
            except LuxError:
                assert not node.promised, f"{path} is gone, though it was closed or synced"
                del parent.entries[name]
                continue
            data = await self.patiently(path)
            if node.promised:
                assert node.states is not None
                assert data in node.states, f"{path} has a content that it never had"
            node.data, node.mode = data, stat.S_IMODE((await self.m.fs.getattr(inode)).mode)
            node.xattrs = {
                n.decode(): await self.m.fs.xattrs.get(inode, n)
                for n in await self.m.fs.xattrs.names(inode)
            }  # fmt: skip
            node.synced()

    def check_bucket(self) -> None:
        """The bucket holds the same tree, but what is of this machine only."""
        bucket = {path: what for path, what in tree_of(self.m.driver).items() if path not in REMOTE}
        wanted: Tree = {
            path: None if node.kind == "directory" else node.target if node.kind == "symlink" else (node.data, node.mode)
            for path in self.paths("file directory symlink") if (node := self.node(path)) is not None
        }  # fmt: skip
        if self.pushes:
            assert bucket == wanted, explain("the bucket at the end", bucket, [wanted])
        ghosts = [path for path, what in bucket.items() if path not in wanted or type(what) is not type(wanted[path])]
        assert not ghosts, f"removed, and still in the bucket: {ghosts}"

    async def end(self) -> None:
        await self.close_all()
        await self.look_at_all()
        await self.m.drain()
        self.check_bucket()
        for path in self.paths("special"):  # is all that it stood in for gone, too?
            await self.m.fs.unlink(*await self.place(path))
            parent, name = self.split(path)
            del parent.entries[name]
        await self.look_at_all()
        await self.m.drain()
        self.check_bucket()
        if self.pushes:
            await idle(self.m)
            assert self.m.space.staged_bytes == 0
        assert not self.m.driver.uploads
        assert self.m.recovered.count() == 0 or self.killed, "a conflict with ourselves"
        assert not self.m.files.copied._handles
        assert not self.m.files.copied._inodes

    @property
    def pushes(self) -> bool:
        """Whether what is changed here goes to the store."""
        return self.m.writing.notes.mode_of("a") is not WriteMode.MUST_CACHE

    killed = False


ACTIONS = (
    ["create"] * 5
    + ["open"] * 3
    + ["write"] * 6
    + ["read"] * 3
    + ["close"] * 4
    + ["fsync", "truncate", "ftruncate"]
    + ["read_path"] * 3
    + ["mkdir"] * 3
    + ["symlink", "unlink", "unlink", "rmdir", "mknod"]
    + ["rename"] * 4
    + ["chmod", "set_xattr", "look_at_one", "look_at_all", "wait", "remote_change", "evict", "drain", "drain"]
)
CHANGES_OF_NAMES = (
    ["rename"] * 10
    + ["create"] * 4
    + ["mknod"] * 4
    + ["unlink"] * 4
    + ["mkdir", "symlink", "write", "close"] * 3
    + ["open", "drain", "rmdir"] * 2
    + ["fsync", "truncate", "chmod", "set_xattr", "read_path", "look_at_one"]
    + ["look_at_all", "evict", "wait"]
)
"""Kinds against each other: renames over what is there, exchanges, what is made where something was removed."""
ENDS = ["remount", "kill"]
"""Of one life; another one follows."""


async def play(path: Path, lives: list[tuple[list[str], str]], rng: random.Random, o: Options) -> None:
    driver = FakeStore()
    player: Player | None = None
    for number, (actions, end) in enumerate(lives):
        o.beginning_s = BEGINNING_S + 1000 * number
        async with mounted(path, driver, o) as m:
            if player is None:
                player = Player(m, rng)
                if rng.random() < 0.5:
                    player.place_objects()
            player.m = m
            await player.accept()
            await player.look_at_all()
            for action in actions:
                player.log.append(action)
                m.clock.advance(0.001)
                await getattr(player, action)()
            player.log.append(end)
            if end == "kill" and number < len(lives) - 1:
                await m.fs.fsyncdir(ROOT_INODE)
                path = path.with_name(f"life-{number + 1}")
                driver = snapshot(m, path)
                player.killed = True
                # What is open dies with this life, whose end concerns nobody any more.
                for o_ in player.open_files:
                    if o_.writing:  # what was said of its mode goes with the content, and so at the next close
                        o_.node.states = o_.node.states or {o_.node.data}
                    await m.kernel.release(m.fs, o_.handle)
            elif number < len(lives) - 1:
                await player.close_all()
            else:
                await player.end()


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SINGLE_BYTES", pages(2))
    monkeypatch.setattr(parts, "PART_BYTES", pages(1))
    monkeypatch.setattr(parts, "LEAST_PART_BYTES", pages(1))


class Limit:
    """Lets examples pass unseen once the time is over, unless one has failed: its like are then looked for."""

    def __init__(self) -> None:
        self.end_s = time.monotonic() + SECONDS
        self.failed = False

    @property
    def over(self) -> bool:
        return not self.failed and time.monotonic() > self.end_s


@pytest.fixture
def limit() -> Limit:
    return Limit()


model = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, report_multiple_bugs=False
)
several_lives = st.lists(
    st.tuples(st.lists(st.sampled_from(ACTIONS), min_size=5, max_size=40), st.sampled_from(ENDS)), min_size=1, max_size=3
)


@pytest.mark.expected_logs("was being written when the last run ended", "is gone; fetching it again")
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
@model
@given(lives=several_lives, seed=st.integers(0, 2**32))
def test_a_tree_that_is_written_to(
    limit: Limit, mode: str, passthrough: bool, lives: list[tuple[list[str], str]], seed: int
) -> None:
    if limit.over:
        return
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    options = Options(
        capacity_bytes=pages(24),
        whole_file_bytes=pages(2),
        write_mode=mode,
        passthrough=passthrough,  # type: ignore[arg-type]
        metadata_ttl_s=60.0,
    )
    note(f"seed {seed}")
    try:
        trio.run(play, base / "life-0", lives, random.Random(seed), options)
    except BaseException:
        limit.failed = True
        raise
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def _played(base: Path, mode: str, seed: int) -> None:
    rng = random.Random(seed)
    lives = [
        ([rng.choice(CHANGES_OF_NAMES) for _ in range(rng.randrange(5, 45))], rng.choice(ENDS))
        for _ in range(rng.randrange(1, 4))
    ]
    options = Options(
        capacity_bytes=pages(24),
        whole_file_bytes=pages(2),
        write_mode=mode,
        passthrough=rng.random() < 0.5,  # type: ignore[arg-type]
        metadata_ttl_s=60.0,
    )
    await play(base / f"life-{seed}-0", lives, rng, options)


@pytest.mark.expected_logs("was being written when the last run ended", "is gone; fetching it again", "finishing the")
@pytest.mark.parametrize("plays", [15, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(WriteMode))
def test_kinds_against_each_other(mode: WriteMode, plays: int) -> None:
    """Files, directories, symlinks, FIFOs, sockets and devices take each other's names, in all write modes."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        for seed in seeds(plays):
            print(f"LUXFUSE_SEED={seed}")
            trio.run(_played, base, mode, seed)
            shutil.rmtree(base)
            base.mkdir()
    finally:
        shutil.rmtree(base, ignore_errors=True)
