"""Builds the parts of one under-store and joins them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from luxfuse.cache.directories import Prober
from luxfuse.config import Settings
from luxfuse.core.memory import Shares, default_limit, shares
from luxfuse.core.names import KeyLimits
from luxfuse.index.audit import Auditor
from luxfuse.index.tree_audit import TreeAuditor
from luxfuse.orders.backlog import Backlog
from luxfuse.orders.check import Check, Checks
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.loads import Loads
from luxfuse.orders.manifest import Manifests
from luxfuse.orders.retention import Retention
from luxfuse.orders.schedules import Schedules
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import key_limits
from luxfuse.vfs.answers import Answers
from luxfuse.vfs.attributes import Defaults
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.recovery.restart import Recovery
from luxfuse.vfs.refusals import Refusals
from luxfuse.vfs.xattrs import ExtendedAttributes
from luxfuse.volume.changing import Changing, build_changing
from luxfuse.volume.machine import memory_bytes
from luxfuse.volume.opened import Opened
from luxfuse.volume.parts import VolumeParts
from luxfuse.volume.reading import Reading, build_reading
from luxfuse.volume.writing import Writing, build_writing


def build_tree(
    opened: Opened,
    kernel: Kernel,
    *,
    prober: Prober | None = None,
    clock: Callable[[], float] = time.time,
    memory: Shares | None = None,
) -> VolumeParts:
    """Build what needs no FUSE.

    ``prober``: asked of each cache directory that is to be used besides; None: nothing is mounted. ``clock``: wall-clock
    seconds; ``memory``: else as the memory limit has it.
    """
    s, store, local = opened.settings, opened.store, opened.local
    if memory is None:
        memory = shares(default_limit(memory_bytes()) if s.memory_limit_bytes is None else s.memory_limit_bytes)
    reading = build_reading(opened, kernel, prober, memory, clock)
    writing = build_writing(opened, reading, kernel, memory)
    limits = key_limits(s.source, hierarchical=store.abilities.hierarchical)
    changing = build_changing(opened, reading, writing, _defaults(s), limits)
    recovery = _recovery(opened, reading, writing, changing, limits)
    inventory = Inventory(
        namespace=reading.namespace,
        cache=reading.cache,
        objects=reading.objects,
        dirty=reading.dirty,
        staging=local.staging,
        nodes=opened.neighbours.nodes,
    )
    retention = Retention(
        marks=reading.marks,
        policies=reading.policies,
        objects=reading.objects,
        cache=reading.cache,
        namespace=reading.namespace,
        inventory=inventory,
        removing=changing.removing,
        clock=clock,
    )

    def make_check(repair: bool, place: str) -> Check:
        return Check(
            repair=repair,
            place=place,
            cache=reading.cache,
            objects=reading.objects,
            auditor=Auditor(opened.local.index, reading.objects),
            tree=TreeAuditor(opened.local.index, reading.names),
            inventory=inventory,
            staging=opened.local.staging,
            journal=opened.local.journal,
            dirty=reading.dirty,
        )

    file_system = _file_system(reading, writing, changing, kernel)
    return VolumeParts(
        store,
        local.index,
        reading.names,
        reading.objects,
        reading.hierarchy,
        reading.cache,
        reading.mover,
        reading.directories,
        reading.lister,
        reading.namespace,
        reading.ahead,
        reading.files,
        file_system,
        local.journal,
        local.staging,
        reading.dirty,
        writing,
        Backlog(
            entries=reading.dirty,
            journal=local.journal,
            writeback=writing.writeback,
            store=store,
            unfinished=reading.namespace.unfinished,
        ),
        writing.recovered,
        recovery,
        Loads(namespace=reading.namespace, cache=reading.cache, dirty=reading.dirty, store=store, nursery=opened.nursery),
        Schedules(
            namespace=reading.namespace,
            cache=reading.cache,
            backings=reading.files.backings,
            answers=file_system.answers,
            dirty=reading.dirty,
            store=store,
            nursery=opened.nursery,
        ),
        Manifests(
            namespace=reading.namespace,
            names=reading.names,
            flush=local.index.flush,
            source=safe_url(opened.settings.source),
            source_id=opened.settings.source_id,
            nursery=opened.nursery,
        ),
        inventory,
        Checks(make_check, opened.nursery),
        retention,
        reading.policies,
        writing.uploader,
    )


def _defaults(s: Settings) -> Defaults:
    """Return the attributes of entries of which nobody has set any."""
    return Defaults(
        uid=os.getuid() if s.uid is None else s.uid,
        gid=os.getgid() if s.gid is None else s.gid,
        umask=s.umask,
        mtime_ns=time.time_ns(),
    )


def _recovery(opened: Opened, reading: Reading, writing: Writing, changing: Changing, limits: KeyLimits) -> Recovery:
    return Recovery(
        namespace=reading.namespace,
        names=reading.names,
        entries=reading.dirty,
        journal=opened.local.journal,
        staging=opened.local.staging,
        recovered=writing.recovered,
        writeback=writing.writeback,
        cache=reading.cache,
        store=opened.store,
        limits=limits,
        replicator=opened.neighbours.replicator,
        will=opened.estate.will,
        inherited=opened.estate.inherited,
        files=reading.files,
        directories=changing.directories,
        promises=writing.promises,
        nursery=opened.nursery,
    )


def _file_system(reading: Reading, writing: Writing, changing: Changing, kernel: Kernel) -> FileSystem:
    """Build the part that answers the kernel."""
    refusals = Refusals(reading.namespace, reading.policies)
    return FileSystem(
        namespace=reading.namespace,
        descriptions=reading.descriptions,
        files=reading.files,
        cache=reading.cache,
        entries=reading.dirty,
        writer=writing.writer,
        notes=writing.notes,
        promises=writing.promises,
        replicas=writing.replicas,
        tree=changing.tree,
        making=changing.making,
        describing=changing.describing,
        removing=changing.removing,
        moves=changing.moves,
        links=changing.links,
        shown=changing.shown,
        refusals=refusals,
        directories=changing.directories,
        answers=Answers(
            namespace=reading.namespace,
            descriptions=reading.descriptions,
            shown=changing.shown,
            entries=reading.dirty,
            kernel=kernel,
        ),
        xattrs=ExtendedAttributes(
            namespace=reading.namespace,
            descriptions=reading.descriptions,
            entries=reading.dirty,
            cache=reading.cache,
            room=writing.room,
            describing=changing.describing,
            refusals=refusals,
        ),
    )
