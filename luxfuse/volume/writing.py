"""Builds the parts of one under-store that write, and joins them."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.upload import Uploader
from luxfuse.config import Settings
from luxfuse.core.names import path_of
from luxfuse.core.rules import PathPolicies
from luxfuse.index.journal import Journal
from luxfuse.tiers.staging import Staging
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.early import EarlyUploads
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.pushing import Pusher
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.room import Room
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import IO_THREADS, Writer
from luxfuse.workers import Threads


@dataclass(frozen=True, slots=True)
class Writing:
    """What brings changes from programs to the store."""

    pusher: Pusher
    writeback: WriteBack
    notes: Notes
    room: Room
    replicas: PromisedReplicas
    publisher: Publisher
    promises: Promises
    writer: Writer


def build_writing(
    s: Settings,
    *,
    namespace: Namespace,
    entries: DirtyEntries,
    files: Files,
    cache: PageCache,
    staging: Staging,
    journal: Journal,
    kernel: Kernel,
    uploader: Uploader,
    recovered: Recovered,
    policies: PathPolicies,
    nursery: trio.Nursery,
) -> Writing:
    """Build them: each gets what it needs, but for write-back, which needs those that need it."""
    pusher = Pusher(
        namespace=namespace,
        uploader=uploader,
        journal=journal,
        recovered=recovered,
        fail_on_conflict=s.on_conflict == "fail",
    )
    writeback = WriteBack(
        namespace=namespace,
        entries=entries,
        store=uploader.store,
        journal=journal,
        pusher=pusher,
        is_read=files.is_deferred,
        nursery=nursery,
    )
    notes = Notes(
        namespace=namespace,
        entries=entries,
        journal=journal,
        mode_of=lambda key: policies.of(path_of(key)).write_mode,
    )
    room = Room(
        entries=entries,
        cache=cache,
        staging=staging,
        journal=journal,
        writeback=writeback,
        timeout_s=s.room_timeout_s,
    )
    replicas = PromisedReplicas(notes=notes, journal=journal, writeback=writeback)
    publisher = Publisher(
        namespace=namespace,
        entries=entries,
        files=files,
        cache=cache,
        staging=staging,
        journal=journal,
        kernel=kernel,
        writeback=writeback,
        uploader=uploader,
        nursery=nursery,
        notes=notes,
        room=room,
        replicas=replicas,
    )
    threads = Threads(IO_THREADS)
    promises = Promises(
        staging=staging,
        journal=journal,
        writeback=writeback,
        nursery=nursery,
        notes=notes,
        room=room,
        replicas=replicas,
        publisher=publisher,
        threads=threads,
    )
    writeback.connect(publisher, promises)
    writer = Writer(
        namespace=namespace,
        entries=entries,
        files=files,
        cache=cache,
        staging=staging,
        kernel=kernel,
        writeback=writeback,
        notes=notes,
        room=room,
        publisher=publisher,
        promises=promises,
        early=EarlyUploads(uploader=uploader, nursery=nursery, notes=notes),
        threads=threads,
        whole_file_bytes=s.whole_file_threshold_bytes,
    )
    return Writing(pusher, writeback, notes, room, replicas, publisher, promises, writer)
