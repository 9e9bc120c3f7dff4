"""The files of one process of a storm, and the parts that its steps are made of."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.storm.calls import Calls, Failed, Settings
from tests.storm.record import Absent, Exactly, Record

SIZES = (0, 10, 4096, 5_000, 60_000, 200_000, 1_100_000)
BLOCK = 1 << 16


def content(seed: object, size: int) -> bytes:
    """Bytes that only this seed has."""
    return random.Random(str(seed)).randbytes(size)


def published(worker: int, serial: int, size: int) -> bytes:
    """A checkpoint, which says itself what it must be."""
    head = f"{worker} {serial} {size}\n".encode()
    return head + content(f"checkpoint {worker} {serial}", size)


def serial_of(data: bytes, worker: int) -> int | None:
    """The number of a checkpoint, None if it is not whole or another worker's."""
    head, _, _ = data.partition(b"\n")
    try:
        by, serial, size = map(int, head.split())
    except ValueError:
        return None
    return serial if by == worker and data == published(worker, serial, size) else None


def os_rename(old: str, new: str, *, dir_fd: int) -> None:
    """Rename below one directory."""
    os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


class Files:
    """Files of one directory."""

    def __init__(self, settings: Settings) -> None:
        self.s = settings
        self.rng = random.Random(f"{settings.seed} {settings.worker}")
        self.call = Calls(settings)
        self.record = Record()
        self.home = f"w{settings.worker}"
        self.steps = 0
        self.log: tuple[int, int, str, bytes] | None = None
        """A file that stays open for appending: descriptor, generation, name, what was synced."""

    def path(self, name: str) -> str:
        return f"{self.home}/{name}"

    def some(self) -> str | None:
        """A file of which all is known, and that is not the log."""
        names = [n for n in self.record.known() if self.log is None or n != self.log[2]]
        return self.rng.choice(names) if names else None

    def content(self) -> bytes:
        return content(f"{self.s.seed} {self.s.worker} {self.steps}", self.rng.choice(SIZES))

    def sync_directory(self, name: str) -> None:
        """Make the names of a directory durable."""
        fd = self.call("opendir", name, os.open, name or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.call.root)
        try:
            self.call("fsyncdir", name, os.fsync, fd)
        finally:
            os.close(fd)

    def names_changed(self) -> None:
        """A promise of names: with a keeper each call is one, else they are as they were when the directory was synced."""
        if not self.s.keeper or self.rng.random() < 0.2:
            self.sync_directory(self.home)

    def load(self, path: str, fine: tuple[int, ...] = (errno.ENOENT,)) -> bytes | None:
        """Read a whole file, None if there is none."""
        fd = self.call.at("open", path, os.open, os.O_RDONLY, fine=fine)
        if isinstance(fd, OSError):
            return None
        try:
            blocks = []
            while block := self.call("read", path, os.read, fd, 1 << 20):
                blocks.append(block)
            return b"".join(blocks)
        finally:
            self.close(fd, path, writing=False)

    def close(self, fd: int, path: str, *, writing: bool) -> None:
        if writing:
            self.call("close", path, os.close, fd)
        else:
            try:
                os.close(fd)
            except OSError:
                pass  # of a file that was only read, or of which a call has failed, it promises nothing

    @contextmanager
    def writing(self, path: str, flags: int) -> Iterator[int]:
        """Open a file for the block, and close it: what its close says counts, unless a call has failed already."""
        fd = self.call.at("open", path, os.open, flags, 0o644)
        try:
            yield fd
        except Failed:
            self.close(fd, path, writing=False)
            raise
        self.close(fd, path, writing=True)

    def put(self, path: str, data: bytes, flags: int) -> None:
        """Write a file, or to the end of one, and close it."""
        with self.writing(path, os.O_WRONLY | flags) as fd:
            self.write(fd, path, data)
            if self.rng.random() < 0.3:
                self.call("fsync", path, os.fsync, fd)

    def write(self, fd: int, path: str, data: bytes) -> None:
        while data:
            data = data[self.call("write", path, os.write, fd, data[:BLOCK]) :]

    def check(self, name: str) -> None:
        found = self.load(self.path(name))
        self.found(name, found)

    def found(self, name: str, found: bytes | None) -> None:
        """Compare what was read; what is wrong is told once."""
        if said := self.record.judge(name, found):
            self.call.wrong(f"step {self.steps}: {said}")
            self.record.may_be(name, Absent() if found is None else Exactly(found))
