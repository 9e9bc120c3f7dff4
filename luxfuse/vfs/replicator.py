"""The part of a cluster that writes need: other nodes hold promised files until the store has them.

`luxfuse.cluster.replicator` implements it; without a cluster there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from luxfuse.core.replicas import Outcome, Write


class Replicator(Protocol):
    """The replicas of the writes of one under-store. ``number``: of a file in our journal."""

    @property
    def copies(self) -> int:
        """How many other nodes are to hold a write; 0: none."""

    def write(self, number: int, generation: int) -> Write:
        """Return the name of a promised write of a file."""

    def described(self, metadata: Mapping[str, str], number: int, generation: int, key: str) -> dict[str, str]:
        """Return object metadata with the write id."""

    def plan(self, number: int, keep: Sequence[str]) -> tuple[str, ...]:
        """Return the peers that are to hold a file: those that do, as long as they are here, then the best others."""

    async def replicate(
        self,
        write: Write,
        key: str,
        metadata: Mapping[str, str],
        expect: str | None,
        holders: tuple[str, ...],
        fd: int,
        size: int,
        content: int,
    ) -> tuple[str, ...]:
        """Have enough peers hold the first ``size`` bytes of ``fd``; returns those that do. Raises `NotReplicated`.

        ``holders``: as `plan` has it. ``content``: generation of the same content that they hold already, or 0. ``fd`` -1:
        they are only told what it has become.
        """

    def release(self, number: int, generation: int, holders: Sequence[str], *, removed: bool = False) -> None:
        """Let holders drop what they have of a file up to ``generation``, soon. ``removed``: because the file is."""

    async def retract(self) -> None:
        """Wait a moment until holders have dropped removed files; those that do not answer are told later."""

    async def remove_again(self, outcome: Outcome) -> None:
        """A holder that took us for dead has brought a file to the store which was removed, or renamed, here."""

    def note_lost(self, number: int) -> None:
        """The content of a file that the journal knows is not here any more: its holders are to bring it to the store."""

    async def outcome(self, number: int, holders: Sequence[str]) -> Outcome | None:
        """Ask the holders that are here what became of a file; returns the latest that one of them brought to the store."""
