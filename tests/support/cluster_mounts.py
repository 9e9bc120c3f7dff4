"""Several mounts of one source on this machine that are nodes of one cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luxfuse.cli import cluster
from tests.support.mounted import Mount, Mounts, wait_for


def make_key(path: Path, secret: bytes | None = None) -> Path:
    """Write a key file as ``luxfuse cluster init`` does, or one with this key."""
    if secret is None:
        assert cluster.init(str(path)) == 0
    else:
        path.write_text(secret.hex() + "\n")
        path.chmod(0o600)
    return path


def join_flags(key: Path, seeds: Sequence[str] = (), *flags: str, listen: str = "127.0.0.1:0") -> list[str]:
    """The flags of a node."""
    joins = [flag for seed in seeds for flag in ("--join", seed)]
    return ["--cluster-key-file", str(key), "--listen", listen, *joins, *flags]


def address(mount: Mount) -> str:
    """Where a node listens."""
    return str(mount.status()["node"]["address"])


def name(mount: Mount) -> str:
    """The name of a node; it keeps it when it is mounted again."""
    return str(json.loads((mount.directory() / "node.json").read_text())["name"])


def nodes(mount: Mount) -> dict[str, str]:
    """The states of the others as a node sees them, by name."""
    return {peer["name"]: peer["state"] for peer in mount.status()["peers"]}


def see_each_other(members: Sequence[Mount]) -> None:
    """Wait until all nodes see all others alive, and serving what they serve."""
    for mount in members:
        others = {name(other) for other in members if other is not mount}
        wait_for(f"{name(mount)} sees {others}", lambda m=mount, o=others: _serving(m) >= o)


def _serving(mount: Mount) -> set[str]:
    status = mount.status()
    alike = [p for p in status["peers"] if p["state"] == "alive" and p["sources"] == status["node"]["sources"]]
    return {peer["name"] for peer in alike}


def start(mounting: Mounts, source: str, count: int, key: Path, *flags: str, **settings: Any) -> list[Mount]:
    """Mount so many nodes; they see each other afterwards."""
    first = mounting(source, *join_flags(key, (), *flags), **settings)
    rest = [mounting(source, *join_flags(key, [address(first)], *flags), **settings) for _ in range(count - 1)]
    see_each_other([first, *rest])
    return [first, *rest]


def cluster_status(mount: Mount) -> dict[str, Any]:
    """What ``luxfuse cluster status --json`` says."""
    document: dict[str, Any] = json.loads(mount.cli("cluster", "status", mount.path, "--json", check=True).stdout)
    return document
