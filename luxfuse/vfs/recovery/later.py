"""What the journal has and cannot be taken up yet: until it is, its name waits (`vfs.unfinished`).

The cache disk cannot be written, and has to be: after a power cut the journal alone may have the content of a small file.
Or the store does not say what it has of a file, or has not made its rename. What is known of such a name is older than what
was promised; and were it written anew, one of the two would be lost. So it is neither shown nor changed meanwhile, nor is a
directory above it moved, and nothing is pushed or removed under its key.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from luxfuse.errors import AccessDenied, LuxError, StoreUnavailable, Unforeseen
from luxfuse.index.journal import FileRecord
from luxfuse.index.names import Names
from luxfuse.tiers.directory import CANNOT_WRITE
from luxfuse.tiers.staging import Staging
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.frozen import FrozenKeys
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.places import JournalPlaces
from luxfuse.vfs.unfinished import Place, Wait

log = logging.getLogger(__name__)

PAUSE_S = 2.0
"""Between tries to take up what could not be."""
UNKNOWN_YET = (StoreUnavailable, AccessDenied)
"""The store does not answer, or refuses the credentials: what it has of a file is not known before that is over."""
LEFT = "what the last run left, which cannot be taken up yet"


@dataclass(frozen=True, slots=True, eq=False)
class _PutOff:
    """A file that waits, at ``place``, where ``inode`` is now."""

    record: FileRecord
    place: Place
    inode: int | None
    wait: Wait
    frozen: contextlib.ExitStack


class Unwritable(LuxError):
    """The cache disk cannot be written."""


class Later:
    """The files of the journal that wait."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        places: JournalPlaces,
        entries: DirtyEntries,
        staging: Staging,
        files: Files,
        frozen: FrozenKeys,
        must_wait: Callable[[str], bool],
        take_up: Callable[[int, FileRecord], Awaitable[None]],
    ) -> None:
        """``must_wait``: whether a key is part of a move that the store has not made."""
        self._namespace = namespace
        self._names = names
        self._places = places
        self._entries = entries
        self._staging = staging
        self._files = files
        self._frozen = frozen
        self._must_wait = must_wait
        self._take_up = take_up
        self._put_off: dict[int, _PutOff] = {}
        self._trying = trio.Lock()
        self._wanted = trio.Event()
        namespace.unfinished.on_wanted.append(self._try_now)

    def __bool__(self) -> bool:
        return bool(self._put_off)

    def put_off(self, number: int, record: FileRecord, exc: LuxError | OSError) -> bool:
        """Let the name of a file wait that could not be taken up; False if that is no reason to wait."""
        if isinstance(exc, UNKNOWN_YET):
            log.info("what became of %r cannot be told yet: %s", record.key, exc)
        elif exc.errno in CANNOT_WRITE:
            log.warning("%r cannot be taken up while the cache disk cannot be written: %s", record.key, exc)
        else:
            return False
        place = self._places.place(record.key)
        entry = self._names.get(*place)
        inode = entry.inode if entry is not None else None
        self._namespace.hold(inode, *place)
        frozen = contextlib.ExitStack()
        frozen.enter_context(self._frozen.freeze(record.key)).stick(LEFT)
        wait = self._namespace.unfinished.begin([place], record)
        self._namespace.unfinished.failed(wait, _told(exc))
        self._put_off[number] = _PutOff(record, place, inode, wait, frozen)
        return True

    def _try_now(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """Take all of it up, patiently."""
        while self._put_off:
            with trio.move_on_after(PAUSE_S):
                await self._wanted.wait()
            self._wanted = trio.Event()  # before it is tried: what calls for another try meanwhile is not lost
            await self.try_again()

    async def try_again(self) -> None:
        """Take up what can be, and say of the rest why it cannot; one that waits holds up nothing else."""
        async with self._trying:
            unwritable, away = set[Path](), False
            for number, each in list(self._put_off.items()):
                if self._must_wait(each.record.key):
                    continue
                directory, before = self._staging.path_of(number).parent, each.wait.error
                hopeless = directory in unwritable if isinstance(before, Unwritable) else away
                error = before if hopeless else await self._try(number, each)
                if error is None:
                    self._let_go(number, each)
                    continue
                self._namespace.unfinished.failed(each.wait, error)
                if isinstance(error, Unwritable):
                    unwritable.add(directory)
                away = away or isinstance(error, StoreUnavailable)

    async def _try(self, number: int, each: _PutOff) -> LuxError | None:
        """Take a file up; returns the error if that cannot be."""
        try:
            await trio.lowlevel.checkpoint()
            await self._take_up(number, each.record)
        except (LuxError, OSError) as exc:
            error = _told(exc)
        except Exception as exc:
            if not isinstance(each.wait.error, Unforeseen):
                log.exception("what the last run left of %r cannot be taken up, in an unexpected way", each.record.key)
            return Unforeseen(f"internal error ({type(exc).__name__}: {exc}), see the log")
        else:
            return None
        if str(error) != str(each.wait.error):
            log.info("what the last run left of %r cannot be taken up yet: %s", each.record.key, error)
        return error

    def _let_go(self, number: int, each: _PutOff) -> None:
        """A file is dirty again, or was set aside: its name is what it stands for now."""
        del self._put_off[number]
        entry = self._names.get(*each.place)
        dirty = self._entries.get(entry.inode) if entry is not None else None
        if dirty is None:
            self._namespace.settle(each.inode, *each.place)
        elif each.inode is not None and each.inode != dirty.inode:
            self._namespace.belief.let_go(each.inode)
        if dirty is not None and dirty.source is not None:  # programs may have had it open before
            self._files.backings.retire_idle(dirty.inode)
            self._files.copied.attach_staged(dirty.inode, dirty.source.bytes)
        self._names.listings.forget(each.place[0])
        self._namespace.have_looked_up(*each.place)
        self._namespace.unfinished.end(each.wait)
        each.frozen.close()


def _told(exc: LuxError | OSError) -> LuxError:
    """Return what programs are told: of a disk of ours EIO, whatever it says."""
    if isinstance(exc, LuxError):
        return exc
    return Unwritable(f"the cache disk cannot be written: {exc.strerror}")
