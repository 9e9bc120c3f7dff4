"""Small disks to be broken: ext4 on a loop device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
DISK_BYTES = 64 * MIB
SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, uint32 (fs/ext4/ext4.h): from then on all that is asked of the file system gives EIO."""
NO_LOG_FLUSH = 2


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[Callable[[], None]]:
    """A read-only view over a directory; the file system itself has our lock file open. Yields what lets it be written."""
    made = subprocess.run(["mount", "--bind", directory, directory], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no bind mounts here: {made.stderr.strip()}")

    def change(to: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{to},bind", directory], check=True, timeout=60)

    try:
        change("ro")
        yield lambda: change("rw")
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=60)


class Disk:
    """A small ext4 on a loop device."""

    def __init__(self, base: Path, size_bytes: int = DISK_BYTES) -> None:
        self.image, self.path = base / "image", base / "disk"
        self.path.mkdir()
        with self.image.open("wb") as f:
            f.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", self.image], check=True)

    def attach(self) -> None:
        done = subprocess.run(["mount", "-o", "loop", self.image, self.path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop devices here: {done.stderr.strip()}")

    def detach(self) -> None:
        """Take it away, whoever uses it."""
        subprocess.run(["umount", "-l", self.path], check=False, capture_output=True)

    @contextlib.contextmanager
    def attached(self) -> Iterator[Disk]:
        """Attach it for the block."""
        self.attach()
        try:
            yield self
        finally:
            self.detach()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block whatever writes to it waits, and cannot be interrupted."""
        subprocess.run(["fsfreeze", "--freeze", self.path], check=True, timeout=120)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", self.path], check=True, timeout=120)

    def fill_up(self) -> None:
        """Until nothing fits, even once the file system has given back what it had reserved for delayed writes."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (MIB, 4096, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
                with contextlib.suppress(OSError):  # what did not fit is not there
                    os.fsync(file.fileno())

    def make_room(self) -> None:
        (self.path / "ballast").unlink()

    def die(self) -> None:
        """Fail in everything from now on, until it is detached, as a disk that dropped off its bus."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)
