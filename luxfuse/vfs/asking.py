"""Questions to the store about single names: each is asked once, however many callers wait."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.core import names as naming
from luxfuse.errors import NotFound, StoreError
from luxfuse.index.entries import Entry, Found
from luxfuse.index.names import Names
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import marker_attributes, parse_attributes
from luxfuse.vfs.belief import Belief
from luxfuse.vfs.errors import leaves_what_is_known
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.missing import Missing
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.places import Places
from luxfuse.vfs.relisting import Relisting
from luxfuse.vfs.shared_answers import SharedAnswer

ASKED_AGAIN = 3
"""How often a name is asked for at once because another node changed something while the answer was on its way."""


@dataclass(slots=True)
class _Both:
    """The answers to the two requests for an unknown name."""

    info: ObjectInfo | None = None
    is_directory: bool = False
    error: StoreError | None = None


class Questions:
    """The questions that are under way."""

    def __init__(
        self,
        *,
        store: Store,
        names: Names,
        places: Places,
        belief: Belief,
        relisting: Relisting,
        missing: Missing,
        moving: Moving,
        evidence: AttributeEvidence,
        nursery: trio.Nursery,
        clock: Callable[[], float],
        makes_here: Callable[[str], bool],
    ) -> None:
        """``makes_here``: whether what is made at a path needs the journal only."""
        self._makes_here = makes_here
        self._store = store
        self._names = names
        self._places = places
        self._belief = belief
        self._relisting = relisting
        self._missing = missing
        self._moving = moving
        self._evidence = evidence
        self._nursery = nursery
        self._clock = clock
        self._questions: dict[tuple[int, bytes], SharedAnswer[Entry | None]] = {}

    async def ask(self, parent: int, name: bytes, known: Entry | None, since_s: float = -math.inf) -> Entry | None:
        """Ask the store for one name; the callers that come meanwhile share the answer.

        It is asked again if that was before ``since_s``, or if another node changes something meanwhile, but not for ever:
        where others write all the time there is no end of that. The second answer was asked for after the caller came: it
        may have it, but not keep it.
        """
        answer = None
        for _ in range(ASKED_AGAIN):
            question = await self._answered(parent, name, known)
            if question is None:
                return known
            answer = question.answer
            doubted = answer is not None and self._belief.is_doubted(answer)
            if not doubted and question.began_s >= max(since_s, self._belief.listing_doubted_s(parent)):
                return answer
        return answer

    async def _answered(self, parent: int, name: bytes, known: Entry | None) -> SharedAnswer[Entry | None] | None:
        """Wait for the answer to the question for a name, the one under way if there is one; None: ``known`` will do."""
        question = self._questions.get((parent, name))
        older = known is not None or self._was_missing(parent, name)
        if older and not self._store.reachable:
            self._belief.stale_served += 1
            if question is None and not self._store.presence.away:
                self._nursery.start_soon(self._ask_quietly, parent, name, known)
            return None
        if question is None:
            question = self._questions[parent, name] = SharedAnswer(self._clock())
            self._relisting.list_instead(parent)
            self._nursery.start_soon(self._answer, parent, name, known, question)
        if not older:
            await question.done.wait()
        elif not await self._store.presence.promptly(question.done):
            self._belief.stale_served += 1
            return None
        if question.error is not None:
            if older and leaves_what_is_known(question.error):
                self._belief.stale_served += 1
                return None
            raise question.error
        return question

    def _was_missing(self, parent: int, name: bytes) -> bool:
        """Whether a name was not in the last listing of its directory, where that will do to make it without the store.

        Elsewhere an outage shows as one: nothing could be made of it.
        """
        if self._names.listings.of(parent) is None:
            return False
        return self._makes_here(f"{self._places.prefix(parent)}{os.fsdecode(name)}")

    async def _ask_quietly(self, parent: int, name: bytes, known: Entry | None) -> None:
        if (parent, name) not in self._questions and len(self._questions) < 4:
            question = self._questions[parent, name] = SharedAnswer(self._clock())
            await self._answer(parent, name, known, question)

    async def _answer(self, parent: int, name: bytes, known: Entry | None, question: SharedAnswer[Entry | None]) -> None:
        try:
            await question.get(
                lambda: self._probe(parent, name, known), "looking up", repr(name), f"{name!r} was looked up"
            )
        finally:
            del self._questions[parent, name]

    async def _probe(self, parent: int, name: bytes, known: Entry | None) -> Entry | None:
        component = naming.component_of(name)
        classified = naming.classify(component) if component is not None else None
        if component is None or classified is None or classified[1] is Kind.SYMLINK:
            return None
        while True:
            moves = await self._moving.under_one_name(parent)
            asked_s = self._clock()
            found, info = await self._find(self._places.prefix(parent) + component, name, known.kind if known else None)
            if not self._moving.since(parent, moves):
                break
        if found is None:
            newer = self._names.remove(parent, name, asked_s, self._clock())
            if newer is not None:
                return newer
            self._missing.note(parent, name, asked_s)
            return None
        self._missing.forget(parent, name)
        attributes = parse_attributes(info.metadata) if info else None
        if attributes is not None and found.kind is Kind.DIRECTORY:
            now = self._names.get(parent, name)
            attributes = marker_attributes(now.attributes if now is not None else None, attributes)
        if attributes is not None and (known is None or known.attributes is None):
            self._evidence.note(parent, attributes)
        return self._names.assign(parent, name, found, asked_s, attributes, self._clock())

    async def _find(self, base: str, name: bytes, guess: Kind | None) -> tuple[Found | None, ObjectInfo | None]:
        """Find out which kind a name is of; the kind that it was is tried first, by one request."""
        if guess is Kind.DIRECTORY and await self._store.has_prefix(base + "/"):
            return Found(name, Kind.DIRECTORY), await self._marker(base)
        if guess in (Kind.FILE, Kind.SYMLINK):
            suffix = naming.SYMLINK_SUFFIX if guess is Kind.SYMLINK else ""
            info = await self._head(base + suffix)
            if info is not None:
                return Found(name, guess, info.size, info.version, info.mtime_ns), info
        both = _Both()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect_head, base, both)
            if guess is not Kind.DIRECTORY:
                nursery.start_soon(self._collect_prefix, base + "/", both)
        if both.error is not None:
            raise both.error
        if both.is_directory:
            return Found(name, Kind.DIRECTORY), await self._marker(base)
        info = both.info
        if info is not None:
            return Found(name, Kind.FILE, info.size, info.version, info.mtime_ns), info
        if guess is not Kind.SYMLINK:
            info = await self._head(base + naming.SYMLINK_SUFFIX)
            if info is not None:
                return Found(name, Kind.SYMLINK, info.size, info.version, info.mtime_ns), info
        return None, None

    async def _marker(self, base: str) -> ObjectInfo | None:
        """Describe the marker of a directory that is there, or the want of one; None if the store does not tell."""
        if not self._names.keeps_attributes:
            return None
        try:
            return await self._head(base + "/") or ObjectInfo(base + "/", 0, "", 0, {})
        except StoreError:
            return None

    async def _collect_head(self, key: str, both: _Both) -> None:
        try:
            both.info = await self._head(key)
        except StoreError as exc:
            both.error = exc

    async def _collect_prefix(self, prefix: str, both: _Both) -> None:
        try:
            both.is_directory = await self._store.has_prefix(prefix)
        except StoreError as exc:
            both.error = exc

    async def _head(self, key: str) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None
