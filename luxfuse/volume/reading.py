"""Builds the parts of one under-store that read, and joins them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from luxfuse.cache.contents import Contents
from luxfuse.cache.directories import Directories, Prober
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.mover import Mover
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.placing import ANYWHERE, Placing
from luxfuse.cache.shared import Shared
from luxfuse.cache.space import Space
from luxfuse.cache.trim import Trimmer
from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.memory import Shares
from luxfuse.core.names import path_of
from luxfuse.core.policies import POLICIES
from luxfuse.core.rules import PathPolicies
from luxfuse.index import lifecycle
from luxfuse.index.name_changes import NameChanges
from luxfuse.index.names import Names
from luxfuse.index.objects import Objects
from luxfuse.orders.retention import MarkStore
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.copied import CopiedOpens
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.doomed import Doomed
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.namespace import Namespace
from luxfuse.volume.opened import ClaimedDirectory, Opened


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts that find names and bring content from the store to programs."""

    policies: PathPolicies
    marks: MarkStore
    names: Names
    objects: Objects
    lister: Lister
    evidence: AttributeEvidence
    namespace: Namespace
    descriptions: Descriptions
    hierarchy: Hierarchy
    cache: PageCache
    mover: Mover
    directories: Directories
    ahead: FilesAhead
    dirty: DirtyEntries
    files: Files


class _Rules:
    """The rules of the settings, and the marks made by commands."""

    def __init__(self, policies: PathPolicies, marks: MarkStore) -> None:
        self._policies = policies
        self._marks = marks

    def placing(self, key: str) -> Placing:
        policy = self._policies.of(path_of(key) if self._policies.rules else "")
        if policy.tier is None and policy.read_mode != "no-cache":
            return ANYWHERE
        return Placing(policy.read_mode != "no-cache", policy.tier)

    def is_pinned(self, key: str) -> bool:
        marks = self._marks.marks
        if not marks.pins and not self._policies.rules:  # this is asked for each object that comes
            return self._policies.of("").pin
        path = path_of(key)
        return self._policies.of(path).pin or marks.pinned(path)


def build_reading(
    opened: Opened, kernel: Kernel, prober: Prober | None, memory: Shares, clock: Callable[[], float] = time.time
) -> Reading:
    """Build them. ``clock``: wall-clock seconds."""
    s, store, local, nursery = opened.settings, opened.store, opened.local, opened.nursery
    objects = Objects(local.index)
    policies, marks = PathPolicies(s.path_rules, s.path_default), MarkStore(objects)
    store.follow_rules(policies, path_of)
    # A run that was killed may have changed names since without a record.
    names = Names(local.index, clock) if local.clean else Names(local.index, clock, believe_from_s=clock())
    names.told = kernel
    names.changes = NameChanges(local.index, local.journal.names)
    lister = Lister(store=store, names=names, moving=Moving(names), kernel=kernel, nursery=nursery, clock=clock)
    evidence = AttributeEvidence(names)
    namespace = Namespace(
        store=store,
        names=names,
        lister=lister,
        kernel=kernel,
        doomed=Doomed(local.journal),
        evidence=evidence,
        metadata_ttl_s=s.metadata_ttl_s,
        negative_ttl_s=s.negative_ttl_s,
        nursery=nursery,
        clock=clock,
        shared=s.allow_other,
        makes_here=lambda path: not s.read_only and not policies.of(path).write_mode.is_through,
    )
    descriptions = Descriptions(
        namespace=namespace, names=names, store=store, kernel=kernel, evidence=evidence, mode=s.attributes, clock=clock
    )
    hierarchy = Hierarchy(Shared(_Rules(policies, marks), opened.neighbours.copies))
    cache = PageCache(
        store=store,
        objects=objects,
        hierarchy=hierarchy,
        descriptions=descriptions,
        source_id=s.source_id,
        epoch=local.epoch,
        memory=memory,
        nursery=nursery,
        peers=opened.neighbours.peers,
        clock=clock,
    )
    trimmer = Trimmer(cache.contents, objects)

    def make_space(setting: CacheSetting, directory: CacheDirectory, number: int) -> Space:
        return _space(s, objects, cache.contents, trimmer, ClaimedDirectory(setting, directory, number))

    hierarchy.begin([make_space(each.setting, each.directory, each.number) for each in local.directories])
    mover = Mover(cache.contents, objects, cache.budget, lambda key: policies.of(path_of(key)).read_mode == "cache-promote")
    directories = Directories(
        contents=cache.contents,
        mover=mover,
        staging=local.staging,
        index=local.index,
        objects=objects,
        nursery=nursery,
        source_id=s.source_id,
        slots=opened.estate.slots,
        make_space=make_space,
        prober=prober,
    )
    dirty = DirtyEntries()
    copied = CopiedOpens(
        kernel=kernel,
        namespace=namespace,
        cache=cache,
        behind=FillBehind(cache=cache, nursery=nursery),
        readahead_bytes=s.readahead_bytes,
        nursery=nursery,
        will=opened.estate.will,
    )
    backings = Backings(
        namespace=namespace, cache=cache, kernel=kernel, entries=dirty, copied=copied, will=opened.estate.will
    )
    ahead = FilesAhead(
        namespace=namespace,
        cache=cache,
        receiver=backings,
        limit_bytes=s.readahead_bytes,
        largest_bytes=s.whole_file_threshold_bytes,
    )
    files = Files(
        namespace=namespace,
        cache=cache,
        kernel=kernel,
        ahead=ahead,
        copied=copied,
        backings=backings,
        whole_file_bytes=s.whole_file_threshold_bytes,
        dirty=dirty,
    )

    def lost_files(space: Space) -> None:
        lifecycle.adopt(local.index, space.number, str(space.directory.path), space.directory.identity)
        cache.contents.forget_files(space)
        backings.forget_all()

    def unreadable(space: Space) -> None:
        backings.forsake(lambda oid: objects.directory_of(oid) == space.number)
        cache.contents.forsake(space)

    def readable(space: Space) -> None:
        cache.contents.distrust_all(lifecycle.raise_epoch(local.index))
        cache.contents.take_up(space)

    cache.contents.readers = backings
    hierarchy.shared.on_lost_files.append(lost_files)
    hierarchy.shared.on_unreadable.append(unreadable)
    hierarchy.shared.on_readable.append(readable)
    return Reading(
        policies, marks, names, objects, lister, evidence, namespace, descriptions, hierarchy, cache, mover, directories,
        ahead, dirty, files,
    )  # fmt: skip


def _space(s: Settings, objects: Objects, contents: Contents, trimmer: Trimmer, claimed: ClaimedDirectory) -> Space:
    ratio = claimed.setting.free_space_ratio
    return Space(
        claimed.directory, objects, contents.hierarchy.shared, contents, trimmer,
        number=claimed.number, tier=claimed.setting.tier,
        policy=POLICIES[s.eviction_policy](), capacity_bytes=_capacity_bytes(claimed),
        free_space_ratio=s.free_space_ratio if ratio is None else ratio,
        high_watermark=claimed.setting.high_watermark, low_watermark=claimed.setting.low_watermark,
        writable=s.read_mode != "no-cache" or any(rule.read_mode for rule in s.path_rules),
    )  # fmt: skip


def _capacity_bytes(claimed: ClaimedDirectory) -> int | None:
    setting = claimed.setting
    if setting.size_ratio is None:
        return setting.size_bytes
    return int(claimed.directory.space().total_bytes * setting.size_ratio)
