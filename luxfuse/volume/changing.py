"""Builds the parts of one under-store that change its tree of names, and joins them."""

from __future__ import annotations

from dataclasses import dataclass

from luxfuse.core.names import KeyLimits
from luxfuse.vfs.attributes import Defaults
from luxfuse.vfs.conflicts import Conflicts
from luxfuse.vfs.describing import Describing
from luxfuse.vfs.links import Links
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.rename import Moves
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.shown import Shown
from luxfuse.vfs.tree import Tree
from luxfuse.volume.opened import Opened
from luxfuse.volume.reading import Reading
from luxfuse.volume.writing import Writing


@dataclass(frozen=True, slots=True)
class Changing:
    """The parts that make, describe, remove, move and link names, and that show them."""

    tree: Tree
    making: Making
    describing: Describing
    removing: Removing
    shown: Shown
    directories: OpenDirectories
    moves: Moves
    links: Links


def build_changing(opened: Opened, reading: Reading, writing: Writing, defaults: Defaults, limits: KeyLimits) -> Changing:
    """Build them. ``limits``: how long keys of the store may be."""
    namespace, names, entries, files = reading.namespace, reading.names, reading.dirty, reading.files
    notes, promises, publisher, writeback = writing.notes, writing.promises, writing.publisher, writing.writeback
    journal, store = opened.local.journal, opened.store
    tree = Tree(namespace=namespace, entries=entries, notes=notes, journal=journal, limits=limits)
    making = Making(
        tree=tree,
        namespace=namespace,
        names=names,
        files=files,
        writer=writing.writer,
        notes=notes,
        promises=promises,
        publisher=publisher,
        room=writing.room,
        writeback=writeback,
        journal=journal,
        defaults=defaults,
    )
    describing = Describing(
        tree=tree,
        namespace=namespace,
        descriptions=reading.descriptions,
        entries=entries,
        writer=writing.writer,
        notes=notes,
        publisher=publisher,
        writeback=writeback,
    )
    removing = Removing(
        tree=tree,
        namespace=namespace,
        names=names,
        descriptions=reading.descriptions,
        describing=describing,
        entries=entries,
        files=files,
        publisher=publisher,
        writeback=writeback,
        journal=journal,
        room=writing.room,
        hierarchical=store.abilities.hierarchical,
    )
    Conflicts(
        namespace=namespace,
        removing=removing,
        notes=notes,
        publisher=publisher,
        journal=journal,
        staging=opened.local.staging,
        recovered=writing.recovered,
        nursery=opened.nursery,
    )
    shown = Shown(namespace=namespace, descriptions=reading.descriptions, entries=entries, defaults=defaults)
    directories = OpenDirectories(namespace=namespace, descriptions=reading.descriptions, removing=removing, shown=shown)
    moves = Moves(
        namespace=namespace,
        names=names,
        tree=tree,
        making=making,
        removing=removing,
        entries=entries,
        files=files,
        notes=notes,
        promises=promises,
        publisher=publisher,
        writeback=writeback,
        journal=journal,
        cache=reading.cache,
        store=store,
        directories=directories,
        recovered=writing.recovered,
        nursery=opened.nursery,
    )
    links = Links(
        namespace=namespace,
        names=names,
        tree=tree,
        making=making,
        describing=describing,
        entries=entries,
        writer=writing.writer,
        notes=notes,
        promises=promises,
        writeback=writeback,
        journal=journal,
        hardlinks=opened.settings.hardlinks,
    )
    return Changing(tree, making, describing, removing, shown, directories, moves, links)
