"""The parts of a whole mount: of its own under-store, and those that face the kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields

import trio

from luxfuse.config import Settings
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import Session
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.shares import KernelShares
from luxfuse.vfs.volumes import Volumes
from luxfuse.volume.assembly import Local, build_tree
from luxfuse.volume.parts import VolumeParts


@dataclass(frozen=True, slots=True)
class Parts(VolumeParts):
    """Everything that makes up a running daemon: the mount's own under-store, and what all share."""

    operations: Operations
    kernel: KernelSide
    session: Session
    volumes: Volumes
    shares: KernelShares


def build(s: Settings, store: Store, local: Local, nursery: trio.Nursery) -> Parts:
    """Build everything; tasks of the parts run in ``nursery``."""
    kernel = KernelSide()
    shares = KernelShares(kernel)
    volumes = Volumes(shares)
    p = build_tree(s, store, local, shares.share(0), nursery)
    volumes.main.serve(p.fs, negative_ttl_s=s.negative_ttl_s, read_only=s.read_only)
    operations = Operations(volumes, read_only=s.read_only)
    session = Session(
        operations,
        kernel,
        mountpoint=s.mountpoint,
        source=safe_url(s.source),
        allow_other=s.allow_other,
        want_passthrough=s.passthrough and s.read_mode != "no-cache",
        cache_directories=[cache.directory.path for cache in local.caches],
    )
    p.directories.kernel = session
    shared = {each.name: getattr(p, each.name) for each in fields(p)}
    return Parts(**shared, operations=operations, kernel=kernel, session=session, volumes=volumes, shares=shares)
