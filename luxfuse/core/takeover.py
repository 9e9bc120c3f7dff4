"""The node that completes an upload whose writer is gone, when, and what the store's present object means for it.

The holders of a replica stand in one order, which all of them know. The first that is here takes over when the writer has
been gone for `TAKEOVER_S`. Each further one waits `FOLLOW_S` longer for each holder before it that is here: it follows
if that one dies, or cannot reach the store. So normally one uploads; that only one upload *has effect* does not rest on
anybody's clock or belief, but on the store: each is conditional on the version that it replaces (`judge`), and a node that
comes late finds the write id of the other.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from luxfuse.core.replicas import FileId, Write
from luxfuse.types import ABSENT

TAKEOVER_S = 60.0
"""For how long a writer must have been believed dead."""
FOLLOW_S = 60.0
"""How much longer a holder waits for each holder before it that is here."""


def ranked(file: FileId, rack: str, peers: Iterable[tuple[str, str]], keep: Collection[str] = ()) -> list[str]:
    """Return the names of ``peers`` (name, rack), best holders of a file first.

    Those of ``keep`` first, as they hold an earlier content that the new one replaces; then those of other racks than
    ``rack``; then by a hash of file and name, so that the files of a writer spread.
    """

    def standing(peer: tuple[str, str]) -> tuple[bool, bool, bytes]:
        name, where = peer
        unit = f"{name} {file.writer}.{file.journal}.{file.number}".encode()
        return name not in keep, bool(rack) and where == rack, hashlib.blake2b(unit, digest_size=8).digest()

    return [name for name, _ in sorted(peers, key=standing)]


def takes_over_in_s(
    me: str, holders: Sequence[str], writer_gone_s: float | None, is_here: Callable[[str], bool]
) -> float | None:
    """Return in how many seconds ``me`` is to take over, 0 or less: now; None while the writer is here.

    ``writer_gone_s``: for how long the writer has been gone. A node that is not among the holders is the last of them.
    """
    if writer_gone_s is None:
        return None
    before = holders[: holders.index(me)] if me in holders else holders
    return TAKEOVER_S + FOLLOW_S * sum(1 for name in before if name != me and is_here(name)) - writer_gone_s


class Absences:
    """Since when nodes have been gone, by one observer's clock. It begins anew when the observer does."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def look(self, names: Collection[str], is_here: Callable[[str], bool], now_s: float) -> None:
        """Take note of those of ``names`` that are here now; others are forgotten."""
        self._since_s = {name: self._since_s.get(name, now_s) for name in names if not is_here(name)}

    def gone_s(self, name: str, now_s: float) -> float | None:
        """Return for how long a node has been gone, None if it is here."""
        since_s = self._since_s.get(name)
        return None if since_s is None else now_s - since_s


class Verdict(enum.Enum):
    """The verdict on a write that the store may lack."""

    UPLOAD = enum.auto()
    """Bring it up, in place of the version that `Judgement.expect` says."""
    DONE = enum.auto()
    """The store has it, or a later write of the same file."""
    OUTDATED = enum.auto()
    """The store has a later file of the same writer."""
    FOREIGN = enum.auto()
    """Somebody else has written the object meanwhile."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict; ``expect``: of `Verdict.UPLOAD`, the version that is to be replaced."""

    verdict: Verdict
    expect: str = ABSENT


def judge(write: Write, expect: str | None, version: str, found: Write | None) -> Judgement:
    """Say what becomes of ``write``, which was to replace ``expect``, as the store has ``version`` of the write ``found``.

    An object that was removed meanwhile is written again, as the writer would do.
    """
    if version == ABSENT:
        return Judgement(Verdict.UPLOAD, ABSENT)
    if found is not None and found.file == write.file:
        done = found.generation >= write.generation
        return Judgement(Verdict.DONE) if done else Judgement(Verdict.UPLOAD, version)
    if expect is None or version == expect:
        return Judgement(Verdict.UPLOAD, version)
    ours, theirs = write.file, found.file if found is not None else None
    if theirs is not None and (theirs.writer, theirs.journal) == (ours.writer, ours.journal):
        return Judgement(Verdict.OUTDATED if theirs.number > ours.number else Verdict.FOREIGN)
    return Judgement(Verdict.FOREIGN)
