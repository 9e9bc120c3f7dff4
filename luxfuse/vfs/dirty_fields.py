"""The fields of a dirty entry that change together: what the store has, what other nodes hold, how the tries went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from luxfuse.cache.staged import Stamp
from luxfuse.core.replicas import MOST_HOLDERS
from luxfuse.errors import LuxError
from luxfuse.understore.properties import Properties

MOST_SENT = 15
"""Contents remembered of a file that may have arrived unheard of, beside the last."""

Unheard = tuple[str, tuple[tuple[int, int], ...]]
"""Of an object after uploads without an answer: the version that it may have still ("": it was none), and the contents, by
mtime in ns and size, that it may have got. Without contents nothing of that is known."""
NOTHING_UNHEARD: Unheard = ("", ())


@dataclass(slots=True)
class Stored:
    """The object that the store has of an entry, as far as that is known, and uploads that may have arrived unheard of."""

    expect: str | None
    """The version that the store is believed to hold under the key: "" for none, None if that is not known."""
    at: tuple[str, str] | None = None
    """The (key, version) under which the store has the content that was promised last; None if it has none."""
    inherits: str = ""
    """Of one that is resumed: the key of the object that it is, if the store had one."""
    resumed: bool = False
    """Whether it is of a run that was killed: the store may have got it without ``expect`` saying so."""
    doomed: bool = False
    """Whether the object under the key was removed here, and goes even if this entry never gets to the store."""
    sent: tuple[tuple[int, int], ...] = ()
    """mtime in ns and size of contents that may have arrived unheard of: answers got lost, or the run was killed."""
    described: Mapping[str, str] | None = None
    """The metadata that a copy was asked for which may have been made unheard of."""
    unheard: bool = False
    """Whether the last push failed without an answer: the store may have got it, or get it yet."""
    kept: Properties | None = None
    """Properties that others have set on its object, as of ``kept_s`` (`keeping`)."""
    kept_s: float = -math.inf

    def is_under(self, key: str) -> bool:
        """Whether the store has the content that was promised last under a key."""
        return self.at is not None and self.at[0] == key

    def is_elsewhere(self, key: str) -> bool:
        """Whether the store has the content that was promised last under another key."""
        return self.at is not None and self.at[0] != key

    def expects(self, version: str | None) -> None:
        """The store is believed to hold a version under the key."""
        self.expect = version

    def pushed(self, key: str, version: str) -> None:
        """The store has all of it."""
        self.expect = version or None
        self.resumed = self.doomed = self.unheard = False
        self.at = (key, version)

    def copied(self, key: str, new_key: str, version: str) -> None:
        """The store has a copy of an object under another key, as a version of its own."""
        if self.is_under(key):
            self.at = (new_key, version)

    def replaces_removed(self, removed: bool) -> None:
        """``removed``: the object under the key was removed here."""
        self.doomed = removed

    def may_have_arrived(self, stamp: Stamp) -> None:
        """A content is sent, or was without an answer that told whether it has got to the store."""
        self.heard_of(stamp)
        self.sent = (*self.sent[-MOST_SENT:], (stamp.mtime_ns, stamp.size))

    def heard_of(self, stamp: Stamp) -> None:
        """An answer told what became of a content that was sent."""
        self.sent = tuple(each for each in self.sent if each != (stamp.mtime_ns, stamp.size))

    def lies_over(self, sent: tuple[tuple[int, int], ...]) -> None:
        """Contents of ours may have arrived under the key, or arrive yet, which this one replaces."""
        self.sent = (*self.sent, *sent)[-MOST_SENT - 1 :]
        self.unheard = self.unheard or bool(sent)

    def describing(self, metadata: Mapping[str, str] | None) -> None:
        """A copy with this metadata is asked for; None: it is there."""
        self.described = metadata

    def looked_at(self, now_s: float, found: Properties | None) -> None:
        """The properties that others have set are known as of now; None: they are as before."""
        if found is not None:
            self.kept = found
        self.kept_s = now_s

    def replaced_by(self, version: str) -> None:
        """Somebody else's version is under the key, whatever was removed there: its properties are not known."""
        self.expect, self.kept_s, self.doomed = version, -math.inf, False


@dataclass(slots=True)
class Replicas:
    """The replicas of a file that other nodes hold until the store has it."""

    generation: int = 0
    """Of the content that was promised last, where other nodes are to hold replicas of it; 0: none was."""
    holders: tuple[str, ...] = ()
    """The nodes that may hold a replica."""
    replicated: int = 0
    """The generation that enough of them hold."""
    stamp: Stamp | None = None
    """The stamp of the content in it."""
    _lock: trio.Lock | None = None

    @property
    def lock(self) -> trio.Lock:
        """Held while they are told what they are to hold."""
        if self._lock is None:
            self._lock = trio.Lock()
        return self._lock

    @property
    def have_all(self) -> bool:
        """Whether enough nodes hold the content that was promised last."""
        return self.replicated == self.generation

    def promise(self, planned: Sequence[str]) -> None:
        """Something new is about to be promised, which ``planned`` are to hold; those that held it may hold it still."""
        former = tuple(name for name in self.holders if name not in planned)
        self.generation += 1
        self.holders = (*planned, *former)[:MOST_HOLDERS]

    def misled(self) -> None:
        """The file has another key than its holders know: they do not hold the last promise any more."""
        self.generation += 1

    def took(self, names: Sequence[str], generation: int, stamp: Stamp) -> tuple[str, ...]:
        """Enough nodes hold a generation; returns those that may hold an earlier one."""
        others = tuple(name for name in self.holders if name not in names)
        self.holders = (*names, *others)[:MOST_HOLDERS]
        self.replicated, self.stamp = generation, stamp
        return others


@dataclass(slots=True)
class Tries:
    """How bringing an entry to the store went lately."""

    error: LuxError | None = None
    attempts: int = 0
    """Tries in the background that failed, one after the other, with what is ``failed``: key and stamp."""
    failed: tuple[str, Stamp | None] | None = None

    def refused(self, error: LuxError) -> None:
        """A try has failed."""
        self.error = error

    def succeeded(self) -> None:
        """The store has it."""
        self.error, self.attempts = None, 0

    def have_failed(self, key: str, stamp: Stamp | None) -> bool:
        """Whether the last try failed in the background, with what the entry is now."""
        return self.attempts > 0 and self.error is not None and self.failed == (key, stamp)

    def refused_later(self, error: LuxError, key: str, stamp: Stamp | None) -> None:
        """A try in the background has failed; `count` follows when the next one is planned."""
        if not self.have_failed(key, stamp):
            self.attempts = 0
        self.error, self.failed = error, (key, stamp)

    def count(self) -> int:
        """Return how many tries have failed by now, with the one that just did."""
        self.attempts += 1
        return self.attempts
