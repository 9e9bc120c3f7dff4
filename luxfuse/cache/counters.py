"""The counters of the page cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Bytes served to readers by where they came from, and failures; all rise from the start on."""

    memory_bytes: int = 0
    understore_bytes: int = 0
    peer_bytes: int = 0
    checksum_failures: int = 0
    verified_bytes: int = 0
