"""Which look-ups the lanes answer by themselves: those of names that are fresh and no files changed here, as we would.

What is offered here is taken back by `index.names.Names` before a name changes (`index.told`), which sees every change;
and by `News`, `Belief` and `AttributeEvidence`, which change what is believed of names. While the writer thread changes
names of a directory none of them is offered: nobody here knows at which moment they are others.

A name is offered when it was asked for, or a program has told that it opens it, and a directory when a name in it has
changed, as its attributes are asked for then. Names after it are offered along with one that was asked for, ever more
of them while a directory is asked for name by name: an offer costs 10 us, an answer here 250 us.

A directory of which all names are known is offered once a name was missed there, for the first half of the time that this
is believed: look-ups here, in the second half, have it listed ahead (`Missing.knows`).
"""

from __future__ import annotations

from collections import OrderedDict

from luxfuse.index.entries import Entry
from luxfuse.types import Kind
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.shown import Shown

LEAST_S = 0.1
"""What holds for less is not worth it."""
FEWEST_AHEAD = 4
MOST_AHEAD = 64
DIRECTORIES_KEPT = 1_000
MOST_NAMES = 4_096
"""Of a directory that is offered; to read so many takes the loop some milliseconds."""


class Answers:
    """What the lanes may answer for one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        shown: Shown,
        entries: DirtyEntries,
        kernel: Kernel,
    ) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._shown = shown
        self._dirty = entries
        self._kernel = kernel
        self._ahead: OrderedDict[int, int] = OrderedDict()
        """How many names were offered along with the last one that was asked for, by directory."""
        self._read: OrderedDict[int, float] = OrderedDict()
        """Of which listing the names of a directory were read last, by its time: once is enough."""

    def looked_up(self, parent: int, name: bytes) -> None:
        """A look-up had to be answered here: offer the name, and some after it."""
        if not self._kernel.answers or self._descriptions.asks_ahead(parent):
            return  # answers to look-ups here keep that going
        entry = self._namespace.peek(parent, name)
        if entry is None or not self._offer(parent, name, entry):
            return
        count = self._count(parent)
        for after, other in self._namespace.after(parent, name, count) if count else ():
            if not self._kernel.knows(parent, after) and not self._offer(parent, after, other, ahead=True):
                break

    def opened_soon(self, parent: int, name: bytes, entry: Entry) -> None:
        """A program has told that it will open the name, which has this entry now: it will be looked up before."""
        if self._kernel.answers and not self._descriptions.asks_ahead(parent) and not self._kernel.knows(parent, name):
            self._offer(parent, name, entry, ahead=True)

    def asked(self, inode: int, parent: int, name: bytes) -> None:
        """The attributes of an inode, which has this name, had to be told here."""
        entry = self._namespace.peek(parent, name) if self._kernel.answers else None
        if entry is not None and entry.inode == inode:
            self._offer(parent, name, entry)

    def missed(self, directory: int) -> None:
        """A name had to be told here to be missing: offer the directory, if all of its names are known."""
        namespace, kernel = self._namespace, self._kernel
        if not kernel.answers or namespace.unfinished or not namespace.can_ask or namespace.is_changing(directory):
            return
        fetched_s, left_s = namespace.missing.listed_s(directory)
        answer_s = left_s - namespace.belief.negative_ttl_s / 2
        if answer_s < LEAST_S or kernel.offer_missing(directory, None, answer_s=answer_s, valid_s=left_s):
            return
        if self._read.get(directory) == fetched_s:
            return
        self._read[directory] = fetched_s
        self._read.move_to_end(directory)
        if len(self._read) > DIRECTORIES_KEPT:
            self._read.popitem(last=False)
        names = namespace.names_in(directory, MOST_NAMES + 1)
        if len(names) <= MOST_NAMES:
            kernel.offer_missing(directory, names, answer_s=answer_s, valid_s=left_s)

    def _count(self, directory: int) -> int:
        before = self._ahead.pop(directory, None)
        count = 0 if before is None else min(MOST_AHEAD, max(FEWEST_AHEAD, 2 * before))
        self._ahead[directory] = count
        if len(self._ahead) > DIRECTORIES_KEPT:
            self._ahead.popitem(last=False)
        return count

    def _offer(self, parent: int, name: bytes, entry: Entry, *, ahead: bool = False) -> bool:
        """Whether the name was offered: it is still believed, and will be shown as it is until a change goes by `Names`."""
        if self._namespace.is_changing(parent):
            return False
        belief = self._namespace.belief
        ours = (
            belief.is_ours(entry.inode) or self._namespace.is_held(parent, name) or self._dirty.get(entry.inode) is not None
        )
        if ours and entry.kind is not Kind.DIRECTORY:  # a program may write to it without a word to us
            return False
        left_s = belief.fresh_s(entry)
        if left_s < LEAST_S or self._descriptions.lacks(parent, entry):
            return False
        stat = self._shown.clean(entry, left_s)
        if stat.ttl_s < LEAST_S:
            return False
        # The store is asked for the attributes of a file when it is looked at by its inode (`Descriptions.ask`).
        asks = entry.kind is Kind.FILE and entry.attributes is None and self._descriptions.keeps_attributes
        return self._kernel.offer(parent, name, stat, only_name=asks, ahead=ahead)
