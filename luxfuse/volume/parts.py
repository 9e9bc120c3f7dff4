"""The parts of one under-store of a mount."""

from __future__ import annotations

from dataclasses import dataclass

from luxfuse.cache.directories import Directories
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.mover import Mover
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.upload import Uploader
from luxfuse.core.rules import PathPolicies
from luxfuse.index.journal import Journal
from luxfuse.index.names import Names
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.orders.backlog import Backlog
from luxfuse.orders.check import Checks
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.loads import Loads
from luxfuse.orders.manifest import Manifests
from luxfuse.orders.retention import Retention
from luxfuse.orders.schedules import Schedules
from luxfuse.tiers.staging import Staging
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.restart import Recovery
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer
from luxfuse.volume.writing import Writing


@dataclass(frozen=True, slots=True)
class VolumeParts:
    """Everything that one under-store of a mount has for itself."""

    store: Store
    index: IndexStore
    names: Names
    objects: Objects
    hierarchy: Hierarchy
    cache: PageCache
    mover: Mover
    directories: Directories
    lister: Lister
    namespace: Namespace
    ahead: FilesAhead
    files: Files
    fs: FileSystem
    journal: Journal
    staging: Staging
    dirty: DirtyEntries
    writing: Writing
    backlog: Backlog
    recovered: Recovered
    recovery: Recovery
    loads: Loads
    schedules: Schedules
    manifests: Manifests
    inventory: Inventory
    checks: Checks
    retention: Retention
    policies: PathPolicies
    uploader: Uploader

    @property
    def writer(self) -> Writer:
        """Opens files for writing."""
        return self.writing.writer

    @property
    def writeback(self) -> WriteBack:
        """Brings changes to the store."""
        return self.writing.writeback
