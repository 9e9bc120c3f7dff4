"""The backlogs of all volumes of a mount, as one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import trio

from luxfuse.orders.backlog import POLL_S, Backlog, Progress, Tally
from luxfuse.orders.persisting import persist
from luxfuse.vfs.deletes import is_at_or_below

Members = Sequence[tuple[str, Backlog]]
"""Where each volume is attached, relative to the mount ("" for its own), and its backlog."""


class Backlogs:
    """The backlog of all volumes that ``members`` returns when it is asked."""

    def __init__(self, members: Callable[[], Members]) -> None:
        self._members = members

    def tally(self) -> Tally:
        """Count; see `Backlog.tally`."""
        tallies = [(path, backlog.tally()) for path, backlog in self._members()]
        each = [tally for _, tally in tallies]
        since = [tally.since_s for tally in each if tally.since_s is not None]
        return Tally(
            files=sum(t.files for t in each),
            bytes=sum(t.bytes for t in each),
            open_files=sum(t.open_files for t in each),
            deletes=sum(t.deletes for t in each),
            held_deletes=sum(t.held_deletes for t in each),
            renames=sum(t.renames for t in each),
            since_s=min(since, default=None),
            failing=sum(t.failing for t in each),
            error=_first_error([(path, t.error) for path, t in tallies]),
            local_only=sum(t.local_only for t in each),
        )

    def hasten(self) -> None:
        """Bring everything up without delay from now on."""
        for _, backlog in self._members():
            backlog.hasten()

    async def drain(self) -> AsyncGenerator[Progress, None]:
        """Bring everything that is closed to the stores, for as long as the iteration lasts; see `Backlog.drain`."""
        members = self._members()
        watches = [backlog.watch() for _, backlog in members]
        for _, backlog in members:
            backlog.hasten()
        try:
            while True:
                steps = [(path, backlog.step(watch)) for (path, backlog), watch in zip(members, watches, strict=True)]
                step = _merged(steps)
                yield step
                if step.done:
                    return
                await trio.sleep(POLL_S)
        finally:
            for _, backlog in members:
                backlog.slow_down()

    async def persist(self, paths: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Bring what is at and below the paths to the stores, one volume after the other; see `persisting.persist`."""
        found = self._concerned(paths)
        failures: list[str] = []
        notes: list[str] = []
        for number, (place, backlog, insides) in enumerate(found, 1):
            async with aclosing(persist(backlog, insides)) as steps:
                async for step in steps:
                    ended = step.done
                    if not ended and all(each is not backlog for _, each in self._members()):
                        ended = True  # nothing of it is brought up any more
                        failures.append(f"{place}: it was detached meanwhile, or failed")
                    failures += [_inside(place, line) for line in step.failures]
                    notes += [_inside(place, line) for line in step.notes]
                    done = ended and number == len(found)
                    said = (tuple(failures), tuple(notes)) if done else ((), ())
                    yield replace(step, done=done, failures=said[0], notes=said[1])
                    if ended:
                        break

    def has_changes(self, path: str) -> bool:
        """Whether anything at or below a path is not in its store."""
        return any(backlog.has_changes(inside) for _, backlog, insides in self._concerned([path]) for inside in insides)

    def _concerned(self, paths: Sequence[str]) -> list[tuple[str, Backlog, list[str]]]:
        """Return each volume that has a part in what is at or below the paths, and what they are called in it."""
        found = []
        for place, backlog in self._members():
            inside = [path[len(place) :].strip("/") for path in paths if is_at_or_below(path, place)]
            inside += [""] * any(place and is_at_or_below(place, path) for path in paths)
            if inside or not place:
                found.append((place, backlog, inside))
        return found


def _merged(steps: Sequence[tuple[str, Progress]]) -> Progress:
    each = [step for _, step in steps]
    return Progress(
        files=sum(s.files for s in each), bytes=sum(s.bytes for s in each), deletes=sum(s.deletes for s in each),
        renames=sum(s.renames for s in each), open_files=sum(s.open_files for s in each),
        put_bytes=sum(s.put_bytes for s in each),
        stalled_s=min((s.stalled_s for s in each if not s.done), default=0.0),
        error=_first_error([(path, s.error) for path, s in steps]), done=all(s.done for s in each),
    )  # fmt: skip


def _first_error(errors: Sequence[tuple[str, str | None]]) -> str | None:
    return next((f"{place}: {error}" if place else error for place, error in errors if error), None)


def _inside(place: str, line: str) -> str:
    """Return a line about a path in a volume as one about that path in the mount."""
    return f"{place}/{line}" if place else line
