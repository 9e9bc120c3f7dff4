"""``luxfuse csi``: the driver for Kubernetes, and the mounter."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed
from luxfuse.daemon.logs import Lines
from luxfuse.fuse import mountpoint as mounts

app = typer.Typer(help="The driver for Kubernetes; see luxfuse/docs/KUBERNETES.md.", no_args_is_help=True)

DIRECTORY, SECRETS, ENDPOINT = "/var/lib/luxfuse/csi", "/run/luxfuse/csi", "unix:///csi/csi.sock"
_Directory = Annotated[
    str, typer.Option("--directory", metavar="DIR", help="What driver and mounter share, at the same path in both.")
]


@app.command("driver")
def driver(
    node_id: Annotated[str, typer.Option("--node-id", metavar="NAME", help="The node's name in Kubernetes.")],
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="unix:///PATH", help="The socket of the driver.")
    ] = ENDPOINT,
    directory: _Directory = DIRECTORY,
) -> int:
    """Serve the calls of CSI on this node, until SIGTERM. Needs a mounter."""
    _imported("driver").run(endpoint, node_id, _prepared(directory))
    return 0


@app.command("mounter")
def mounter(
    directory: _Directory = DIRECTORY,
    secrets: Annotated[
        str, typer.Option("--secrets", metavar="DIR", help="Where secrets go: in memory (tmpfs).")
    ] = SECRETS,
) -> int:
    """Start and end mounts for the driver, until SIGTERM. The mounts stay: they end with its container."""
    _imported("mounter").run(_prepared(directory), Path(mounts.resolve(secrets)))
    return 0


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(f"luxfuse.csi.{module}")
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in ("grpc", "google"):
            raise
        raise CommandFailed(f"{exc.name} is not installed; run: pip install 'luxfuse[csi]'") from None


def _prepared(directory: str) -> Path:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return Path(mounts.resolve(directory))
