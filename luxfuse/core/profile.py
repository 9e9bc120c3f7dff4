"""Where the time of programs on a mount goes, and what would change that; made of a trace and two status documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luxfuse.core.histogram import Histogram
from luxfuse.core.tallies import QUEUE, causes_of, sources_of
from luxfuse.core.units import format_size
from luxfuse.core.whereabouts import DISK, NODES, ROOM, STORE, UPLOAD

KINDS = {
    "open": "opens", "read": "reads", "write": "writes", "flush": "closes", "fsync": "closes", "create": "changes of names",
    "lookup": "names and attributes", "getattr": "names and attributes", "getxattr": "names and attributes",
    "listxattr": "names and attributes", "readlink": "names and attributes", "opendir": "listings", "readdir": "listings",
}  # fmt: skip
OTHER = "changes of names"
MUCH = 0.2
"""A cause with so large a part of the time is worth a change."""
SMALL_READ_BYTES = 32 << 10
MANY = 100
MOST_PROCESSES = MOST_FILES = 100_000


@dataclass(slots=True)
class _Process:
    """How long the requests of a process took, and when the first began and the last ended."""

    seconds: float
    began_s: float
    ended_s: float


class Profile:
    """Sums over the events of a trace."""

    def __init__(self) -> None:
        self.requests = self.dropped = self.kernel_opens = self.served_reads = self.served_bytes = 0
        self.causes: dict[str, float] = {}
        self.kinds: dict[str, Histogram] = {}
        """How long requests took, by kind and by where their bytes came from."""
        self.seconds: dict[str, float] = {}
        """Sums by kind alone."""
        self.sources: dict[str, int] = {}
        self.store_opens = Histogram()
        self._fetched: set[str] = set()
        """Files of which opens have met the store."""
        self._fetched_again = 0
        self.names_asked = 0
        self._processes: dict[tuple[str, int], _Process] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Count an event."""
        took_s = event.get("took_s", 0.0) + event.get("queued_s", 0.0)
        self.requests += 1
        kind = KINDS.get(event["op"], OTHER)
        sources = event.get("sources") or {}
        self.seconds[kind] = self.seconds.get(kind, 0.0) + took_s
        shown = f"{kind} from {max(sources, key=lambda source: sources[source])}" if sources else kind
        self.kinds.setdefault(shown, Histogram()).observe(took_s)
        causes = causes_of(event)
        for cause, seconds in causes.items():
            self.causes[cause] = self.causes.get(cause, 0.0) + seconds
        for source, size in sources_of(event).items():
            self.sources[source] = self.sources.get(source, 0) + size
        self.kernel_opens += event.get("way") == "passthrough"
        if event["op"] == "read":
            self.served_reads += 1
            self.served_bytes += event.get("bytes", 0)
        if event["op"] in ("open", "read") and "store" in sources:
            self.store_opens.observe(took_s)
        if event["op"] == "open" and "store" in sources:
            self._note_fetched(str(event.get("path")))
        self.names_asked += kind == "names and attributes" and causes.get(STORE, 0.0) > 0
        self._note_process(event, took_s)

    def _note_process(self, event: Mapping[str, Any], took_s: float) -> None:
        name = (event.get("program", "?"), event.get("pid", 0))
        began_s = event.get("time", 0.0) - event.get("queued_s", 0.0)
        found = self._processes.get(name)
        if found is not None:
            found.seconds += took_s
            found.began_s, found.ended_s = min(found.began_s, began_s), max(found.ended_s, began_s + took_s)
        elif len(self._processes) < MOST_PROCESSES:
            self._processes[name] = _Process(took_s, began_s, began_s + took_s)

    def _note_fetched(self, path: str) -> None:
        if path in self._fetched:
            self._fetched_again += 1
        elif len(self._fetched) < MOST_FILES:
            self._fetched.add(path)

    @property
    def total_s(self) -> float:
        """How long all requests took in sum."""
        return sum(self.causes.values())

    @property
    def programs(self) -> int:
        """How many processes asked."""
        return len(self._processes)

    @property
    def busiest_s(self) -> float:
        """How long the requests took of the process whose requests took longest."""
        return max((process.seconds for process in self._processes.values()), default=0.0)

    def is_waited_for(self, seconds: float) -> bool:
        """Whether programs waited for the mount in a part of the ``seconds`` that is worth a change.

        By the busiest process, or by the mean of those that waited and were there at once: a shell may have begun them
        one by one, beside others that only look now and then. What was dropped is taken to be like what was seen.
        """
        much = MUCH * self.requests / (self.requests + self.dropped) if self.requests else MUCH
        spans = [(each.seconds, each.ended_s - each.began_s) for each in self._processes.values()]
        waiting = [(waited_s, span_s) for waited_s, span_s in spans if waited_s >= much * span_s]
        at_once = sum(span_s for _, span_s in waiting) / seconds if seconds else 0
        mean_s = sum(waited_s for waited_s, _ in waiting) / max(1.0, at_once)
        return max(self.busiest_s, mean_s) >= much * seconds

    def share(self, cause: str) -> float:
        """Return the part of the time that went to a cause."""
        return self.causes.get(cause, 0.0) / self.total_s if self.total_s else 0.0

    def advice(self, before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> list[str]:
        """Return what to change, a line each, the most telling first."""
        if not self.requests:
            return ["nothing was asked of the mount: run this while the job is at work"]
        if not self.is_waited_for(seconds):
            sums = f"its requests took {self.total_s:.2f} s, those of the busiest process {self.busiest_s:.2f} s"
            return [f"the mount is not what is waited for: in {seconds:.1f} s {sums}"]
        found = [(self.share(STORE), line) for line in self._about_the_store(before, after)]
        if not after.get("passthrough") and self.served_reads and self.seconds["reads"] > MUCH * self.total_s:
            why = after.get("passthrough_reason") or "no reason is known"
            found.append((self.seconds["reads"] / self.total_s,
                          f"reads are copied to the kernel ({why}): mount as root on Linux 6.9 or newer, so that it reads "
                          "cached files by itself"))  # fmt: skip
        mean_bytes = self.served_bytes / self.served_reads if self.served_reads else 0
        if self.served_reads >= MANY * seconds and mean_bytes < SMALL_READ_BYTES:
            found.append((self.share(QUEUE), f"reads are of {format_size(mean_bytes)} in the mean: read larger pieces, or "
                                             "make files whole in the cache first (luxfuse load)"))  # fmt: skip
        found += [(self.share(cause), f"{self.share(cause):.0%} {text}") for cause, text in (
            (QUEUE, "of the time requests wait for the daemon to look at them: fewer and larger files, or several mounts"),
            (UPLOAD, "of the time closes wait for uploads: --write-mode async-through waits for the local disk only"),
            (ROOM, "of the time writers wait for room in the cache: directories, or a faster link to the store"),
            (DISK, "of the time the cache disk is waited for: a faster disk, or a tier in memory above it"),
            (NODES, "of the time other nodes are waited for: their network, or copies here (luxfuse load)"),
        ) if self.share(cause) >= MUCH]  # fmt: skip
        lines = [line for _, line in sorted(found, key=lambda item: -item[0])]
        return lines or ["nothing stands out"]

    def _about_the_store(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
        if self.share(STORE) < MUCH:
            return []
        lines = []
        fetched = after["understore"]["get_bytes"] - before["understore"]["get_bytes"]
        evicted = after["cache"]["evicted_bytes"] - before["cache"]["evicted_bytes"]
        if fetched > 0 and evicted > MUCH * fetched:
            sizes = f"for {format_size(fetched)} that were fetched {format_size(evicted)} were evicted"
            again, files = self._fetched_again, self._fetched_again + len(self._fetched)
            if again > MUCH * files:
                text = (
                    f"the cache is too small: {sizes}, and {again} of {files} opens met a file once more that was fetched "
                )
                lines.append(text + "before; give it more (--cache-size), or read less at a time")
            else:
                text = (
                    f"the cache is full: {sizes}, of which little was opened again meanwhile; give it more (--cache-size) "
                )
                lines.append(text + "if it is read again later, as in the next epoch")
        if self.store_opens.count:
            mean_ms = 1000 * self.store_opens.sum_s / self.store_opens.count
            lines.append(
                f"{self.share(STORE):.0%} of the time is the first read of data: {self.store_opens.count} waits of "
                f"{mean_ms:.0f} ms in the mean; luxfuse load PATH brings it here before the job, "
                "luxfuse.training just before it is opened"
            )
        if self.names_asked > MANY and self.seconds["names and attributes"] > MUCH * self.total_s:
            lines.append(
                f"{self.names_asked} names or attributes had to be asked of the store: a longer --metadata-ttl, or list "
                "directories before (ls -R), or pack small files into larger ones"
            )
        return lines or [f"{self.share(STORE):.0%} of the time the store is waited for"]
