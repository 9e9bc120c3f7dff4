"""The objects of the bucket, written as files into the server's directory."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.bench.trials import FILE_BYTES, GIB, KIB, MIB, Size

NEEDS = {
    "big.bin": ("seq-", "mmap-", "random-", "held-", "plain-seq", "plain-random", "latency-seq", "load-seq"),
    "files": ("files-", "cpu-", "plain-files"),
    "few": ("latency-files",),
    "load": ("load-files",),
}
"""The rows that read an object or a directory, by the first letters of their names; `listed` is the same of listings."""


def listed(count: int) -> str:
    return f"list{count}"


def is_listing(name: str) -> bool:
    return name.startswith("list")


def needed(keys: Iterable[str], size: Size) -> set[str]:
    """The names in the bucket that the rows read."""
    keys = list(keys)
    names = {name for name, starts in NEEDS.items() if any(key.startswith(starts) for key in keys)}
    return names | {listed(n) for n in size.listings if any(key.startswith(f"list-{n}-") for key in keys)}


def size_text(size: int) -> str:
    return next(f"{size // unit} {name}" for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if size >= unit)


@functools.cache
def _pool() -> bytes:
    with Path("/dev/urandom").open("rb") as source:
        return source.read(16 * MIB)


def write_large(path: Path, size: int) -> None:
    """A file whose every 16 MiB begin with other bytes."""
    with path.open("wb") as out:
        for n, at in enumerate(range(0, size, len(_pool()))):
            out.write((n.to_bytes(8, "little") + _pool()[8:])[: size - at])


def create(directory: Path, size: Size, names: set[str]) -> set[str]:
    """Writes what is named, and returns the names."""
    if "big.bin" in names:
        write_large(directory / "big.bin", size.big_bytes)
    for name, count in (("files", size.files), ("few", size.latency_files), ("load", size.load_files)):
        if name in names:
            (directory / name).mkdir()
            for n in range(count):
                at = (n * 7919 * 64) % (len(_pool()) - FILE_BYTES)
                (directory / name / f"img_{n:06}.jpg").write_bytes(_pool()[at : at + FILE_BYTES])
    for count in size.listings:
        if listed(count) in names:
            (directory / listed(count)).mkdir()
            for n in range(count):
                (directory / listed(count) / f"sample_{n:07}.txt").write_bytes(b"x")
    subprocess.run(["sync"], check=True)
    return names


def fill(bucket: Path, size: Size, keys: set[str], work: Path) -> set[str]:
    """Writes what the table's rows read."""
    return create(bucket, size, needed(keys, size))
