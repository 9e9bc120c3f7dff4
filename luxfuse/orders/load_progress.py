"""How far a load has come, in files and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["running", "done", "stopped"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come. ``paths`` are the first few of those asked for.

    ``files`` and ``bytes`` are what was found, so far if ``walking``. Of those: ``loaded`` were fetched, ``present`` were
    here before, ``left_out`` do not fit into the cache, ``failed`` failed; the rest is to come. At the end ``failures``
    has a line for each of the first that failed.
    """

    job: int
    paths: tuple[str, ...]
    state: State
    walking: bool
    files: int
    bytes: int
    loaded_files: int
    loaded_bytes: int
    present_files: int
    present_bytes: int
    left_out_files: int
    left_out_bytes: int
    failed_files: int
    note: str | None
    done: bool = False
    failures: tuple[str, ...] = ()


@dataclass(slots=True)
class Counts:
    """Files, and their bytes."""

    files: int = 0
    bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count one file."""
        self.files += 1
        self.bytes += size_bytes


@dataclass(slots=True)
class Tally:
    """The files of one load, by what became of them."""

    found: Counts = field(default_factory=Counts)
    loaded: Counts = field(default_factory=Counts)
    present: Counts = field(default_factory=Counts)
    left_out: Counts = field(default_factory=Counts)
    failed: Counts = field(default_factory=Counts)
