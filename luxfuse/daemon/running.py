"""A running daemon: its settings, its parts, and further under-stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luxfuse.config import Settings
from luxfuse.daemon.parts import Parts
from luxfuse.daemon.succession import Succession
from luxfuse.orders.backlog import Progress
from luxfuse.understore.retrying import Store
from luxfuse.volume.parts import VolumeParts


@dataclass(frozen=True, slots=True)
class VolumeState:
    """An attached under-store: where, relative to the mount; ``parts`` while it is served; ``error`` says why it is not."""

    path: str
    settings: Settings
    state: str
    error: str | None
    parts: VolumeParts | None


class AttachedVolumes(Protocol):
    """The further under-stores of a mount. Failures are `LuxError` with one line."""

    def volumes(self) -> list[VolumeState]:
        """Return all of them, by path."""

    async def attach(self, base: Settings, source: str, path: str, options: Mapping[str, Any]) -> list[str]:
        """Attach one; ``base``: the mount's settings, for what ``options`` leave open. Returns lines worth knowing."""

    def detach(self, path: str, *, force: bool) -> AsyncGenerator[Progress, None]:
        """Bring what was written in it to its store, and take it away; yields how far that is."""


class Nodes(Protocol):
    """The cluster that the mount is in."""

    def describe(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return this node and the others, as `status` has them."""

    def statistics(self) -> dict[str, int]:
        """Return counters of what nodes ask of each other."""

    def degraded(self) -> list[str]:
        """Return what does not work as it should, a line each."""


class Replicas(Protocol):
    """Has other nodes of the cluster hold copies of what is cached."""

    async def order(
        self, parts: VolumeParts, paths: Sequence[str], least: int, most: int | None
    ) -> tuple[list[str], list[str]]:
        """Make rules, or end them (``least`` 0); returns lines: failures by path, and notes. Raises `LuxError`, OSError."""


@dataclass(slots=True)
class Running:
    """A running daemon. ``settings``: those of now, which a reload changes; ``nodes``, ``replicas``: in a cluster."""

    settings: Settings
    parts: Parts
    attached: AttachedVolumes
    nodes: Nodes | None
    replicas: Replicas | None
    started_s: float
    succession: Succession | None = None
    """None without a keeper."""
    http: str | None = None
    """The address of the web page, while there is one."""

    def volumes(self) -> list[tuple[str, VolumeParts]]:
        """Return what is served, and where: the mount's own under-store first."""
        return [("", self.parts), *((each.path, each.parts) for each in self.attached.volumes() if each.parts)]

    def stores(self) -> list[Store]:
        """Return the under-stores that are served now, the mount's own first."""
        return [parts.store for _, parts in self.volumes()]
