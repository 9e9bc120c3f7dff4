"""Names: look-ups, and names that are changed here.

An entry is believed for a while (`belief`); then the store is asked again, once however many callers wait (`asking`). A
directory in which several names had to be asked for one by one gets listed as a whole in the background (`relisting`).
While the store cannot be reached, or the index takes no changes (its disk is full), the known entries keep being served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind
from luxfuse.understore.retrying import Store
from luxfuse.vfs.asking import Questions
from luxfuse.vfs.belief import Belief
from luxfuse.vfs.doomed import Doomed
from luxfuse.vfs.errors import KernelBusy, NoSuchName, Stale
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.missing import Missing
from luxfuse.vfs.news import News
from luxfuse.vfs.places import Places
from luxfuse.vfs.relisting import Relisting
from luxfuse.vfs.unfinished import UnfinishedNames

log = logging.getLogger(__name__)


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
        makes_here: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        """``shared``: others than the mounting user are let in, and the kernel checks modes for them. ``makes_here``: see
        `Questions`.
        """
        self.shared = shared
        self._store = store
        self._names = names
        self.peek: Callable[[int, bytes], Entry | None] = names.get
        """Returns the known entry of a name, fresh or not, without asking the store."""
        self.lister = lister
        self.moving = lister.moving
        self._kernel = kernel
        self._doomed = doomed
        self._clock = clock
        self.root = Entry(ROOT_INODE, Kind.DIRECTORY, 0, "", 0, 0.0)
        self.places = places = Places(names)
        self.unfinished = UnfinishedNames(names, store.timeout_s)
        self.belief = belief = Belief(
            store=store,
            names=names,
            places=places,
            metadata_ttl_s=metadata_ttl_s,
            negative_ttl_s=negative_ttl_s,
            clock=clock,
        )
        names.listings.on_forget = self._listing_forgotten
        self.relisting = relisting = Relisting(
            store=store,
            names=names,
            places=places,
            belief=belief,
            lister=lister,
            nursery=nursery,
            clock=clock,
        )
        self.missing = missing = Missing(names=names, belief=belief, relisting=relisting)
        self._questions = Questions(
            store=store,
            names=names,
            places=places,
            belief=belief,
            relisting=relisting,
            missing=missing,
            moving=lister.moving,
            evidence=evidence,
            nursery=nursery,
            clock=clock,
            makes_here=makes_here,
        )
        self.news = News(names=names, belief=belief, missing=missing, kernel=kernel, root=self.root, clock=clock)
        nursery.start_soon(names.purger.run)

    def now_s(self) -> float:
        """Return the time that is recorded with an entry that is put now, in wall-clock seconds."""
        return self._clock()

    def hold(self, inode: int | None, parent: int, name: bytes) -> None:
        """The name is changed here: believe ourselves, not the store, until `settle`. ``inode`` None: it is removed."""
        self._names.hold(parent, name)
        if inode is not None:
            self.belief.hold(inode)

    def settle(self, inode: int | None, parent: int, name: bytes) -> None:
        """The store has the change. The name stays held while an object that also stands for it is to be removed."""
        self._names.told.revoke(parent, name)  # it was told as what holds as long as it is held
        if not self._is_doomed(parent, name):
            self._names.settle(parent, name)
        if inode is not None:
            self.belief.let_go(inode)

    def _is_doomed(self, parent: int, name: bytes) -> bool:
        """Whether an object that stands for a name is still to be removed from the store."""
        if not self._doomed.any:
            return False
        try:
            return self._doomed.has(self.places.key(parent, name, Kind.FILE))
        except Stale:
            return False

    def is_held(self, parent: int, name: bytes) -> bool:
        """Whether the name is ours to say."""
        return self._names.is_held(parent, name)

    def put(self, parent: int, name: bytes, entry: Entry) -> None:
        """Change an entry whose inode number stays. Raises OSError if the index takes no changes."""
        self._names.put(parent, name, entry)

    def moved(self, *directories: int) -> None:
        """Directories have moved: work out anew which key prefixes they have, and those below."""
        self.places.forget_prefixes()
        for directory in directories:
            self.moving.note(directory)

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Return the entry of a name. Raises `NoSuchName`, `StoreError`."""
        if self.unfinished:
            await self.unfinished.over(parent, name)
        entry = self.known(parent, name)
        if entry is not None:
            return entry
        found = await self._questions.ask(parent, name, self._names.get(parent, name))
        if found is None:
            raise NoSuchName(f"{name!r} does not exist")
        return found

    def known(self, parent: int, name: bytes) -> Entry | None:
        """Return the entry of a name, None if the store has to be asked. Raises `NoSuchName` if there is none."""
        if self.unfinished.covers(parent, name):
            return None
        entry, held = self.peek(parent, name), self._names.is_held(parent, name)
        if entry is None and (held or self.missing.knows(parent, name)):
            # The writer thread may have recorded a listing in between: it is the one that tells, and has the name then.
            entry = self.peek(parent, name)
            if entry is None:
                raise NoSuchName(f"{name!r} does not exist")
        return entry if entry is not None and (held or self.belief.is_fresh(entry)) else None

    async def current(self, inode: int) -> Entry:
        """Return the entry of an inode, asked for again if not fresh. Raises `Stale` if it was replaced or is gone."""
        if inode == ROOT_INODE:
            return self.root
        parent, name, entry = self.places.locate(inode)
        if self.unfinished.covers(parent, name):
            await self.unfinished.over(parent, name)
            parent, name, entry = self.places.locate(inode)
        if self.belief.is_fresh(entry):
            return entry
        found = await self._questions.ask(parent, name, entry)
        if found is None or found.inode != inode:
            raise Stale(f"{name!r} was replaced or removed")
        return found

    @property
    def can_ask(self) -> bool:
        """Whether the store is believed to answer."""
        return self._store.reachable

    async def confirm(self, inode: int, since_s: float) -> None:
        """As `current`, but believes only answers to questions of ``since_s`` or later. Raises `Stale`, `StoreError`."""
        parent, name, entry = self.places.locate(inode)
        if self.belief.is_held(inode) or since_s <= entry.checked_s <= self._clock():
            return
        found = await self._questions.ask(parent, name, entry, since_s)
        if found is None or found.inode != inode:
            raise Stale(f"{name!r} was replaced or removed")

    @property
    def next_inode(self) -> int:
        """The lowest inode number that was never given."""
        return self._names.next_inode

    def undo(self, parent: int, name: bytes) -> None:
        """A name was made by a daemon that was killed before it noted more: forget it."""
        self._names.erase(parent, name)

    def have_looked_up(self, parent: int, name: bytes) -> None:
        """Let the kernel forget what it knows of a name, as that is something else now."""
        self._kernel.invalidate_entry(parent, name)

    def stands_for(self, parent: int, name: bytes, inode: int, version: str) -> bool:
        """Whether a name is still this version, as far as is known here: a program may have written to it."""
        entry = self._names.get(parent, name)
        return entry is not None and entry.inode == inode and entry.version == version

    def renumber(self, inode: int) -> None:
        """Let the name of a file stand for a new inode, which is the same in all else; the old one is stale."""
        place = self.places.place_of(inode)
        entry = self.peek(*place) if place is not None else None
        if place is None or entry is None or entry.inode != inode or self._names.is_held(*place):
            return
        try:
            self._names.renumber(*place)
        except OSError as exc:  # its opens fail until those that are open are closed
            log.warning("the name of inode %d cannot be given another one: %s", inode, exc)
            return
        self._kernel.invalidate_entry(*place)

    def number_now(self, inode: int) -> int:
        """Return the inode number of what had this one, after `renumber`."""
        return self._names.number_now(inode)

    def position(self, inode: int) -> bytes:
        """Return the name that an inode number stands for or stood for. Raises `Stale`."""
        former = self._names.former_name(inode)
        return former if former is not None else self.places.place(inode)[1]

    def after(self, directory: int, name: bytes, limit: int, *, keep: bool = False) -> list[tuple[bytes, Entry]]:
        """Return the next ``limit`` entries of a directory after ``name``, by name; see `Names.after`."""
        return self._names.after(directory, name, limit, keep=keep)

    def is_changing(self, directory: int) -> bool:
        """Whether names of a directory may be others at any moment; see `ListedNames.is_changing`."""
        return self._names.is_changing(directory)

    def names_in(self, directory: int, limit: int) -> list[bytes]:
        """Return the first ``limit`` names of a directory."""
        return self._names.names_in(directory, limit)

    async def refresh(self, path: str) -> None:
        """Forget how fresh a path and, for a directory, its entries are, ask the store again, and tell the kernel."""
        try:
            await self._refresh(path)
        finally:
            settled = await self._kernel.forgotten()
        if not settled:
            raise KernelBusy("the store was asked again, but the kernel is slow to forget what it knew; try again")

    def _listing_forgotten(self, directory: int) -> None:
        """It is not known any more what is missing, and a listing that is under way does not tell."""
        self._names.told.revoke_missing(directory)
        self.belief.doubts.listings.note(directory, self._clock())

    async def _refresh(self, path: str) -> None:
        directory, entry = ROOT_INODE, self.root
        parts = [part.encode() for part in path.split("/") if part]
        for part in parts:
            directory = entry.inode
            self.missing.forget(directory, part)
            self._names.listings.forget(directory)
            found = await self._questions.ask(directory, part, None)
            self._kernel.invalidate_entry(directory, part)
            if found is None:
                raise NoSuchName(f"{path} does not exist")
            entry = found
        if entry.kind is Kind.DIRECTORY:
            self._names.listings.forget(entry.inode)
            await self.relisting.listed(entry.inode)
            self.missing.forget_in(entry.inode)
