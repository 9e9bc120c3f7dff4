"""Reasons to stay or go beside eviction: pins, and time limits (``luxfuse pin``, ``unpin``, ``ttl``, and rules).

The orders of operators are kept in the index. Pinned objects stand in a segment that eviction does not see. Time limits
are looked at in the background, by going through all that is cached; removing files in the under-store is a plain unlink.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.core.names import path_of
from luxfuse.core.paths import covers
from luxfuse.core.rules import MARKS_BOUND, Marks, PathPolicies, TimeLimit
from luxfuse.core.units import format_count, format_size
from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.index.object_records import PINNED, ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.walk import Part, Walk
from luxfuse.types import TtlAction
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.removing import Removing

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
PAUSE_S = 0.001
"""Between two removals: the requests of programs go first."""


class TooManyMarks(LuxError):
    """There are as many pins and time limits as there can be."""


@dataclass(slots=True)
class Answer:
    """The outcome of an order: a line for each path that failed, and lines that are worth knowing."""

    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class MarkStore:
    """The marks of one mount, in memory and in the index."""

    def __init__(self, objects: Objects) -> None:
        """Take up the orders that were kept; one that cannot be read is reported and forgotten."""
        self._objects = objects
        self.marks = Marks()
        if kept := objects.marks():
            try:
                self.marks = msgspec.msgpack.decode(kept, type=Marks)
            except msgspec.MsgspecError as exc:
                log.warning("pins and time limits cannot be read and are forgotten: %s", exc)

    async def change(self, change: Callable[[Marks], None]) -> None:
        """Change them, and keep them. Raises `TooManyMarks`, OSError."""
        if self.marks.full:
            raise TooManyMarks(f"{MARKS_BOUND} pins and time limits are the most; use rules of the configuration instead")
        change(self.marks)
        await self._objects.keep_marks(msgspec.msgpack.encode(self.marks))


class Retention:
    """Pins and time limits of one mount."""

    def __init__(
        self,
        *,
        marks: MarkStore,
        policies: PathPolicies,
        objects: Objects,
        cache: PageCache,
        namespace: Namespace,
        inventory: Inventory,
        removing: Removing,
        clock: Callable[[], float],
    ) -> None:
        """``clock``: wall-clock seconds."""
        self._store = marks
        self._policies = policies
        self._objects = objects
        self._cache = cache
        self._namespace = namespace
        self._inventory = inventory
        self._removing = removing
        self._clock = clock
        self.expired = 0
        """Files whose time limit was over, dropped or removed."""

    @property
    def marks(self) -> Marks:
        """The orders of operators."""
        return self._store.marks

    def is_pinned(self, path: str) -> bool:
        """Whether a path (relative to the mount) is pinned, by a command or a rule."""
        return self._policies.of(path).pin or self.marks.pinned(path)

    # -- orders

    async def pin(self, paths: Sequence[str]) -> Answer:
        """Never evict what is at and below the paths. Raises `TooManyMarks`."""
        answer, there = await self._existing(paths)
        for path in there:
            await self._store.change(lambda marks, path=path: marks.pins.add(path))  # type: ignore[misc]
        await self.restand([covers(path) for path in there])
        if there and (note := await self._excess(there)) is not None:
            answer.notes.append(note)
        return answer

    async def unpin(self, paths: Sequence[str]) -> Answer:
        """Let what is at and below the paths be evicted again."""
        answer = Answer()
        for path in paths:
            below = [pin for pin in self.marks.pins if covers(path)(pin)]
            if not below:
                answer.failures.append(f"{path or '.'}: is not pinned{self._pinned_by(path)}")
            for pin in below:
                await self._store.change(lambda marks, pin=pin: marks.pins.discard(pin))  # type: ignore[misc]
        await self.restand([covers(path) for path in paths])
        return answer

    def _pinned_by(self, path: str) -> str:
        above = next((pin for pin in self.marks.pins if covers(pin)(path)), None)
        if above is not None:
            return f" itself, but by a pin of {above or 'the whole mount'}; unpin that"
        return " by a command, but by a rule of the configuration" if self._policies.of(path).pin else ""

    async def limit(self, paths: Sequence[str], seconds: float | None, action: TtlAction) -> Answer:
        """Set how long what is at and below the paths is kept; None: for ever. Raises `TooManyMarks`."""
        if seconds is None:
            answer = Answer([f"{path or '.'}: has no time limit" for path in paths if path not in self.marks.limits])
            for path in paths:
                await self._store.change(lambda marks, path=path: marks.limits.pop(path, None))  # type: ignore[misc]
            return answer
        answer, there = await self._existing(paths)
        wanted = TimeLimit(seconds, action)
        for path in there:
            await self._store.change(lambda marks, path=path: marks.limits.update({path: wanted}))  # type: ignore[misc]
        return answer

    async def _existing(self, paths: Sequence[str]) -> tuple[Answer, list[str]]:
        answer, there = Answer(), []
        for path in paths:
            if (why := await self._inventory.missing(path)) is None:
                there.append(path)
            else:
                answer.failures.append(f"{path or '.'}: {why}")
        return answer, there

    async def _excess(self, paths: Sequence[str]) -> str | None:
        """Say so if more was pinned than the cache can hold."""
        most = self._cache.hierarchy.most_bytes
        if most is None:
            return None
        total = 0

        async def add(_path: str, _part: Part, _name: bytes, entry: Entry) -> bool:
            nonlocal total
            total += entry.size
            return total <= most

        await self._visit(paths, add)
        if total <= most:
            return None
        return (
            f"what is pinned is more than the cache can hold ({format_size(most)}): the rest is read from the under-store "
            "each time; enlarge the cache, or pin less"
        )

    async def _visit(self, paths: Sequence[str], visit: Callable[[str, Part, bytes, Entry], Awaitable[bool]]) -> None:
        """Go to all files at and below paths (their path, part and name), as long as ``visit`` returns True."""
        async with trio.open_nursery() as nursery:
            walk = Walk(self._namespace, nursery, lambda path, why: log.info("%s: %s", path, why))
            async with aclosing(walk.parts(paths)) as parts:
                async for part, entries in parts:
                    for name, entry in entries:
                        if not await visit(part.prefix + name.decode("utf-8", "surrogateescape"), part, name, entry):
                            nursery.cancel_scope.cancel()
                            return

    async def apply_quotas(self) -> None:
        """Let the quotas of the rules hold, as the rules are now."""
        policies = self._policies
        await self._cache.quotas.replace(policies.limits(), lambda key: policies.limit_of(path_of(key)))

    async def restand(self, matchers: Sequence[Callable[[str], bool]]) -> None:
        """Bring the standing of cached objects whose paths match in line with the pins."""
        async for oid, _ in self._inventory.scan():
            record = self._cache.record_of(oid)
            space = self._cache.hierarchy.by_number(record.directory) if record is not None else None
            if record is None or space is None or not any(matches(path_of(record.key)) for matches in matchers):
                continue
            if self.is_pinned(path_of(record.key)) != (record.segment == PINNED):
                space.standings.insert(oid, record, used=True)
                self._objects.save(oid, record)

    # -- time limits

    async def run(self) -> None:
        """Drop and remove what is over its time, until cancelled."""
        while True:
            await trio.sleep(INTERVAL_S)
            try:
                await self.expire()
            except (LuxError, OSError) as exc:
                log.info("time limits are looked at again later: %s", exc)

    async def expire(self) -> None:
        """Look at all time limits once."""
        if self.marks.limits or self._policies.any_ttl:
            async for oid, record in self._inventory.scan():
                if self._is_over(record) and await self._inventory.drop(oid):
                    self.expired += 1
        for path, limit in list(self.marks.limits.items()):
            if limit.action == "delete":
                await self._remove_below(path, limit)

    def _is_over(self, record: ObjectRecord) -> bool:
        """Whether what is cached of an object is to go."""
        path = path_of(record.key)
        mark = self.marks.limit(path)
        if mark is not None and mark.action == "delete":
            return False
        seconds = mark.seconds if mark is not None else self._policies.of(path).ttl_s
        return seconds is not None and self._clock() - record.cached_us / 1e6 > seconds and not self.is_pinned(path)

    async def _remove_below(self, path: str, limit: TimeLimit) -> None:
        """Remove the files at and below a path that were changed last before the limit's time."""
        removed = 0

        async def remove(found: str, part: Part, name: bytes, entry: Entry) -> bool:
            nonlocal removed
            changed_ns = (entry.attributes.mtime_ns if entry.attributes else None) or entry.mtime_ns
            over = self._clock() - changed_ns / 1e9 > limit.seconds
            if over and self.marks.limit(found) is limit and not self.is_pinned(found):
                try:
                    await self._removing.unlink(part.directory, name)
                    removed += 1
                except LuxError as exc:
                    log.info("%r is over its time limit, and stays: %s", found, exc)
                await trio.sleep(PAUSE_S)
            return True

        await self._visit([path], remove)
        if removed:
            self.expired += removed
            log.info("removed %s below %r: over the time limit", format_count(removed, "file"), path)
