"""Builds the parts of one under-store and joins them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.contents import Contents
from luxfuse.cache.directories import Directories
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.mover import Mover
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.placing import Placing
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.space import Shared, Space
from luxfuse.cache.trim import Trimmer
from luxfuse.cache.upload import Uploader
from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheDirectory as CacheSetting
from luxfuse.core.names import path_of
from luxfuse.core.policies import POLICIES
from luxfuse.core.rules import PathPolicies
from luxfuse.index import lifecycle
from luxfuse.index.audit import Auditor
from luxfuse.index.journal import Journal
from luxfuse.index.names import Names
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.orders.backlog import Backlog
from luxfuse.orders.check import Check, Checks
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.loads import Loads
from luxfuse.orders.retention import MarkStore, Retention
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.understore.locations import key_limits
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.attributes import Defaults
from luxfuse.vfs.conflicts import Conflicts
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.links import Links
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.moves import Moves
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery import Recovery
from luxfuse.vfs.tree import Tree
from luxfuse.volume.parts import VolumeParts
from luxfuse.volume.writing import build_writing

BASE_MEMORY_BYTES = 112 << 20
"""What the daemon takes before it caches a byte; the rest of --memory-limit goes to requests and pages in memory."""
LEAST_BUFFERS_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache directory in use, as the user wrote it, and its number in the index."""

    setting: CacheSetting
    directory: CacheDirectory
    number: int


class Local:
    """What lies on this machine: the cache directories with their staging files, the index, the journal."""

    def __init__(self, caches: Sequence[Cache], index: IndexStore, journal: Journal, epoch: int, *, clean: bool) -> None:
        """``caches``: the home directory first. ``clean``: the last run ended cleanly, with everything committed."""
        self.caches = caches
        self.directory = caches[0].directory
        self.index = index
        self.journal = journal
        self.epoch = epoch
        self.clean = clean
        self.staging = Staging(self.directory, [cache.directory for cache in caches[1:]])


class _Rules:
    """What the rules of the settings, and the marks made by commands, say of an object."""

    def __init__(self, policies: PathPolicies, marks: MarkStore) -> None:
        self._policies = policies
        self._marks = marks

    def placing(self, key: str) -> Placing:
        policy = self._policies.of(path_of(key))
        return Placing(policy.read_mode != "no-cache", policy.tier)

    def is_pinned(self, key: str) -> bool:
        path = path_of(key)
        return self._policies.of(path).pin or self._marks.marks.pinned(path)


