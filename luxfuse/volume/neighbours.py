"""The other nodes of a cluster, as one volume sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

from luxfuse.cache.placing import Copies, OneNode
from luxfuse.cache.race import PeerSource
from luxfuse.orders.inventory import Nodes
from luxfuse.vfs.replicator import Replicator


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Given to the parts of a volume when they are built; as it stands, there are no other nodes."""

    replicator: Replicator | None = None
    """Has writes held by others until the store has them."""
    peers: PeerSource | None = None
    """Asked for pages before the under-store is."""
    copies: Copies = field(default_factory=OneNode)
    """The copies at other nodes of objects that are cached here."""
    nodes: Nodes | None = None
    """Told of by ``luxfuse locate``."""
