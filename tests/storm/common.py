"""What the processes of a storm share: files that nobody changes, and the checkpoints that each publishes."""

from __future__ import annotations

import os

from tests.storm.calls import Settings
from tests.storm.files import Files, content, os_rename, published, serial_of


class Common(Files):
    """Steps on them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.serial, self.published = 0, b""
        self.seen: dict[int, tuple[int, int]] = {}
        """By worker: the generation in which its last checkpoint was read, and the number of that."""

    def read_shared(self) -> None:
        name = self.rng.choice(sorted(self.s.shared))
        found = self.load(f"shared/{name}", fine=())
        if found != content(f"shared {name}", self.s.shared[name]):
            self.call.wrong(f"step {self.steps}: shared/{name} shows other bytes ({len(found or b'')})")

    def read_shared_part(self) -> None:
        name = self.rng.choice(sorted(self.s.shared))
        size = self.s.shared[name]
        offset = self.rng.randrange(size)
        path = f"shared/{name}"
        fd = self.call.at("open", path, os.open, os.O_RDONLY)
        try:
            found = self.call("pread", path, os.pread, fd, 50_000, offset)
            if found != content(f"shared {name}", size)[offset : offset + 50_000]:
                self.call.wrong(f"step {self.steps}: {path} shows other bytes at {offset} ({len(found)})")
        finally:
            self.close(fd, path, writing=False)

    def checkpoint(self) -> None:
        """Write a checkpoint as trainers do: beside the last one, synced, and renamed over it."""
        serial = self.serial + 1
        data = published(self.s.worker, serial, self.rng.choice((1000, 100_000, 2_000_000)))
        path = f"common/.tmp-{self.s.worker}"
        with self.writing(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY) as fd:
            self.write(fd, path, data)
            self.call("fsync", path, os.fsync, fd)
        self.call.at("rename", path, os_rename, f"common/{self.s.worker}")
        self.serial, self.published = serial, data
        self.seen[self.s.worker] = self.call.generation, serial
        found = self.load(f"common/{self.s.worker}")
        if found != data:
            self.call.wrong(f"step {self.steps}: the checkpoint of a moment ago shows other bytes")

    def read_checkpoint(self) -> None:
        """Read the last checkpoint of a worker: it is whole, and none before one that was seen."""
        worker = self.rng.randrange(self.s.workers)
        found = self.load(f"common/{worker}")
        generation, least = self.seen.get(worker, (0, 0))
        if worker == self.s.worker:
            least = self.serial
        elif generation != self.call.generation:
            least = 1 if least else 0
        serial = serial_of(found, worker) if found is not None else 0
        if serial is None:
            self.call.wrong(f"step {self.steps}: common/{worker} is no whole checkpoint ({len(found or b'')} bytes)")
        elif serial < least:
            self.call.wrong(f"step {self.steps}: common/{worker} is number {serial}, after {least} was seen")
        else:
            self.seen[worker] = self.call.generation, serial
