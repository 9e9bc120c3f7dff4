"""Descriptions of objects by the store, beside their content: mode, owner, times, extended attributes.

They come with every answer about a single object: a read, a fetch ahead and a load all learn them, and that the object is
still the same. A listing does not bring them: it could only if they lay where a LIST shows them, in the key, which has to
stay the path, or in an object per directory that holds those of its entries, written with them (a manifest).

Where it matters (`lacks`) nothing is said of an entry before they are known, as what a listing tells might change under
the eyes of a program, or let somebody in. A look-up then asks for them, and for those of the entries after it, as
many at once as the store takes; what READDIRPLUS says of such an entry holds for no time, so that the kernel looks it up.
It matters where others than the mounting user are let in, and where objects are found to carry attributes
(`core.evidence`).
"""

from __future__ import annotations

import enum
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import trio

from luxfuse.core.evidence import SAMPLE, Ahead
from luxfuse.errors import NotFound, StoreError, StoreUnavailable
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import parse_attributes
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.hearing import Hearing, News
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

Mode = Literal["auto", "exact", "listing"]

MOST_AHEAD_AT_ONCE = 128
SWEPT = 64
"""Directories in which entries are asked for ahead."""
SCANNED = 512
"""Entries that are looked through at once for some to be asked for."""
IN_VAIN = 4096
"""So many entries in a row that lack nothing end it."""
JUDGED_FROM = 256
"""Entries of a directory that is large: the kernel takes many before a program looks at the first."""
TRIES = 3


class Silence(enum.IntEnum):
    """What becomes of an entry in a listing whose attributes are not known."""

    LEFT = 0
    """That differs, or something is hidden."""
    HOLDS = 1
    LACKS = 2
    """See `Descriptions.lacks`."""


@dataclass(slots=True)
class _Question:
    """One entry that is asked for. ``gone``: there is no such object."""

    done: trio.Event = field(default_factory=trio.Event)
    error: StoreError | None = None
    gone: bool = False


@dataclass(slots=True)
class _Sweep:
    """The entries of a directory that are asked for ahead, in the order of the listing: once around."""

    begun_at: bytes
    after: bytes
    ahead: Ahead = field(default_factory=Ahead)
    around: bool = False
    in_vain: int = 0
    """Entries in a row that lack nothing."""


