"""What is found in a log that a crash, or a damaged disk, has left."""

from __future__ import annotations

import random

import pytest
import xxhash

from luxfuse.core.journal_log import BLOCK_BYTES, DamagedLog, encode_batch, replay

GENERATION, OLD = b"g" * 16, b"o" * 16
SECTOR_BYTES = 512
BLOCKS = 64
Records = dict[tuple[int, bytes], bytes | None]
checksum = xxhash.xxh3_64_intdigest


def records_of(rng: random.Random) -> Records:
    return {
        (rng.randrange(3), rng.randbytes(rng.randrange(1, 5))): rng.choice(
            [None, b"", rng.randbytes(rng.choice([10, 4000, 9000]))]
        )
        for _ in range(rng.randrange(1, 4))
    }


class Log:
    """A log, and what it should say after each batch."""

    def __init__(self, rng: random.Random) -> None:
        self.blocks = bytearray(rng.randbytes(BLOCKS * BLOCK_BYTES))
        self.end = 0
        self.states: list[Records] = [{}]
        self.starts: list[int] = []

    def append(self, records: Records, generation: bytes = GENERATION) -> bool:
        batch = encode_batch(checksum, generation, self.end, records)
        if self.end + len(batch) > len(self.blocks):
            return False
        self.blocks[self.end : self.end + len(batch)] = batch
        self.starts.append(self.end)
        self.end += len(batch)
        self.states.append({**self.states[-1], **records})
        return True


def filled(rng: random.Random, batches: int) -> Log:
    """A log of an old generation, over which a new one has been written."""
    before = Log(rng)
    while before.append(records_of(rng), OLD):
        pass
    log = Log(rng)
    log.blocks = before.blocks
    for _ in range(batches):
        assert log.append(records_of(rng))
    return log


@pytest.mark.parametrize("seed", range(20))
def test_what_was_appended_is_found_and_nothing_of_before(seed: int) -> None:
    rng = random.Random(seed)
    log = filled(rng, rng.randrange(10))
    found = replay(checksum, GENERATION, bytes(log.blocks))
    assert (found.records, found.end) == (log.states[-1], log.end)


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_tail_is_as_if_it_had_not_been_begun_or_there_as_a_whole(seed: int) -> None:
    """Of the last batch any sectors may have been written; some of them may hold anything."""
    rng = random.Random(seed)
    log = filled(rng, rng.randrange(1, 8))
    before = bytes(log.blocks)
    assert log.append(records_of(rng))
    torn = bytearray(log.blocks)
    for at in range(log.starts[-1], log.end, SECTOR_BYTES):
        if rng.random() < 0.5:
            torn[at : at + SECTOR_BYTES] = rng.choice([before[at : at + SECTOR_BYTES], rng.randbytes(SECTOR_BYTES)])
    found = replay(checksum, GENERATION, bytes(torn))
    if torn[log.starts[-1] : log.end].rstrip(b"\0") == log.blocks[log.starts[-1] : log.end].rstrip(b"\0"):
        assert found.end == log.end
    assert (found.end, found.records) in ((log.starts[-1], log.states[-2]), (log.end, log.states[-1]))
    # What is appended then takes its place.
    log.blocks, log.end = torn, found.end
    log.states.append(found.records)
    last = records_of(rng)
    assert log.append(last)
    assert replay(checksum, GENERATION, bytes(log.blocks)).records == {**found.records, **last}


@pytest.mark.parametrize("seed", range(20))
def test_damage_in_the_middle_is_told(seed: int) -> None:
    rng = random.Random(seed)
    log = filled(rng, rng.randrange(2, 8))
    batch = rng.randrange(len(log.starts) - 1)
    at = log.starts[batch] + rng.randrange(48)
    log.blocks[at] ^= 1 << rng.randrange(8)
    with pytest.raises(DamagedLog, match=f"byte {log.starts[batch]} "):
        replay(checksum, GENERATION, bytes(log.blocks))


@pytest.mark.parametrize("size", [0, 100, BLOCK_BYTES + 1])
def test_a_log_that_was_cut_is_told(size: int) -> None:
    with pytest.raises(DamagedLog, match=f"{size} bytes"):
        replay(checksum, GENERATION, bytes(size))


def test_content_that_looks_like_a_batch_is_content() -> None:
    """A program may write a copy of the log itself: no place in it has a batch of that place, but where it is one."""
    rng = random.Random(1)
    inner = Log(rng)
    assert inner.append({(1, b"a"): b"x" * 5000})
    log = Log(rng)
    content = bytes(BLOCK_BYTES - 51) + bytes(inner.blocks[:8192])
    assert log.append({(1, b"key"): content})
    assert log.append({(1, b"b"): None})
    torn = bytes(log.blocks[: log.starts[1]]) + bytes(len(log.blocks) - log.starts[1])
    assert replay(checksum, GENERATION, torn).records == {(1, b"key"): content}
    damaged = bytearray(torn)
    damaged[20] ^= 1
    assert replay(checksum, GENERATION, bytes(damaged)).records == {}
