"""Builds the parts of one under-store that write, and joins them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.upload import Uploader
from luxfuse.core.memory import Shares
from luxfuse.core.names import path_of
from luxfuse.vfs.early import EarlyUploads
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.pushing import Pusher
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.room import Room
from luxfuse.vfs.spares import SpareFiles
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import IO_THREADS, Writer
from luxfuse.volume.opened import Opened
from luxfuse.volume.reading import Reading
from luxfuse.workers import Threads


@dataclass(frozen=True, slots=True)
class Writing:
    """The parts that bring changes from programs to the store."""

    uploader: Uploader
    recovered: Recovered
    pusher: Pusher
    writeback: WriteBack
    notes: Notes
    room: Room
    replicas: PromisedReplicas
    publisher: Publisher
    promises: Promises
    spares: SpareFiles
    writer: Writer


def build_writing(opened: Opened, reading: Reading, kernel: Kernel, memory: Shares) -> Writing:
    """Build them: each gets what it needs, but for write-back, which needs those that need it."""
    s, local, nursery = opened.settings, opened.local, opened.nursery
    namespace, entries, files, cache = reading.namespace, reading.dirty, reading.files, reading.cache
    journal, staging, replicator = local.journal, local.staging, opened.neighbours.replicator
    uploader = Uploader(
        store=opened.store, journal=journal, budget=ByteBudget(memory.uploads_bytes), max_uploads=s.max_uploads
    )
    recovered = Recovered(Path(s.state_dir, "recovered", s.source_id))
    pusher = Pusher(
        namespace=namespace,
        uploader=uploader,
        journal=journal,
        recovered=recovered,
        evidence=reading.evidence,
        replicator=replicator,
        fail_on_conflict=s.on_conflict == "fail",
    )
    writeback = WriteBack(
        namespace=namespace,
        entries=entries,
        store=uploader.store,
        journal=journal,
        pusher=pusher,
        is_read=files.copied.is_deferred,
        nursery=nursery,
    )
    notes = Notes(
        namespace=namespace,
        entries=entries,
        journal=journal,
        mode_of=lambda key: reading.policies.of(path_of(key)).write_mode,
    )
    room = Room(
        entries=entries,
        cache=cache,
        staging=staging,
        journal=journal,
        writeback=writeback,
        kernel=kernel,
        timeout_s=s.room_timeout_s,
        most_dirty=memory.most_dirty,
    )
    replicas = PromisedReplicas(notes=notes, journal=journal, writeback=writeback, replicator=replicator)
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
        will=opened.estate.will,
    )
    threads, spares = Threads(IO_THREADS), SpareFiles(staging)
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
        descriptions=reading.descriptions,
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
        spares=spares,
        whole_file_bytes=s.whole_file_threshold_bytes,
    )
    return Writing(uploader, recovered, pusher, writeback, notes, room, replicas, publisher, promises, spares, writer)
