"""A process that works on a mount and keeps its own record of what it was told, for storms of kills.

    storm.py DIRECTORY SEED SECONDS

It makes, overwrites, appends to, renames, lists and removes files below DIRECTORY, which is its own, and compares all that
it reads with its record. It ends with 0, and the record as JSON on stdout, or with the first mistake on stderr.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path


class Worker:
    """One worker. ``known``: the content of each file."""

    def __init__(self, directory: Path, seed: str, seconds: float) -> None:
        self.directory = directory
        self.rng = random.Random(seed)
        self.known: dict[str, bytes] = {}
        self.give_up_at = time.monotonic() + seconds
        self.steps = 0
        self.held: list[tuple[int, bytes]] = []
        """Open files with their content, whatever has become of their names."""

    def run(self) -> None:
        """Work until the time is over."""
        self.directory.mkdir()
        choices = (
            self.make, self.make, self.overwrite, self.append, self.change, self.rename, self.remove, self.read, self.list,
            self.hold, self.look_at_held, self.directories, self.links, self.map,
        )  # fmt: skip
        while time.monotonic() < self.give_up_at:
            step = self.rng.choice(choices)
            try:
                step()
            except OSError as exc:
                raise AssertionError(f"step {self.steps}, {step.__name__}: {exc}") from exc
            self.steps += 1
        while self.held:
            self.look_at_held()
        self.list()
        for name in self.known:
            self.check(name)

    def some(self) -> str | None:
        """A file that there is."""
        return self.rng.choice(sorted(self.known)) if self.known else None

    def content(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 10, 5_000, 200_000)))

    def write(self, name: str, data: bytes, mode: str) -> None:
        with (self.directory / name).open(mode) as file:
            half = len(data) // 2
            file.write(data[:half])
            if self.rng.random() < 0.3:
                time.sleep(0.05)
            file.write(data[half:])
            if self.rng.random() < 0.3:
                file.flush()
                os.fsync(file.fileno())

    def make(self) -> None:
        if len(self.known) < 40:
            name, data = f"f{self.steps}", self.content()
            self.write(name, data, "xb")
            self.known[name] = data

    def overwrite(self) -> None:
        if name := self.some():
            data = self.content()
            self.write(name, data, "wb")
            self.known[name] = data

    def append(self) -> None:
        if name := self.some():
            data = self.content()
            self.write(name, data, "ab")
            self.known[name] += data

    def change(self) -> None:
        name = self.some()
        if name and len(self.known[name]) > 100:
            at = self.rng.randrange(len(self.known[name]) - 50)
            with (self.directory / name).open("r+b") as file:
                file.seek(at)
                file.write(b"x" * 50)
            self.known[name] = self.known[name][:at] + b"x" * 50 + self.known[name][at + 50 :]

    def rename(self) -> None:
        if name := self.some():
            new = self.some() if self.rng.random() < 0.3 else f"r{self.steps}"
            assert new is not None
            (self.directory / name).rename(self.directory / new)
            self.known[new] = self.known.pop(name)

    def remove(self) -> None:
        if len(self.known) > 20 and (name := self.some()):
            (self.directory / name).unlink()
            del self.known[name]
            assert not (self.directory / name).exists(), f"{name} is there after it was removed"

    def check(self, name: str) -> None:
        found = (self.directory / name).read_bytes()
        wanted = self.known[name]
        assert found == wanted, f"step {self.steps}: {name} has {len(found)} bytes, not the known {len(wanted)}"

    def read(self) -> None:
        if name := self.some():
            self.check(name)

    def list(self) -> None:
        found = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_file())
        assert found == sorted(self.known), f"step {self.steps}: listed {set(found) ^ set(self.known)}"

    def hold(self) -> None:
        if len(self.held) < 5 and (name := self.some()):
            self.held.append((os.open(self.directory / name, os.O_RDONLY), self.known[name]))
            # Its content is to stay what it is: so the file is not written to any more.
            data = self.known.pop(name)
            (self.directory / name).unlink()
            self.held[-1] = (self.held[-1][0], data)

    def look_at_held(self) -> None:
        if self.held:
            fd, data = self.held.pop(self.rng.randrange(len(self.held)))
            found = os.pread(fd, len(data) + 1, 0)
            assert found == data, f"step {self.steps}: an open file has {len(found)} bytes, not the {len(data)} that it had"
            os.close(fd)

    def directories(self) -> None:
        name = self.directory / f"d{self.steps}"
        name.mkdir()
        (name / "file").write_bytes(b"content")
        moved = self.directory / f"m{self.steps}"
        name.rename(moved)
        assert (moved / "file").read_bytes() == b"content"
        (moved / "file").unlink()
        moved.rmdir()

    def links(self) -> None:
        name = self.directory / f"l{self.steps}"
        name.symlink_to("target")
        assert os.readlink(name) == "target"
        name.unlink()

    def map(self) -> None:
        if name := self.some():
            before = (self.directory / name).stat().st_ino
            self.check(name)
            assert (self.directory / name).stat().st_ino == before, f"step {self.steps}: {name} has another number"


def main() -> int:
    """Work, and say how it went."""
    worker = Worker(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    try:
        worker.run()
    except AssertionError as exc:
        print(exc, file=sys.stderr)
        return 1
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in worker.known.items()}
    print(json.dumps({"steps": worker.steps, "files": digests}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