class Descriptions:
    """Learns the attributes of the entries of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        store: Store,
        kernel: Kernel,
        evidence: AttributeEvidence,
        mode: Mode,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._store = store
        self._kernel = kernel
        self._mode = mode
        self._clock = clock
        self.keeps_attributes = names.keeps_attributes = store.abilities.metadata
        """Whether the store does; else the attributes that are known here are all that there are."""
        self._evidence = evidence
        self._hearing = hearing = Hearing(namespace=namespace, names=names, kernel=kernel, evidence=evidence, clock=clock)
        self.heard, self.told = hearing.heard, hearing.told
        self._questions: dict[int, _Question] = {}
        self._ahead = 0
        self._sweeps: OrderedDict[int, _Sweep] = OrderedDict()

    # -- known attributes

    def lacks(self, directory: int, entry: Entry) -> bool:
        """Whether the attributes of an entry have to be asked for before anything is said of it."""
        if not self.keeps_attributes or entry.kind is Kind.SPECIAL or self._namespace.belief.is_ours(entry.inode):
            return False
        if entry.attributes is None:
            return self._expects(directory, entry.kind) is not False
        return self._ages(entry) and not self._namespace.belief.left_s(entry.described_s)

    def silence(self, directory: int) -> Silence:
        """Say what `lacks` and `must_hide` do of files, and more where nobody else is let in, that are not ours."""
        if not self.keeps_attributes:
            return Silence.HOLDS
        if self._namespace.shared:
            return Silence.LEFT
        return Silence.HOLDS if self._expects(directory, Kind.FILE) is False else Silence.LACKS

    def _ages(self, entry: Entry) -> bool:
        """Whether the attributes hold for the time to live only: a listing tells of files that they were changed."""
        return self._namespace.shared and entry.kind is Kind.DIRECTORY and not self._namespace.belief.is_ours(entry.inode)

    def valid_s(self, entry: Entry, ttl_s: float) -> float:
        """Return for how long the attributes of an entry hold that is itself believed for ``ttl_s``."""
        if self.must_hide(entry):
            return 0.0
        return min(ttl_s, self._namespace.belief.left_s(entry.described_s)) if self._ages(entry) else ttl_s

    def must_hide(self, entry: Entry) -> bool:
        """Whether others than the mounting user must not be let in, as nobody knows what the mode is."""
        if entry.attributes is not None or entry.inode == ROOT_INODE:
            return False
        return self._namespace.shared and self.keeps_attributes

    def _expects(self, directory: int, kind: Kind) -> bool | None:
        """Whether attributes matter that a listing does not tell; None: some have to be asked for to find out."""
        if self._mode == "exact" or (self._namespace.shared and kind is not Kind.SYMLINK):
            return True
        return self._evidence.expects(directory) if self._mode == "auto" else False

    # -- asking

    async def attributes(self, parent: int, name: bytes, entry: Entry) -> Attributes:
        """Return what object metadata says of an entry; asks the store if nothing has told yet. Raises `StoreError`."""
        namespace = self._namespace
        if entry.attributes is not None or not self.keeps_attributes or namespace.belief.is_ours(entry.inode):
            return entry.attributes or Attributes()
        while True:
            moves = await namespace.moving.under_one_name(parent)
            key, asked_s = namespace.places.key(parent, name, entry.kind), self._clock()
            try:
                info = await self._store.head(key)
            except NotFound:
                if entry.kind is not Kind.DIRECTORY:
                    return Attributes()  # the next look-up finds out what became of it
                info = _no_marker(key)
            if not namespace.moving.since(parent, moves):
                break
        (known,) = self._hearing.learn([News(parent, name, info, asked_s)])
        return known or parse_attributes(info.metadata) or Attributes()

    def tells(self, directory: int, entry: Entry) -> bool:
        """Whether nothing has to be asked for before an entry, that a program looks up, is shown."""
        if self.lacks(directory, entry):
            return False
        self._looked(directory)
        return True

    async def known(self, directory: int, name: bytes, entry: Entry) -> Entry:
        """Return the entry of a name with its attributes, if it lacks them and the store tells them.

        Raises as `Namespace.lookup` if it turns out to be gone.
        """
        for _ in range(TRIES):
            if self.tells(directory, entry):
                return entry
            if not self._store.reachable:
                return entry
            expected = self._expects(directory, entry.kind)
            question = await self._question(directory, name, entry)
            others: list[_Question] = []
            if expected is None:
                others = self._sample(directory, name, SAMPLE - 1)
            else:
                self._looked(directory, name)
            for each in (question, *others):
                if not await self._store.presence.promptly(each.done):
                    return entry
            if question.error is not None:
                return await self._in_spite_of(question.error, directory, name, entry)
            current = self._names.get(directory, name)
            if current is not None and current.inode == entry.inode and current.attributes is not None:
                return current
            self._namespace.belief.expire(entry.inode)  # it was replaced or removed since it was listed
            entry = await self._namespace.lookup(directory, name)
        return entry

    async def ask(self, directory: int, name: bytes, entry: Entry) -> None:
        """Ask for the attributes of a file, if nobody has, whether it matters or not. An outage leaves it as it is.

        The kernel asks us again before it refuses to execute something because of a mode that only a listing told.
        """
        if entry.attributes is not None or entry.kind is not Kind.FILE or not self._store.reachable:
            return
        try:
            await self.attributes(directory, name, entry)
        except StoreError as exc:
            log.info("the attributes of %r cannot be had: %s", name, exc)

    async def _in_spite_of(self, error: StoreError, directory: int, name: bytes, entry: Entry) -> Entry:
        """Try again, as patiently as other requests; where that fails, too, the known attributes must do."""
        if error.retryable:
            try:
                await self.attributes(directory, name, entry)
                return self._names.get(directory, name) or entry
            except StoreError as exc:
                error = exc
        log.info("the attributes of %r cannot be had: %s", name, error)
        return entry

    async def _question(self, directory: int, name: bytes, entry: Entry) -> _Question:
        question = self._questions.get(entry.inode)
        if question is None:
            moves = await self._namespace.moving.under_one_name(directory)
            question = self._questions.get(entry.inode) or self._begin(directory, name, entry, moves)
        return question

    def _begin(self, directory: int, name: bytes, entry: Entry, moves: int, *, ahead: bool = False) -> _Question:
        key, asked_s = self._namespace.places.key(directory, name, entry.kind), self._clock()
        question = self._questions[entry.inode] = _Question()
        self._ahead += ahead

        def answered(info: ObjectInfo | None, error: StoreError | None) -> None:
            del self._questions[entry.inode]
            self._ahead -= ahead
            try:
                self._take(directory, name, entry, info or _no_marker(key), error, asked_s, moves, question)
                if directory in self._sweeps:
                    self._sweep(directory)
            finally:
                question.done.set()

        self._store.submit("head", lambda driver: driver.head(key), answered)
        return question

    def _take(
        self,
        directory: int,
        name: bytes,
        entry: Entry,
        info: ObjectInfo,
        error: StoreError | None,
        asked_s: float,
        moves: int,
        question: _Question,
    ) -> None:
        if self._namespace.moving.since(directory, moves):
            question.error = _Moved(f"{name!r} has another key now")
        elif isinstance(error, NotFound) and entry.kind is not Kind.DIRECTORY:
            question.gone = True
        elif error is not None and not isinstance(error, NotFound):
            question.error = error
            if not isinstance(error, StoreUnavailable):
                self._evidence.note(directory, Attributes())  # where they cannot be had they are not expected
        else:
            self._hearing.learn([News(directory, name, info, asked_s)])

    async def judge(self, directory: int, *, begun: bool = False) -> None:
        """Find out before a large directory is shown whether its entries lack anything: each that does is looked up.

        ``begun``: its listing has only begun, so it is large.
        """
        listing = self._names.listings.of(directory)
        large = begun or (listing is not None and listing.entries >= JUDGED_FROM)
        if not large or not self._store.reachable:
            return
        if self.keeps_attributes and self._expects(directory, Kind.FILE) is None:
            for question in self._sample(directory, b"", SAMPLE):
                await self._store.presence.promptly(question.done)

    def _sample(self, directory: int, name: bytes, count: int) -> list[_Question]:
        """Ask for a few of the directory, from a name on, files first, to find out whether they carry attributes."""
        moves = self._namespace.moving.now(directory)
        if moves is None:
            return []
        near = [*self._names.after(directory, name, 2 * SAMPLE), *self._names.after(directory, b"", 2 * SAMPLE)]
        unknown = {n: e for n, e in near if n != name and e.inode not in self._questions and self.lacks(directory, e)}
        chosen = sorted(unknown.items(), key=lambda item: item[1].kind is Kind.DIRECTORY)[:count]
        return [self._begin(directory, n, e, moves) for n, e in chosen]

    # -- ahead

    def asks_ahead(self, directory: int) -> bool:
        """Whether entries of a directory are asked for ahead, the more the more are looked at."""
        return directory in self._sweeps

    def _looked(self, directory: int, name: bytes | None = None) -> None:
        """An entry is looked at; ``name``: it has to be asked for, so those after it may have to be, too."""
        sweep = self._sweeps.get(directory)
        if sweep is None and name is not None:
            sweep = self._sweeps[directory] = _Sweep(name, name)
            if len(self._sweeps) > SWEPT:
                self._sweeps.popitem(last=False)
        if sweep is not None:
            sweep.ahead.looked()
            self._sweep(directory)

    def _sweep(self, directory: int) -> None:
        """Ask for as many entries of a directory as may be asked for now."""
        sweep, left = self._sweeps[directory], SCANNED
        moves = self._namespace.moving.now(directory)
        gone = directory != ROOT_INODE and self._names.locate(directory) is None
        if gone or sweep.in_vain >= IN_VAIN or self._expects(directory, Kind.FILE) is False:
            del self._sweeps[directory]
            return
        while left and moves is not None and sweep.ahead.budget and self._ahead < MOST_AHEAD_AT_ONCE:
            batch = self._names.after(directory, sweep.after, min(left, 64))
            for name, entry in batch:
                if not sweep.ahead.budget or self._ahead >= MOST_AHEAD_AT_ONCE:
                    return
                sweep.after, left, sweep.in_vain = name, left - 1, sweep.in_vain + 1
                if entry.inode not in self._questions and self.lacks(directory, entry):
                    sweep.ahead.budget, sweep.in_vain = sweep.ahead.budget - 1, 0
                    self._begin(directory, name, entry, moves, ahead=True)
            if sweep.around and (not batch or sweep.after >= sweep.begun_at):
                del self._sweeps[directory]
                return
            if not batch:
                sweep.after, sweep.around = b"", True


class _Moved(StoreError):
    """The directory has another name than when it was asked."""

    retryable = True


def _no_marker(key: str) -> ObjectInfo:
    """Return the description of a directory that has no marker."""
    return ObjectInfo(key, 0, "", 0, {})
