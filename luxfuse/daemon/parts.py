"""The parts of a whole mount: of its own under-store, and those that face the kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields

from luxfuse.daemon.succession import Succession
from luxfuse.fuse.kept import KeptHandles
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.once import Begun
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.prompt import Prompt
from luxfuse.fuse.session import Held, Session
from luxfuse.fuse.tracing import Tracing
from luxfuse.fuse.watchdog import Watchdog
from luxfuse.understore.failures import safe_url
from luxfuse.vfs.shares import KernelShares
from luxfuse.vfs.volumes import Volumes
from luxfuse.volume.assembly import build_tree
from luxfuse.volume.opened import Opened
from luxfuse.volume.parts import VolumeParts


@dataclass(frozen=True, slots=True)
class Parts(VolumeParts):
    """Everything that makes up a running daemon: the mount's own under-store, and what all share."""

    operations: Operations
    kernel: KernelSide
    session: Session
    watchdog: Watchdog
    tracing: Tracing
    volumes: Volumes
    shares: KernelShares


def build(opened: Opened, succession: Succession | None = None) -> Parts:
    """Build everything."""
    s = opened.settings
    kernel = KernelSide(succession.inheritance if succession is not None else None)
    shares = KernelShares(kernel)
    volumes = Volumes(kernel)
    kept = KeptHandles(succession.estate.facts if succession is not None else None)
    begun = Begun(succession.estate.facts if succession is not None else None, volumes)
    if succession is not None and succession.inheritance is not None:
        begun.settle(succession.inheritance.unanswered)
    operations = Operations(volumes, read_only=s.read_only, kept=kept, begun=begun)
    session = Session(
        operations,
        kernel,
        mountpoint=s.mountpoint,
        source=safe_url(s.source),
        allow_other=s.allow_other,
        want_passthrough=s.passthrough and s.read_mode != "no-cache",
        want_data_plane=s.dataplane and s.read_mode != "no-cache",
        cache_directories=[claimed.directory.path for claimed in opened.local.directories],
        prompt=Prompt(operations, volumes),
        held=None if succession is None else _held(succession),
    )
    p = build_tree(opened, shares.share(0), prober=session)
    volumes.main.serve(p.fs, negative_ttl_s=s.negative_ttl_s, read_only=s.read_only)
    shared = {each.name: getattr(p, each.name) for each in fields(p)}
    return Parts(
        **shared,
        operations=operations,
        kernel=kernel,
        session=session,
        watchdog=Watchdog(operations, s.request_timeout_s, s.slow_request_s),
        tracing=Tracing(operations, kernel),
        volumes=volumes,
        shares=shares,
    )


def _held(succession: Succession) -> Held:
    estate = succession.estate
    return Held(succession.device, estate.facts, succession.inherited, lambda: estate.serves)
