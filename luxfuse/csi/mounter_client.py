"""What the driver asks of the mounter, and how: gRPC with JSON, on a unix socket beside the mounts.

The mounter is a process of its own, in a pod of its own, that starts the mounts' daemons; so these outlive the driver.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import msgspec

from luxfuse.csi.refusals import Refused
from luxfuse.csi.volumes import Wanted

SERVICE = "luxfuse.Mounter"
SOCKET, LOCK, MOUNTPOINTS = "mounter.sock", "mounter.lock", "mnt"
_MARGIN_S = 0.5
"""The mounter gives up before the driver's caller does, which then hears why."""


class Key(msgspec.Struct, frozen=True):
    """Which mount."""

    key: str


class Done(msgspec.Struct, frozen=True):
    """It is done."""


class MounterClient:
    """Asks the mounter on this node."""

    def __init__(self, directory: Path) -> None:
        """``directory``: what driver and mounter share."""
        self._socket = directory / SOCKET

    def mount(self, wanted: Wanted, give_up_at: float) -> None:
        """Have something mounted, or its new secrets taken up. Raises `Refused`."""
        self._call("Mount", wanted, give_up_at)

    def unmount(self, key: str, give_up_at: float) -> None:
        """Have what was written brought to the store, and the mount taken away; fine if there is none. Raises `Refused`."""
        self._call("Unmount", Key(key), give_up_at)

    def _call(self, method: str, request: Any, give_up_at: float) -> None:
        # One that was away is asked anew at once.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            ask = channel.unary_unary(
                f"/{SERVICE}/{method}", msgspec.json.encode, lambda data: msgspec.json.decode(data, type=Done)
            )
            try:
                ask(request, timeout=max(0.1, give_up_at - time.monotonic() - _MARGIN_S))
            except grpc.RpcError as exc:
                code, text = exc.code(), str(exc.details())
                if code == grpc.StatusCode.UNAVAILABLE:
                    text = f"the mounter does not answer on {self._socket}; is its pod running on this node?"
                elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
                    text = f"the mounter is still at work ({method.lower()}); call again"
                raise Refused(code, text) from None
