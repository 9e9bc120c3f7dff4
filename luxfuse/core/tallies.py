"""Sums over the events of a trace: by file, by program, by what was waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luxfuse.core.printing import printable
from luxfuse.core.whereabouts import DISK, NODES, STORE, WORK

KERNEL = "kernel"
"""The source of what is read in passthrough: the size of a file counts at each open, as nobody sees the reads."""
QUEUE = "the queue of the daemon"
READS = frozenset({"open", "read"})
OPERATIONS = frozenset({
    "lookup", "getattr", "setattr", "readlink", "getxattr", "listxattr", "setxattr", "removexattr", "opendir", "readdir",
    "fsyncdir", "open", "create", "read", "write", "flush", "fsync", "fallocate", "mkdir", "mknod", "symlink", "link",
    "unlink", "rmdir", "rename",
})  # fmt: skip
"""What a trace tells of, as the kernel's protocol has it."""
NOT_FOUND = {"lookup": frozenset({"ENOENT"}), "getxattr": frozenset({"ENODATA", "ENOTSUP"})}
"""Answers that say that there is no such thing, and are no errors: programs ask for names before they make them, and `ls`
for attributes that few files have."""
MOST_NAMES = 100_000
OTHERS = "(others)"


class Tally:
    """What was done: times, seconds that requests took, bytes by source, errors, and what was not found."""

    __slots__ = ("count", "errors", "missing", "opens", "seconds", "sources", "written_bytes")

    def __init__(self) -> None:
        self.count = self.opens = self.errors = self.missing = self.written_bytes = 0
        self.seconds = 0.0
        self.sources: dict[str, int] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Count an event."""
        self.count += 1
        self.seconds += event.get("took_s", 0.0)
        missing = event.get("error") in NOT_FOUND.get(event["op"], ())
        self.missing += missing
        self.errors += "error" in event and not missing
        self.opens += event["op"] == "open"
        self.written_bytes += event.get("bytes", 0) if event["op"] == "write" else 0
        for source, size in sources_of(event).items():
            self.sources[source] = self.sources.get(source, 0) + size

    @property
    def read_bytes(self) -> int:
        """Bytes that programs could read, whole files in passthrough included."""
        return sum(self.sources.values())


class Tallies:
    """Tallies by name, of which there are so many at most."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tally] = {}

    def add(self, name: str, event: Mapping[str, Any]) -> None:
        """Count an event for a name."""
        found = self.by_name.get(name)
        if found is None:
            name = name if len(self.by_name) < MOST_NAMES else OTHERS
            found = self.by_name.setdefault(name, Tally())
        found.add(event)

    def longest(self, most: int) -> list[tuple[str, Tally]]:
        """Return those whose requests took longest in sum."""
        return sorted(self.by_name.items(), key=lambda item: (-item[1].seconds, -item[1].read_bytes, item[0]))[:most]


def sources_of(event: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes that an event let a program read, by source.

    Of an open in passthrough all of the file, whatever the program reads of it then: from where the open got it, if it had
    to be fetched, or was written here; else from the kernel's side.
    """
    found = dict(event.get("sources") or {})
    if event["op"] == "open" and event.get("way") != "passthrough":
        return {}
    if event["op"] == "open" and "error" not in event and (rest := event.get("bytes", 0) - sum(found.values())) > 0:
        found[KERNEL] = rest
    return found if event["op"] in READS else {}


def names_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """Return the file and the program of an event, for people: names may hold anything, also what a terminal obeys."""
    path = event.get("path")
    file = "(no name)" if path is None else path or "/"
    if (to := event.get("to")) is not None:
        file += f" -> {to}"
    pid = event.get("pid", 0)
    return printable(file), printable(f"{event.get('program', '?')}[{'?' if pid is None else pid}]")


def causes_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Return what one request's time went to: what it was seen to wait for, scaled to all of it; else what it tells."""
    took_s, queued_s = event.get("took_s", 0.0), event.get("queued_s", 0.0)
    waited = event.get("waited") or {}
    total = sum(waited.values())
    if total:
        found = {cause: took_s * seconds / total for cause, seconds in waited.items()}
    else:
        sources = event.get("sources") or {}
        cause = WORK
        if "store" in sources:
            cause = STORE
        elif "nodes" in sources:
            cause = NODES
        elif set(sources) & {"ssd", "hdd"}:
            cause = DISK
        found = {cause: took_s}
    if queued_s:
        found[QUEUE] = queued_s
    return found
