"""Names: lookup, freshness, and the store's word on one name. Listings are in `listing`.

What is known of a name holds for ``metadata_ttl``, that it does not exist for ``negative_ttl``; then the store is
asked again, once however many wait (`_ask`). A directory in which several names had to be asked for one by one gets
listed as a whole in the background. While the store cannot be reached, or the index takes no changes (its disk is
full), what is known keeps being served.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.core import freshness
from luxfuse.core import names as naming
from luxfuse.core.notices import Change, ChangeKind
from luxfuse.errors import LuxError, NotFound, StoreError, StoreUnavailable, Unforeseen
from luxfuse.index.entries import Entry, Found
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import marker_attributes, parse_attributes
from luxfuse.vfs.doomed import Doomed
from luxfuse.vfs.doubts import Doubts
from luxfuse.vfs.errors import KernelBusy, Moved, NoSuchName, NotRecorded, Stale
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.kernel import KERNEL_BATCH, Kernel
from luxfuse.vfs.listing import Lister

log = logging.getLogger(__name__)

PREFIXES_KEPT = 10_000
NEGATIVES_KEPT = 20_000
VOUCHED_KEPT = 1_000
LIST_AHEAD_ENTRIES = 10_000
ASKED_AGAIN = 3
"""How often a name is asked for at once because another node changed something while the answer was on its way."""
STALE_TTL_S = 1.0
"""For how long the kernel may believe what could not be checked because the store is unreachable."""


@dataclass(slots=True)
class _Question:
    done: trio.Event
    began_s: float
    answer: Entry | None = None
    error: Exception | None = None


@dataclass(slots=True)
class _Both:
    """What the two requests for an unknown name bring."""

    info: ObjectInfo | None = None
    is_directory: bool = False
    error: StoreError | None = None


class Namespace:
    """The tree of names of one mount."""

    def __init__(
        self,
        *,
        store: Store,
        names: Names,
        lister: Lister,
        kernel: Kernel,
        doomed: Doomed,
        evidence: AttributeEvidence,
        metadata_ttl_s: float,
        negative_ttl_s: float,
        nursery: trio.Nursery,
        clock: Callable[[], float] = time.time,
        shared: bool = False,
    ) -> None:
        """``shared``: others than the mounting user are let in, and the kernel checks modes for them."""
        self.shared = shared
        self._store = store
        self._names = names
        self.lister = lister
        self.moving = lister.moving
        self._kernel = kernel
        self._doomed = doomed
        self._evidence = evidence
        self._ttl = metadata_ttl_s
        self._negative_ttl = negative_ttl_s
        self._nursery = nursery
        self._clock = clock
        self._prefixes: OrderedDict[int, str] = OrderedDict()
        self._negatives: OrderedDict[tuple[int, bytes], float] = OrderedDict()
        self._questions: dict[tuple[int, bytes], _Question] = {}
        self._asked: Counter[int] = Counter()
        self._held: set[int] = set()
        self._doubts = Doubts()
        self._vouched: OrderedDict[int, float] = OrderedDict()
        self.stale_served = 0
        self.root = Entry(ROOT_INODE, Kind.DIRECTORY, 0, "", 0, 0.0)
        nursery.start_soon(names.purger.run)

    # -- what is known

    def set_ttls(self, *, metadata_s: float, negative_s: float) -> None:
        """Believe names and attributes, and that names are missing, for so long from now on."""
        self._ttl, self._negative_ttl = metadata_s, negative_s

    def prefix(self, directory: int) -> str:
        """Return the key prefix of a directory: "" or ending in "/". Raises `Stale`."""
        if directory == ROOT_INODE:
            return ""
        known = self._prefixes.get(directory)
        if known is None:
            parent, name = self.place(directory)
            known = f"{self.prefix(parent)}{name.decode()}/"
            self._prefixes[directory] = known
            if len(self._prefixes) > PREFIXES_KEPT:
                self._prefixes.popitem(last=False)
        return known

    def key(self, parent: int, name: bytes, kind: Kind) -> str:
        """Return the object key of a name."""
        suffix = naming.SYMLINK_SUFFIX if kind is Kind.SYMLINK else "/" if kind is Kind.DIRECTORY else ""
        return f"{self.prefix(parent)}{name.decode()}{suffix}"

    def place(self, inode: int) -> tuple[int, bytes]:
        """Return (parent, name) of an inode number. Raises `Stale`."""
        located = self._names.locate(inode)
        if located is None:
            raise Stale(f"inode {inode} is no longer in use")
        return located

    def place_of(self, inode: int) -> tuple[int, bytes] | None:
        """As `place`; None if the number is no longer in use."""
        return self._names.locate(inode)

    def locate(self, inode: int) -> tuple[int, bytes, Entry]:
        """Return (parent, name, entry) of an inode number, fresh or not. Raises `Stale`."""
        parent, name = self.place(inode)
        entry = self._names.get(parent, name)
        if entry is None or entry.inode != inode:
            raise Stale(f"inode {inode} was replaced")
        return parent, name, entry

    def peek(self, parent: int, name: bytes) -> Entry | None:
        """Return what is known of a name, fresh or not, without asking anybody."""
        return self._names.get(parent, name)

    def position(self, inode: int) -> bytes:
        """Return the name that an inode number stands for or stood for. Raises `Stale`."""
        former = self._names.former_name(inode)
        return former if former is not None else self.place(inode)[1]

    def after(self, directory: int, name: bytes, limit: int) -> list[tuple[bytes, Entry]]:
        """Return the next ``limit`` entries of a directory after ``name``, by name."""
        return self._names.after(directory, name, limit)

    def remaining_s(self, entry: Entry) -> float:
        """Return for how long what is known of the entry holds; a moment while the store is unreachable."""
        if entry.inode == ROOT_INODE or entry.inode in self._held:
            return self._ttl
        believed = self._believed(entry.checked_s) and not self._is_doubted(entry)
        left = freshness.remaining_s(entry.checked_s, self._clock(), self._ttl) if believed else 0.0
        return left if left > 0 or self._store.reachable else STALE_TTL_S

    def is_fresh(self, entry: Entry) -> bool:
        """Whether the entry need not be asked for."""
        if entry.inode == ROOT_INODE or entry.inode in self._held:
            return True
        if self.is_vouched(entry.inode):
            return True
        return self._holds(entry.checked_s, self._ttl) and not self._is_doubted(entry)

    def left_s(self, since_s: float) -> float:
        """Return for how long what was heard at a time still holds, if it is not doubted."""
        return freshness.remaining_s(since_s, self._clock(), self._ttl) if self._believed(since_s) else 0.0

    def _is_doubted(self, entry: Entry) -> bool:
        """Whether another node has changed it since it was checked."""
        now_s = self._clock()
        if entry.checked_s < self._doubts.entries.since(entry.inode, now_s):
            return True
        if not self._doubts.below.any or (place := self._names.locate(entry.inode)) is None:
            return False
        return entry.checked_s < self._doubts.below.since(place[0], now_s)

    def _lists(self, directory: int, fetched_s: float, ttl_s: float) -> bool:
        """Whether a listing of a directory still holds."""
        return fetched_s >= self._listing_doubted_s(directory) and self._holds(fetched_s, ttl_s)

    def _listing_doubted_s(self, directory: int) -> float:
        """Return the time before which nothing is believed of which names a directory has."""
        return self._doubts.listings.since(directory, self._clock())

    def _believed(self, since_s: float) -> bool:
        return since_s >= self._names.believe_from_s

    def _holds(self, since_s: float, ttl_s: float) -> bool:
        """Whether what was heard at a time still holds."""
        return self._believed(since_s) and freshness.is_fresh(since_s, self._clock(), ttl_s)

    # -- local changes

    def now_s(self) -> float:
        """Return the time that goes with what is said of a name now."""
        return self._clock()

    def hold(self, inode: int | None, parent: int, name: bytes) -> None:
        """The name is changed here: believe ourselves, not the store, until `settle`. ``inode`` None: it is removed."""
        self._names.hold(parent, name)
        if inode is not None:
            self._held.add(inode)

    def settle(self, inode: int | None, parent: int, name: bytes) -> None:
        """The store has what was changed. The name stays held while an object that also stands for it is to be removed."""
        if not self._is_doomed(parent, name):
            self._names.settle(parent, name)
        if inode is not None:
            self._held.discard(inode)

    def _is_doomed(self, parent: int, name: bytes) -> bool:
        """Whether an object that stands for a name is still to be removed from the store."""
        if not self._doomed.any:
            return False
        try:
            return self._doomed.has(self.key(parent, name, Kind.FILE))
        except Stale:
            return False

    def let_go(self, inode: int) -> None:
        """An inode number is not held any more; its name may be, by another."""
        self._held.discard(inode)

    def is_ours(self, inode: int) -> bool:
        """Whether what is known of an inode is ours to say: it is changed here, or the root."""
        return inode == ROOT_INODE or inode in self._held

    def is_held(self, parent: int, name: bytes) -> bool:
        """Whether the name is ours to say."""
        return self._names.is_held(parent, name)

    def put(self, parent: int, name: bytes, entry: Entry) -> None:
        """Change an entry whose inode number stays. Raises OSError if the index takes no changes."""
        self._names.put(parent, name, entry)

    def moved(self, *directories: int) -> None:
        """Directories have moved: work out anew which key prefixes they have, and those below."""
        self._prefixes.clear()
        for directory in directories:
            self.moving.note(directory)

    # -- lookup and revalidation

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Return the entry of a name. Raises `NoSuchName`, `StoreError`."""
        entry = self._names.get(parent, name)
        if entry is not None:
            if self.is_fresh(entry) or self.is_held(parent, name):
                return entry
        elif self.is_held(parent, name) or self._known_missing(parent, name):
            raise NoSuchName(f"{name!r} does not exist")
        found = await self._ask(parent, name, entry)
        if found is None:
            raise NoSuchName(f"{name!r} does not exist")
        return found

    async def current(self, inode: int) -> Entry:
        """Return the entry of an inode, asked for again if not fresh. Raises `Stale` if it was replaced or is gone."""
        if inode == ROOT_INODE:
            return self.root
        parent, name, entry = self.locate(inode)
        if self.is_fresh(entry):
            return entry
        found = await self._ask(parent, name, entry)
        if found is None or found.inode != inode:
            raise Stale(f"{name!r} was replaced or removed")
        return found

    def vouch(self, inode: int, seconds: float) -> None:
        """Ask for an inode no more for so long, whatever the time to live: the store has just given its content."""
        self._vouched[inode] = self._clock() + seconds
        self._vouched.move_to_end(inode)
        if len(self._vouched) > VOUCHED_KEPT:
            self._vouched.popitem(last=False)

    def is_vouched(self, inode: int) -> bool:
        """Whether the store has just given the content of an inode, for an open that is about to come."""
        return self._clock() <= self._vouched.get(inode, -math.inf)

    @property
    def can_ask(self) -> bool:
        """Whether the store is believed to answer."""
        return self._store.reachable

    async def confirm(self, inode: int, since_s: float) -> None:
        """As `current`, but believes only what was asked for at ``since_s`` or later. Raises `Stale`, `StoreError`."""
        parent, name, entry = self.locate(inode)
        if inode in self._held or since_s <= entry.checked_s <= self._clock():
            return
        found = await self._ask(parent, name, entry, since_s)
        if found is None or found.inode != inode:
            raise Stale(f"{name!r} was replaced or removed")

    def expire(self, inode: int) -> None:
        """Make the next lookup of the inode's name ask the store."""
        try:
            parent, name, entry = self.locate(inode)
        except Stale:
            return
        entry.checked_s = 0.0
        with contextlib.suppress(OSError):  # the index is full: then it holds for its TTL
            self._names.put(parent, name, entry)

    def changed_elsewhere(self, change: Change) -> None:
        """Another node has changed a key in the store: do not believe any more what was heard of it before."""
        directory = ROOT_INODE
        *above, last = change.key.rstrip("/").split("/")
        for part in above:
            entry = self._names.get(directory, part.encode())
            if entry is None or entry.kind is not Kind.DIRECTORY:
                self._doubt(directory, part.encode(), listing=True)
                return
            directory = entry.inode
        name = last.removesuffix(naming.SYMLINK_SUFFIX).encode()
        if change.kind is not ChangeKind.BELOW:
            self._doubt(directory, name, listing=change.kind is ChangeKind.GONE or self._names.get(directory, name) is None)
            return
        entry = self._names.get(directory, name) if name else self.root
        if entry is not None and entry.kind is Kind.DIRECTORY:
            self._doubt_all(directory, name, entry.inode)
        else:
            self._doubt(directory, name, listing=True)

    def _doubt(self, directory: int, name: bytes, *, listing: bool) -> None:
        if self._names.is_held(directory, name):
            return  # it is ours to say
        self._negatives.pop((directory, name), None)
        if listing:
            self._doubts.listings.note(directory, self._clock())
        entry = self._names.get(directory, name)
        if entry is not None:
            self._doubts.entries.note(entry.inode, self._clock())
            self._kernel.invalidate_inode(entry.inode)
            self._kernel.restamp(entry.inode, -1, 0.0)  # opens are not answered without us
        self._kernel.invalidate_entry(directory, name)

    def _doubt_all(self, parent: int, name: bytes, directory: int) -> None:
        """Many entries of a directory changed."""
        now_s = self._clock()
        self._doubts.listings.note(directory, now_s)
        self._doubts.below.note(directory, now_s)
        for key in [key for key in self._negatives if key[0] == directory]:
            del self._negatives[key]
            self._kernel.invalidate_entry(*key)
        for child, entry in self._names.after(directory, b"", KERNEL_BATCH):
            self._kernel.invalidate_entry(directory, child)
            self._kernel.restamp(entry.inode, -1, 0.0)  # opens are not answered without us
        if directory != ROOT_INODE:  # with it the kernel forgets all names below
            self._kernel.invalidate_entry(parent, name)

    def is_doubtful(self, parent: int, name: bytes) -> bool:
        """Whether another node changed the directory since the name was last heard to be missing from it."""
        doubted_s, listing = self._listing_doubted_s(parent), self._names.listings.of(parent)
        if not doubted_s or self.is_held(parent, name):
            return False
        return max(self._negatives.get((parent, name), 0.0), listing.fetched_s if listing is not None else 0.0) < doubted_s

    def _known_missing(self, parent: int, name: bytes) -> bool:
        since = self._negatives.get((parent, name), -1e18)
        listing = self._names.listings.of(parent)
        if listing is not None:
            since = max(since, listing.fetched_s)
            if listing.entries <= LIST_AHEAD_ENTRIES and not self._holds(listing.fetched_s, self._negative_ttl / 2):
                self._list_ahead(parent)
        return self._lists(parent, since, self._negative_ttl)

    def _list_ahead(self, directory: int) -> None:
        """Files are being made in a directory: list it before its listing is too old to say which names are free."""
        if not self.lister.is_listing(directory) and self._store.reachable:
            self._nursery.start_soon(self._list_quietly, directory, True)

    async def _ask(self, parent: int, name: bytes, known: Entry | None, since_s: float = -math.inf) -> Entry | None:
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
            doubted = answer is not None and self._is_doubted(answer)
            if not doubted and question.began_s >= max(since_s, self._listing_doubted_s(parent)):
                return answer
        return answer

    async def _answered(self, parent: int, name: bytes, known: Entry | None) -> _Question | None:
        """Wait for the answer to the question for a name, the one under way if there is one; None: ``known`` will do."""
        question = self._questions.get((parent, name))
        if known is not None and not self._store.reachable:
            self.stale_served += 1
            if question is None:
                self._nursery.start_soon(self._ask_quietly, parent, name, known)
            return None
        if question is None:
            question = self._questions[parent, name] = _Question(trio.Event(), self._clock())
            self._list_instead(parent)
            self._nursery.start_soon(self._answer, parent, name, known, question)
        await question.done.wait()
        if question.error is not None:
            if known is not None and isinstance(question.error, StoreUnavailable | NotRecorded):
                self.stale_served += 1
                return None
            raise question.error
        return question

    async def _ask_quietly(self, parent: int, name: bytes, known: Entry) -> None:
        if (parent, name) not in self._questions and len(self._questions) < 4:
            question = self._questions[parent, name] = _Question(trio.Event(), self._clock())
            await self._answer(parent, name, known, question)

    async def _answer(self, parent: int, name: bytes, known: Entry | None, question: _Question) -> None:
        question.error = StoreError("the daemon is stopping")
        try:
            question.answer = await self._probe(parent, name, known)
            question.error = None
        except LuxError as exc:
            question.error = exc
        except OSError as exc:
            question.error = NotRecorded(f"{name!r} was looked up, but cannot be recorded: {exc}")
        except Exception as exc:
            log.exception("looking up %r failed in an unexpected way", name)
            question.error = Unforeseen(f"internal error while looking up: {type(exc).__name__}")
        finally:
            del self._questions[parent, name]
            question.done.set()

    async def _probe(self, parent: int, name: bytes, known: Entry | None) -> Entry | None:
        component = naming.component_of(name)
        classified = naming.classify(component) if component is not None else None
        if component is None or classified is None or classified[1] is Kind.SYMLINK:
            return None
        while True:
            moves = await self.moving.settled(parent)
            asked_s = self._clock()
            found, info = await self._find(self.prefix(parent) + component, name, known.kind if known else None)
            if not self.moving.since(parent, moves):
                break
        if found is None:
            newer = self._names.remove(parent, name, asked_s, self._clock())
            if newer is not None:
                return newer
            self._negatives[parent, name] = asked_s
            if len(self._negatives) > NEGATIVES_KEPT:
                self._negatives.popitem(last=False)
            return None
        self._negatives.pop((parent, name), None)
        attributes = parse_attributes(info.metadata) if info else None
        if attributes is not None and found.kind is Kind.DIRECTORY:
            now = self._names.get(parent, name)
            attributes = marker_attributes(now.attributes if now is not None else None, attributes)
        if attributes is not None and (known is None or known.attributes is None):
            self._evidence.note(parent, attributes)
        return self._names.assign(parent, name, found, asked_s, attributes, self._clock())

    async def _find(self, base: str, name: bytes, guess: Kind | None) -> tuple[Found | None, ObjectInfo | None]:
        """Find out what a name is; the kind that it was is tried first, by one request."""
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

    def _list_instead(self, parent: int) -> None:
        """After a few names asked for one by one, list the whole directory in the background."""
        listing = self._names.listings.of(parent)
        if listing is not None and self._lists(parent, listing.fetched_s, self._ttl):
            return
        self._asked[parent] += 1
        if self._asked[parent] >= freshness.RELIST_AFTER_LOOKUPS and not self.lister.is_listing(parent):
            self._nursery.start_soon(self._list_quietly, parent)
        if len(self._asked) > PREFIXES_KEPT:
            self._asked.clear()

    async def _list_quietly(self, directory: int, again: bool = False) -> None:
        try:
            if again:
                moves = await self.moving.settled(directory)
                prefix, asked_s = self.prefix(directory), self._clock() - self._negative_ttl / 2
                if await self.lister.fetch(directory, prefix, moves, asked_s) is None and directory in self._held:
                    self._names.listings.note_empty(directory)  # the store will have it
            else:
                await self.listed(directory)
        except LuxError as exc:
            log.info("listing ahead of directory %d failed: %s", directory, exc)

    # -- listings

    def is_listed(self, directory: int) -> bool:
        """Whether the directory's listing is fresh."""
        listing = self._names.listings.of(directory)
        return listing is not None and self._lists(directory, listing.fetched_s, self._ttl)

    async def listed(self, directory: int) -> int:
        """Make sure that the directory's listing is fresh; returns its serial.

        An older one will do while no new one can be had. Raises `NoSuchName`, `StoreError`, `NotRecorded`.
        """
        listing = self._names.listings.of(directory)
        if listing is not None and self._lists(directory, listing.fetched_s, self._ttl):
            return listing.serial
        self._asked.pop(directory, None)
        if listing is not None and not self._store.reachable:
            self.stale_served += 1
            return listing.serial
        moves = await self.moving.settled(directory)
        prefix = self.prefix(directory)
        try:
            since_s = max(self._clock() - self._ttl, self._listing_doubted_s(directory))
            serial = await self.lister.fetch(directory, prefix, moves, since_s)
        except Moved:
            return await self.listed(directory)
        except (StoreUnavailable, NotRecorded):
            if listing is None:
                raise
            self.stale_served += 1
            return listing.serial
        if serial is None and (directory in self._held or self._names.after(directory, b"", 1)):
            self._names.listings.note_empty(directory)  # the store will have it
            return self._names.listings.serial(directory)
        if serial is None:
            self.expire(directory)
            raise NoSuchName(f"directory {prefix!r} is gone")
        return serial

    async def refresh(self, path: str) -> None:
        """Forget how fresh a path and, for a directory, its entries are, ask the store again, and tell the kernel."""
        try:
            await self._refresh(path)
        finally:
            settled = await self._kernel.settle()
        if not settled:
            raise KernelBusy("the store was asked again, but the kernel is slow to forget what it knew; try again")

    async def _refresh(self, path: str) -> None:
        directory, entry = ROOT_INODE, self.root
        parts = [part.encode() for part in path.split("/") if part]
        for part in parts:
            directory = entry.inode
            self._negatives.pop((directory, part), None)
            self._names.listings.forget(directory)
            found = await self._ask(directory, part, None)
            self._kernel.invalidate_entry(directory, part)
            if found is None:
                raise NoSuchName(f"{path} does not exist")
            entry = found
        if entry.kind is Kind.DIRECTORY:
            self._names.listings.forget(entry.inode)
            await self.listed(entry.inode)
            for key in [key for key in self._negatives if key[0] == entry.inode]:
                del self._negatives[key]
