"""Changes of names are made once, though the kernel sends the request again after the daemon was killed.

A change that is begun is kept as a fact, with what stood for its names before, until it is answered. When the successor
is sent the request again it makes the change, as a rule: what was done of it is undone, or as if it had not begun. If that
fails as it would after the change was made (the name is there, or gone), and what the names stand for now says so too, the
change was made, by the daemon before or by the recovery of its journal: then it is answered as such. The kernel holds the
locks of the directories meanwhile, so nobody on this mount can have made the same change.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from luxfuse.errors import LuxError
from luxfuse.estate.facts import Facts
from luxfuse.fuse.inheritance import RESENT
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.index.entries import Entry
from luxfuse.types import Kind
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.volumes import Volumes

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
BEGUN = b"x"
"""What the keys of these facts begin with."""
ANSWERED_KEPT = 16
"""Changes that are still kept after their handler has run: it is answered then, at the latest."""
_encode = msgspec.msgpack.Encoder().encode


class BegunFact(msgspec.Struct, array_like=True, frozen=True):
    """A change that was begun. ``first_new``: the lowest inode number that what it makes can have got.

    ``inode``, ``other``: those that its names stood for, as far as they were known (0: they were not).
    """

    first_new: int
    inode: int = 0
    other: int = 0


@dataclass(frozen=True, slots=True)
class BegunAttribute:
    """A change of an attribute: whether a daemon before had begun it, and what is to be called when it begins."""

    earlier: bool
    begin: Callable[[], None]


class Begun:
    """The changes of one mount that were begun. ``facts`` None: nobody comes after us."""

    def __init__(self, facts: Facts | None, volumes: Volumes) -> None:
        self._facts = facts
        self._volumes = volumes
        self._inherited = {} if facts is None else dict(facts.items(BEGUN))
        self._answered: deque[bytes] = deque()

    @property
    def kept(self) -> bool:
        """Whether there may be a successor."""
        return self._facts is not None

    @staticmethod
    def _key(unique: int) -> bytes:
        return (unique & ~RESENT).to_bytes(8, "big")

    def earlier(self, unique: int) -> BegunFact | None:
        """Return what is known of a request that the daemon before this one had begun; None if it had not."""
        found = self._inherited.get(self._key(unique)) if unique & RESENT else None
        return None if found is None else msgspec.msgpack.decode(found, type=BegunFact)

    def begin(self, unique: int, parent: int, name: bytes, other: tuple[int, bytes] | None = None) -> None:
        """A change of one name, or of two, begins."""
        if self._facts is not None:
            with self._volumes.of(parent) as fs:
                first_new = fs.next_inode
            fact = BegunFact(first_new, self.inode(parent, name), self.inode(*other) if other is not None else 0)
            self._facts.put(BEGUN + self._key(unique), _encode(fact))

    def begin_new(self, unique: int, first_new: int) -> None:
        """A name that is free is about to be made, which gets an inode number from ``first_new`` on."""
        if self._facts is not None:
            self._facts.put(BEGUN + self._key(unique), _encode(BegunFact(first_new)))

    def inode(self, parent: int, name: bytes) -> int:
        """Return the inode that a name stands for, as far as that is known; 0: it is not."""
        entry = self._entry(parent, name)
        return entry.inode if entry is not None else 0

    def is_special_since(self, fact: BegunFact, parent: int, name: bytes) -> bool:
        """Whether a name stands for a special file, which only mounts make, that there was not when a change was begun."""
        entry = self._entry(parent, name)
        return entry is not None and entry.kind is Kind.SPECIAL and entry.inode >= fact.first_new

    def _entry(self, parent: int, name: bytes) -> Entry | None:
        with self._volumes.of(parent) as fs:
            return fs.namespace.peek(parent & LOCAL_MASK, name)

    @contextlib.contextmanager
    def of_attribute(self, unique: int, inode: int, name: bytes) -> Iterator[BegunAttribute]:
        """A change of an attribute, which begins once it is known that it can be made."""
        earlier = self.earlier(unique) is not None
        try:
            yield BegunAttribute(earlier, lambda: None if earlier else self.begin(unique, inode, name))
        finally:
            self.end(unique)

    def leave(self, unique: int) -> None:
        """Nothing was made: a handler begins the change anew, and is not to lose the fact of that while it runs."""
        if self._facts is not None:
            self._facts.drop(BEGUN + self._key(unique))

    def end(self, unique: int) -> None:
        """A change is about to be answered."""
        if self._facts is not None:
            self._answered.append(self._key(unique))
            if len(self._answered) > ANSWERED_KEPT:
                key = self._answered.popleft()
                self._inherited.pop(key, None)
                self._facts.drop(BEGUN + key)

    def settle(self, unanswered: frozenset[int]) -> None:
        """Forget what the daemon before this one had answered."""
        for key in list(self._inherited):
            if int.from_bytes(key, "big") not in unanswered:
                del self._inherited[key]
                if self._facts is not None:
                    self._facts.drop(BEGUN + key)


class Changing(Protocol):
    """A class with handlers as methods."""

    begun: Begun


def once(
    names: Callable[..., tuple[int, bytes]],
    done: frozenset[int],
    made: Callable[..., Awaitable[Any]],
    *,
    other: Callable[..., tuple[int, bytes]] | None = None,
    turned: Callable[..., Awaitable[bool]] | None = None,
) -> Callable[[F], F]:
    """Have a handler make its change once. Below `changing`, and before any wait.

    ``names``: takes the handler's arguments, and returns (parent, name) that it changes; ``other``: the second one.
    ``done``: the errors that it meets if the change was made. ``made``: takes the handler's `self`, the fact, the request's
    number, and the arguments; returns the answer to a change that was made, or raises `NotMade`. ``turned``: of the fact
    and the arguments, whether a change was made that would be undone or spoilt, or meet something else, if made again.
    """

    def decorate(handler: F) -> F:
        @functools.wraps(handler)
        async def wrapper(self: Changing, *args: Any, **kwargs: Any) -> Any:
            unique = passthrough.current()[0]
            earlier = self.begun.earlier(unique)
            if earlier is None:
                self.begun.begin(unique, *names(*args), None if other is None else other(*args))
            try:
                if earlier is not None and turned is not None and await turned(self, earlier, *args):
                    with contextlib.suppress(NotMade):  # it was; somebody else has replaced it since
                        return await made(self, earlier, unique, *args)
                    return None
                return await handler(self, *args, **kwargs)
            except LuxError as exc:
                if earlier is None or exc.errno not in done:
                    raise
                with contextlib.suppress(NotMade):
                    return await made(self, earlier, unique, *args)
                return await handler(self, *args, **kwargs)
            finally:
                self.begun.end(unique)

        return wrapper  # type: ignore[return-value]

    return decorate


class NotMade(Exception):
    """What there is now is not what a change would have made."""


THERE = frozenset({errno.EEXIST, errno.ESTALE})
GONE = frozenset({errno.ENOENT})
EITHER = THERE | GONE
