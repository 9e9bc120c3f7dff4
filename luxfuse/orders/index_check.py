"""The part of a check that is about the index: its records against each other; and, if so asked, sets them right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from luxfuse.core.units import format_count, format_size
from luxfuse.index.audit import Audit, Auditor
from luxfuse.index.objects import Objects
from luxfuse.index.tree_audit import TreeAuditor


class Found(Protocol):
    """Notes a problem, what is done about it if the check repairs, and whether that mended it."""

    def __call__(self, what: str, outcome: str | None = None, *, mended: bool = False) -> None:
        """Take it."""


def too_much(missing_bytes: int) -> str:
    """Say how much is counted wrong."""
    return f"{format_size(abs(missing_bytes))} too {'little' if missing_bytes > 0 else 'much'}"


class IndexCheck:
    """Compares the records of objects, and those of names, with what is kept beside them."""

    def __init__(
        self,
        auditor: Auditor,
        tree: TreeAuditor,
        objects: Objects,
        name: Callable[[str], str],
        found: Found,
        *,
        repair: bool,
    ) -> None:
        """``name``: what a key is called in the mount."""
        self._auditor = auditor
        self._tree = tree
        self._objects = objects
        self._name = name
        self._found = found
        self._repair = repair

    async def run(self) -> None:
        """Check all of it, once."""
        await self._of_objects()
        await self._of_names()

    async def _of_objects(self) -> None:
        audit = await self._auditor.run()
        self._totals(audit)
        for oid in audit.unranked:
            record = self._objects.record(oid)
            if record is not None:
                what = f"{self._name(record.key)}: its place in the order of eviction is wrong"
                self._corrected(what, partial(self._auditor.correct_standing, oid))
        for key in audit.dangling:
            what = f"index: object {key[10:].hex()} stands in the order of eviction, but is not there"
            self._corrected(what, partial(self._auditor.drop_standing, key))

    def _totals(self, audit: Audit) -> None:
        if not audit.totals:
            return
        used = sum(used for used, _ in audit.totals.values())
        count = sum(count for _, count in audit.totals.values())
        size = too_much(used) if used else "the right size"
        files = f"{format_count(abs(count), 'file')} too {'few' if count > 0 else 'many'}" if count else "all files"
        text = f"index: the totals count {size} and {files}" if used or count else "index: the totals are mixed up"
        self._corrected(text, partial(self._auditor.correct_totals, audit))

    async def _of_names(self) -> None:
        tree = self._tree
        audit = await tree.run()

        def paths(keys: Iterable[bytes]) -> list[tuple[str, bytes]]:
            return [(self._name(tree.path_of(key)), key) for key in keys]

        for path, key in paths(audit.lost):
            self._corrected(f"{path}: its inode number leads elsewhere", partial(tree.find_again, key))
        for path, key in paths(audit.stray):
            self._corrected(f"{path}: is recorded in a directory that is not there", partial(tree.forget, key))
        for inode in audit.dangling:
            what = f"index: inode {int.from_bytes(inode)} leads to a name that is not there"
            self._corrected(what, partial(tree.drop_number, inode))
        for inode in audit.unlisted:
            what = f"index: the listing of a directory that is not there, inode {int.from_bytes(inode)}"
            self._corrected(what, partial(tree.drop_listing, inode))

    def _corrected(self, what: str, correct: Callable[[], bool]) -> None:
        """Note a problem of the index, and with ``repair`` correct it."""
        done = self._repair and correct()
        self._found(
            what, "corrected" if done else "not mended: it is in use, or the index takes no changes now", mended=done
        )