def build_tree(
    s: Settings,
    store: Store,
    local: Local,
    kernel: Kernel,
    nursery: trio.Nursery,
    *,
    clock: Callable[[], float] = time.time,
    buffers_bytes: int | None = None,
) -> VolumeParts:
    """Build what needs no FUSE. ``clock``: wall-clock seconds; ``buffers_bytes``: else as the memory limit has it."""
    if buffers_bytes is None:
        buffers_bytes = max(LEAST_BUFFERS_BYTES, (s.memory_limit_bytes - BASE_MEMORY_BYTES) // 2)
    index, names, objects = local.index, Names(local.index, clock), Objects(local.index)
    lister = Lister(store=store, names=names, moving=Moving(names), nursery=nursery, clock=clock)
    namespace = Namespace(
        store=store,
        names=names,
        lister=lister,
        kernel=kernel,
        metadata_ttl_s=s.metadata_ttl_s,
        negative_ttl_s=s.negative_ttl_s,
        nursery=nursery,
        clock=clock,
        shared=s.allow_other,
    )
    if not local.clean:
        namespace.believe_from_s = names.believe_from_s = clock()
    policies = PathPolicies(s.path_rules, s.path_default)
    store.follow_rules(policies, path_of)
    marks = MarkStore(objects)
    hierarchy = Hierarchy(Shared(_Rules(policies, marks)))
    descriptions = Descriptions(
        namespace=namespace,
        names=names,
        store=store,
        kernel=kernel,
        mode=s.attributes,
        clock=clock,
    )
    cache = PageCache(
        store=store,
        objects=objects,
        hierarchy=hierarchy,
        descriptions=descriptions,
        source_id=s.source_id,
        epoch=local.epoch,
        memory_bytes=buffers_bytes,
        nursery=nursery,
        clock=clock,
    )
    trimmer = Trimmer(cache.contents, objects)

    def make_space(setting: CacheSetting, directory: CacheDirectory, number: int) -> Space:
        return _space(s, objects, cache.contents, trimmer, Cache(setting, directory, number))

    hierarchy.begin([make_space(each.setting, each.directory, each.number) for each in local.caches])
    mover = Mover(cache.contents, objects, cache.budget, lambda key: policies.of(path_of(key)).read_mode == "cache-promote")
    directories = Directories(
        contents=cache.contents,
        mover=mover,
        staging=local.staging,
        index=index,
        objects=objects,
        nursery=nursery,
        source_id=s.source_id,
        make_space=make_space,
    )
    ahead = FilesAhead(
        namespace=namespace,
        cache=cache,
        limit_bytes=s.readahead_bytes,
        largest_bytes=s.whole_file_threshold_bytes,
    )
    dirty = DirtyEntries()
    files = Files(
        namespace=namespace,
        cache=cache,
        kernel=kernel,
        ahead=ahead,
        behind=FillBehind(cache=cache, nursery=nursery),
        whole_file_bytes=s.whole_file_threshold_bytes,
        readahead_bytes=s.readahead_bytes,
        dirty=dirty,
    )

    def lost_files(space: Space) -> None:
        lifecycle.adopt(index, space.number, str(space.directory.path), space.directory.identity)
        cache.contents.forget_files(space)
        files.forget_all()

    cache.contents.readers = files
    hierarchy.shared.on_lost_files.append(lost_files)
    uploader = Uploader(store=store, journal=local.journal, budget=ByteBudget(buffers_bytes), max_uploads=s.max_uploads)
    recovered = Recovered(Path(s.state_dir, "recovered", s.source_id))
    writing = build_writing(
        s,
        namespace=namespace,
        entries=dirty,
        files=files,
        cache=cache,
        staging=local.staging,
        journal=local.journal,
        kernel=kernel,
        uploader=uploader,
        recovered=recovered,
        policies=policies,
        nursery=nursery,
    )
    writer, writeback = writing.writer, writing.writeback
    defaults = Defaults(
        uid=os.getuid() if s.uid is None else s.uid,
        gid=os.getgid() if s.gid is None else s.gid,
        umask=s.umask,
        mtime_ns=time.time_ns(),
    )
    limits = key_limits(s.source, hierarchical=store.abilities.hierarchical)
    tree = Tree(
        namespace=namespace,
        names=names,
        entries=dirty,
        files=files,
        writer=writer,
        notes=writing.notes,
        promises=writing.promises,
        publisher=writing.publisher,
        room=writing.room,
        writeback=writeback,
        journal=local.journal,
        defaults=defaults,
        hierarchical=store.abilities.hierarchical,
        limits=limits,
    )
    Conflicts(
        namespace=namespace,
        tree=tree,
        notes=writing.notes,
        publisher=writing.publisher,
        journal=local.journal,
        staging=local.staging,
        recovered=recovered,
        nursery=nursery,
    )
    moves = Moves(
        namespace=namespace,
        names=names,
        tree=tree,
        entries=dirty,
        files=files,
        notes=writing.notes,
        promises=writing.promises,
        publisher=writing.publisher,
        writeback=writeback,
        journal=local.journal,
        cache=cache,
        store=store,
        nursery=nursery,
    )
    links = Links(
        namespace=namespace,
        names=names,
        tree=tree,
        entries=dirty,
        writer=writer,
        notes=writing.notes,
        promises=writing.promises,
        writeback=writeback,
        journal=local.journal,
        hardlinks=s.hardlinks,
    )
    recovery = Recovery(
        namespace=namespace,
        names=names,
        entries=dirty,
        journal=local.journal,
        staging=local.staging,
        recovered=recovered,
        writeback=writeback,
        cache=cache,
        store=store,
        limits=limits,
    )
    fs = FileSystem(
        namespace=namespace,
        descriptions=descriptions,
        files=files,
        cache=cache,
        defaults=defaults,
        entries=dirty,
        writer=writer,
        notes=writing.notes,
        promises=writing.promises,
        room=writing.room,
        replicas=writing.replicas,
        tree=tree,
        moves=moves,
        links=links,
        policies=policies,
    )
    inventory = Inventory(namespace=namespace, cache=cache, objects=objects, dirty=dirty, staging=local.staging)
    retention = Retention(
        marks=marks,
        policies=policies,
        objects=objects,
        cache=cache,
        namespace=namespace,
        inventory=inventory,
        tree=tree,
        clock=clock,
    )

    def make_check(repair: bool, place: str) -> Check:
        return Check(
            repair=repair,
            place=place,
            cache=cache,
            objects=objects,
            auditor=Auditor(index, objects),
            inventory=inventory,
            staging=local.staging,
            journal=local.journal,
            dirty=dirty,
        )

    return VolumeParts(
        store,
        index,
        names,
        objects,
        hierarchy,
        cache,
        mover,
        directories,
        lister,
        namespace,
        ahead,
        files,
        fs,
        local.journal,
        local.staging,
        dirty,
        writing,
        Backlog(entries=dirty, journal=local.journal, writeback=writeback, store=store),
        recovered,
        recovery,
        Loads(namespace=namespace, cache=cache, dirty=dirty, store=store, nursery=nursery),
        inventory,
        Checks(make_check, nursery),
        retention,
        policies,
        uploader,
    )


def _space(s: Settings, objects: Objects, contents: Contents, trimmer: Trimmer, cache: Cache) -> Space:
    ratio = cache.setting.free_space_ratio
    return Space(
        cache.directory, objects, contents.hierarchy.shared, contents, trimmer,
        number=cache.number, tier=cache.setting.tier,
        policy=POLICIES[s.eviction_policy](), capacity_bytes=_capacity_bytes(cache),
        free_space_ratio=s.free_space_ratio if ratio is None else ratio,
        high_watermark=cache.setting.high_watermark, low_watermark=cache.setting.low_watermark,
        writable=s.read_mode != "no-cache" or any(rule.read_mode for rule in s.path_rules),
    )  # fmt: skip


def _capacity_bytes(cache: Cache) -> int | None:
    setting = cache.setting
    if setting.size_ratio is None:
        return setting.size_bytes
    return int(cache.directory.space().total_bytes * setting.size_ratio)
