"""The journal's log under power cuts: a disk that tears what was not synced, and a seed for each run of it.

The disk is a list of sectors. An append that was not acknowledged leaves any of its sectors written and others not; when
the log is full, what it says goes to a table in one transaction, under a new generation. Checked after each cut: what was
acknowledged is there, and of what was not either all or nothing. Damage behind an acknowledged batch's back is noticed, or
it is in the last one, where it looks as a torn tail does.
"""

from __future__ import annotations

import random

import xxhash

from luxfuse.core.journal_log import BLOCK_BYTES, DamagedLog, encode_batch, replay
from tests.support.seeds import seeds

SECTOR_BYTES = 512
LOG_BLOCKS = 24
RUNS = 1500
Values = dict[tuple[int, bytes], bytes]


def checksum(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


class Disk:
    """A log and a table, as the journal uses them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log = bytearray(rng.randbytes(LOG_BLOCKS * BLOCK_BYTES) if rng.random() < 0.5 else LOG_BLOCKS * BLOCK_BYTES)
        self.table: Values = {}
        self.generation = rng.randbytes(16)
        self.end = 0
        self.batches: list[tuple[int, int]] = []
        """Of this generation, as (begin, end)."""
        self.acknowledged: Values = {}

    def records(self) -> dict[tuple[int, bytes], bytes | None]:
        """Draw what a commit changes."""
        found: dict[tuple[int, bytes], bytes | None] = {}
        for _ in range(self.rng.randrange(1, 4)):
            value = self.rng.randbytes(self.rng.choice((0, 20, 300, 9000)))
            found[self.rng.randrange(3), b"%d" % self.rng.randrange(6)] = value if self.rng.random() < 0.8 else None
        return found

    def commit(self, *, cut: bool) -> dict[tuple[int, bytes], bytes | None]:
        """Append a batch; ``cut``: the power goes meanwhile."""
        records = self.records()
        batch = encode_batch(checksum, self.generation, self.end, records)
        if self.end + len(batch) > len(self.log):
            self.empty()
            batch = encode_batch(checksum, self.generation, self.end, records)
        if cut:
            self.tear(batch)
            return records
        self.log[self.end : self.end + len(batch)] = batch
        self.batches.append((self.end, self.end + len(batch)))
        self.end += len(batch)
        self.acknowledged = applied(self.acknowledged, records)
        return records

    def tear(self, batch: bytes) -> None:
        """Write some of the sectors of a batch, in any order."""
        for at in range(0, len(batch), SECTOR_BYTES):
            if self.rng.random() < 0.7:
                self.log[self.end + at : self.end + at + SECTOR_BYTES] = batch[at : at + SECTOR_BYTES]

    def empty(self) -> None:
        """Bring what the log says to the table, in one transaction that names the next generation."""
        self.table = applied(self.table, replay(checksum, self.generation, bytes(self.log)).records)
        self.generation, self.end, self.batches = self.rng.randbytes(16), 0, []

    def restart(self) -> Values:
        """Return what a restart finds, and go on from it."""
        found = replay(checksum, self.generation, bytes(self.log))
        assert found.end >= self.end
        values = applied(self.table, found.records)
        self.end = found.end
        return values


def applied(values: Values, records: dict[tuple[int, bytes], bytes | None]) -> Values:
    """Return the values after a commit."""
    merged = {**values, **records}
    return {key: value for key, value in merged.items() if value is not None}


def test_power_cuts_lose_nothing_that_was_acknowledged() -> None:
    for seed in seeds(RUNS):
        rng = random.Random(seed)
        disk = Disk(rng)
        for _ in range(rng.randrange(1, 4)):
            for _ in range(rng.randrange(12)):
                disk.commit(cut=False)
            before = disk.acknowledged
            torn = disk.commit(cut=True)
            found = disk.restart()
            assert found in (before, applied(before, torn)), f"LUXFUSE_SEED={seed}"
            disk.acknowledged = found
            disk.empty()  # as a restart does


def test_damage_is_noticed_unless_it_looks_as_a_torn_tail() -> None:
    for seed in seeds(RUNS):
        rng = random.Random(seed)
        disk = Disk(rng)
        for _ in range(rng.randrange(2, 12)):
            disk.commit(cut=False)
        if len(disk.batches) < 2:
            continue
        begin, end = rng.choice(disk.batches[:-1])
        at = rng.randrange(begin, end)
        disk.log[at] ^= 1 << rng.randrange(8)
        try:
            assert disk.restart() == disk.acknowledged, f"LUXFUSE_SEED={seed}"  # it was in the zeros of a block
        except DamagedLog:
            continue


def test_the_checker_finds_a_log_that_forgets() -> None:
    """A log whose last batch is dropped, as it would be where a restart began before the end."""
    disk = Disk(random.Random(1))
    for _ in range(3):
        disk.commit(cut=False)
    begin, end = disk.batches[-1]
    disk.log[begin:end] = bytes(end - begin)
    disk.end = 0
    assert disk.restart() != disk.acknowledged
