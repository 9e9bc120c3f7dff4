"""What is answered while other calls wait for a store that is away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio (luxfuse[csi])")

from luxfuse.csi import driver, serving  # noqa: E402
from luxfuse.csi.api import csi_pb2  # noqa: E402
from luxfuse.csi.node import Identity  # noqa: E402

PATIENCE_S = 120.0


class Held:
    """A node whose publishing waits."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)

    def node_publish_volume(self, _request: Any, _give_up_at: float) -> Any:
        self.waiting.release()
        assert self.gate.wait(PATIENCE_S)
        return csi_pb2.NodePublishVolumeResponse()


def test_a_driver_is_well_while_all_that_it_does_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "THREADS", 2)
    node = Held()
    server = serving.start(tmp_path / "socket", driver.services_of(Identity(), node))
    try:
        with grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
            publish = channel.unary_unary("/csi.v1.Node/NodePublishVolume")
            probe = channel.unary_unary("/csi.v1.Identity/Probe", response_deserializer=csi_pb2.ProbeResponse.FromString)
            calls = [publish.future(b"", timeout=PATIENCE_S) for _ in range(3)]
            for _ in range(2):
                assert node.waiting.acquire(timeout=PATIENCE_S)
            assert probe(b"", timeout=PATIENCE_S).ready.value is True
            assert not any(call.done() for call in calls)
            node.gate.set()
            assert [call.result(PATIENCE_S) for call in calls] == [b""] * 3
    finally:
        node.gate.set()
        server.stop(None).wait(PATIENCE_S)
