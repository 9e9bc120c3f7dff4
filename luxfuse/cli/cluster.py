"""``luxfuse cluster init`` and ``cluster status``: the key that nodes share, and the nodes as one of them sees them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed
from luxfuse.cli.report import AsJson, ask_status, print_json
from luxfuse.cli.targets import mount_at
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.core.printing import printable

app = typer.Typer(help="Mounts on many machines that share their caches.", no_args_is_help=True)


@app.command("init")
def init(
    key_file: Annotated[str, typer.Option("--key-file", metavar="FILE", help="A new file, for its owner alone.")],
) -> int:
    """Make the key of a new cluster. Copy the file to each machine, and mount there with --cluster-key-file."""
    from luxfuse.peers import keyfile

    keyfile.write_new(key_file)
    print(
        f"{printable(key_file)}: copy it to each machine, secretly, and mount there with: "
        "--cluster-key-file FILE --join HOST:PORT"
    )
    return 0


@app.command("status")
def status(
    mountpoint: Annotated[str | None, typer.Argument(help="One mount; if left out, the one that is in a cluster.")] = None,
    as_json: AsJson = False,
) -> int:
    """Show the nodes of a cluster as a mount here sees them."""
    document = _status_of(mountpoint)
    if as_json:
        print_json({name: document.get(name) for name in ("mountpoint", "node", "peers")})
        return 0
    from luxfuse.cli import render

    render.show_cluster(document["node"], document["peers"])
    return 0


def _status_of(mountpoint: str | None) -> dict[str, Any]:
    """Return the status document of a mount that is in a cluster. Raises `CommandFailed` if there is none, or several."""
    if mountpoint is not None:
        document = ask_status(mount_at(mountpoint))
        if not document.get("node"):
            raise CommandFailed(f"{document['mountpoint']} is in no cluster; mount it with --cluster-key-file FILE")
        return document
    documents = [ask_status(record) for record in registry.list_mounts(state_root()) if record.alive]
    documents = [document for document in documents if document.get("node")]
    if not documents:
        raise CommandFailed("no mount of this user is in a cluster; mount one with --cluster-key-file FILE")
    if len(documents) > 1:
        names = ", ".join(document["mountpoint"] for document in documents)
        raise CommandFailed(f"several mounts are in a cluster; name one of them: {names}")
    return documents[0]
