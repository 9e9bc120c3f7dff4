"""The driver: the CSI services of one node, on the socket that its kubelet knows. Remembers nothing between two calls."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from google.protobuf import message_factory

from luxfuse.csi import serving
from luxfuse.csi.api import csi_pb2
from luxfuse.csi.node import Identity, Node
from luxfuse.csi.publishing import Publishing
from luxfuse.errors import ConfigError, MountError

LOCK = "driver.lock"
_NODE_ID_MAX_BYTES = 256
_IDENTITY_THREADS = 4


def run(endpoint: str, node_id: str, directory: Path) -> None:
    """Serve until told to end. Raises ConfigError, MountError."""
    if not node_id or len(node_id.encode()) > _NODE_ID_MAX_BYTES:
        raise ConfigError(f"--node-id: write the node's name, of at most {_NODE_ID_MAX_BYTES} bytes")
    path = serving.socket_path(endpoint)
    lock = serving.Lock(directory / LOCK, "driver")
    try:
        try:
            publishing = Publishing(directory)
        except OSError as exc:
            raise MountError(f"{exc.filename or directory}: {exc.strerror}; make it writable") from None
        services = services_of(Identity(), Node(node_id, publishing))
        sweeper = threading.Thread(target=publishing.sweep_on, name="sweep", daemon=True)
        serving.serve(path, services, sweeper.start)
    finally:
        lock.close()


def services_of(identity: Any, node: Any) -> dict[str, dict[str, Any]]:
    """Return the handlers of all calls. Those that ask how the driver is have threads of their own.

    What a pod waits for takes as long as the store; a kubelet that does not hear from the driver meanwhile kills it.
    """
    threads = ThreadPoolExecutor(_IDENTITY_THREADS, "identity")
    return {"csi.v1.Identity": _calls("Identity", identity, threads), "csi.v1.Node": _calls("Node", node)}


def _calls(service: str, servicer: Any, threads: ThreadPoolExecutor | None = None) -> dict[str, Any]:
    """Return the handlers of those calls of a service that are offered; all others are UNIMPLEMENTED."""
    calls = {}
    for method in csi_pb2.DESCRIPTOR.services_by_name[service].methods:
        offered = getattr(servicer, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower(), None)
        if offered is not None:
            request = message_factory.GetMessageClass(method.input_type)
            calls[method.name] = serving.handler(
                method.name, offered, request.FromString, lambda answer: bytes(answer.SerializeToString()), threads
            )
    return calls
