"""How many nodes are to hold what: rules by path, on which all nodes come to agree, and what each node does about them.

A rule says that all at and below a path is to be held by at least ``least`` nodes and by at most ``most``; the deepest
path wins. The newest entry for a path wins on all nodes (`newer`), so they agree when each has seen all entries, in
whatever order. The end of a rule is an entry, too; it is forgotten after `ENDED_S`. A node that was away for longer brings
a rule back that was ended meanwhile.

All nodes have the same order of those that shall hold an object, the rank (`luxfuse.core.rendezvous`) of its first
range. It counts for all ranges, because a node gives a copy up only as a whole: so the ranges of an object gather at
the same nodes. Too few: the first holder by rank orders copies, and nobody else does. Too many: those holders give
their copies up that have ``most`` others before them, each only after the first ``least`` of those before it (at least
one) have said that they hold it. So the first ``least`` of those that do hold it never give it up, whatever a node
wrongly believes.

An object that is read often gains copies by itself, because each node that reads keeps one: ``most`` bounds that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from luxfuse.core.rules import above_and_self

RULES_BOUND = 1_000
"""Rules of one under-store."""
ENTRIES_BOUND = 4 * RULES_BOUND
"""With those that were ended, and those that nodes made out of sight of each other. The oldest are forgotten."""
PATH_MAX_BYTES = 1_024
MOST_COPIES = 10_000
ENDED_S = 30 * 86_400.0
DIGEST_BYTES = 8


class ReplicaRule(msgspec.Struct, frozen=True, array_like=True):
    """At least ``least`` nodes, at most ``most`` (None: any number); ``least`` 0: the rule is ended.

    ``stamp_us``: when it was made, in microseconds since the epoch; ``node``: where.
    """

    least: int
    most: int | None
    stamp_us: int
    node: str

    @property
    def ended(self) -> bool:
        """Whether it says nothing any more."""
        return self.least == 0

    @property
    def sound(self) -> bool:
        """Whether it can be followed: it may come from anywhere."""
        most_is = self.most is None or self.least <= self.most <= MOST_COPIES
        return 0 <= self.least <= MOST_COPIES and most_is and self.stamp_us >= 0


def newer(one: ReplicaRule, other: ReplicaRule) -> bool:
    """Whether ``one`` takes the place of ``other``: a total order, so that all nodes choose the same."""
    return _age(one) > _age(other)


def _age(rule: ReplicaRule) -> tuple[int, str, int, int]:
    return rule.stamp_us, rule.node, rule.least, -1 if rule.most is None else rule.most


class TooManyRules(ValueError):
    """There are as many rules as there can be."""


class ReplicaRules:
    """The rules of one under-store as one node knows them."""

    def __init__(self, entries: Mapping[str, ReplicaRule] | None = None) -> None:
        self._entries: dict[str, ReplicaRule] = dict(entries or {})
        self._digest: bytes | None = None
        self._count = 0
        self._put({})

    def __len__(self) -> int:
        return self._count

    @property
    def entries(self) -> Mapping[str, ReplicaRule]:
        """All entries, those of ended rules among them, by path."""
        return self._entries

    def digest(self) -> bytes:
        """Return the same bytes on all nodes with the same entries."""
        if self._digest is None:
            hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
            hasher.update(msgspec.msgpack.encode(sorted(self._entries.items())))
            self._digest = hasher.digest()
        return self._digest

    def set(self, path: str, least: int, most: int | None, *, now_us: int, node: str) -> None:
        """Make a rule here, or end it (``least`` 0). Raises `TooManyRules`."""
        known = self._entries.get(path)
        fresh = known is None or known.ended
        if least and fresh and len(self) >= RULES_BOUND:
            raise TooManyRules(f"{RULES_BOUND:,} rules are the most; end some with --off, or name directories further up")
        # It must count as the newest also where the clock that made the last one is ahead.
        stamp_us = max(now_us, known.stamp_us + 1) if known is not None else now_us
        self._put({path: ReplicaRule(least, most if least else None, stamp_us, node)})

    def merge(self, entries: Mapping[str, ReplicaRule], *, now_us: int) -> bool:
        """Take over what is newer elsewhere; returns whether anything was."""
        found = {
            path: rule for path, rule in entries.items()
            if rule.sound and len(path.encode("utf-8", "surrogateescape")) <= PATH_MAX_BYTES
            and not _forgotten(rule, now_us) and ((known := self._entries.get(path)) is None or newer(rule, known))
        }  # fmt: skip
        before = self.digest()
        self._put(found)
        return self.digest() != before

    def expire(self, *, now_us: int) -> bool:
        """Forget rules that were ended long ago; returns whether there were any."""
        gone = [path for path, rule in self._entries.items() if _forgotten(rule, now_us)]
        for path in gone:
            del self._entries[path]
        self._put({})
        return bool(gone)

    def _put(self, entries: Mapping[str, ReplicaRule]) -> None:
        """Which the oldest are does not depend on the order in which they came: so nodes still come to agree."""
        self._entries.update(entries)
        excess = len(self._entries) - ENTRIES_BOUND
        if excess > 0:
            for path in sorted(self._entries, key=lambda path: (_age(self._entries[path]), path))[:excess]:
                del self._entries[path]
        self._digest = None
        self._count = sum(not rule.ended for rule in self._entries.values())

    def of(self, path: str) -> ReplicaRule | None:
        """Return the rule for a path: that of the path itself, or of the deepest directory around it that has one."""
        if not self._count:
            return None
        found = (self._entries.get(above) for above in above_and_self(path))
        return next((rule for rule in found if rule is not None and not rule.ended), None)


def _forgotten(rule: ReplicaRule, now_us: int) -> bool:
    return rule.ended and now_us - rule.stamp_us > ENDED_S * 1e6


class Order(NamedTuple):
    """Copies of a range to be ordered: ``missing`` more, of the first of ``candidates`` that take it."""

    missing: int
    candidates: list[str]


Ranked = Callable[[Collection[str]], Sequence[str]]
"""Brings names of nodes into the rank for an object; the best first."""


def missing_copies(
    rule: ReplicaRule, own: str, holders: Collection[str], nodes: Collection[str], ranked: Ranked
) -> Order | None:
    """Return what ``own``, which holds a range, has to order; None if that is nothing, or another holder's to do.

    ``holders``: all nodes that hold it, ``own`` among them; ``nodes``: all that could, and are alive.
    """
    alive = {name for name in holders if name in nodes} | {own}
    missing = min(rule.least, len(nodes)) - len(alive)
    if missing <= 0 or ranked(alive)[0] != own:
        return None
    return Order(missing, [name for name in ranked(nodes) if name not in alive])


def witnesses(
    rule: ReplicaRule, own: str, holders: Mapping[int, Collection[str]], nodes: Collection[str], ranked: Ranked
) -> dict[str, list[int]] | None:
    """Return the nodes that must say which ranges they hold before ``own`` gives its copy up; None if it is to keep it.

    ``holders``: for each range that ``own`` holds, the nodes that do.
    """
    if rule.most is None:
        return None
    found: dict[str, list[int]] = {}
    for number, names in holders.items():
        alive = {name for name in names if name in nodes} | {own}
        if len(alive) <= rule.most:
            return None
        order = list(ranked(alive))
        if order.index(own) < rule.most:
            return None
        for name in order[: max(1, rule.least)]:
            found.setdefault(name, []).append(number)
    return found or None
