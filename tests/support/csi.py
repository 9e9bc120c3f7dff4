"""A node with a driver and a mounter, as their pods run them, and a client that calls the driver as a kubelet does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory

from luxfuse.csi.api import csi_pb2
from luxfuse.fuse import mountpoint as mounts
from tests.support.mounted import PATIENCE_S, free, wait_for

MODE = csi_pb2.VolumeCapability.AccessMode
SERVICES = {
    method.name: (f"/{service.full_name}/{method.name}", method)
    for service in csi_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def capability(*flags: str, mode: int = MODE.MULTI_NODE_MULTI_WRITER, **mount: str) -> Any:
    """How a pod uses a volume, with mount options."""
    made = csi_pb2.VolumeCapability.MountVolume(mount_flags=flags, **mount)
    return csi_pb2.VolumeCapability(mount=made, access_mode=MODE(mode=mode))


class Node:
    """A directory for all of a node: state, cache, sockets, pods. Secrets are in memory."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="csi-"))
        self.memory = Path(tempfile.mkdtemp(prefix="csi-", dir="/dev/shm"))
        self.pods = self.base / "pods"
        self.pods.mkdir()
        self.directory = self.base / "lib/csi"
        self.log = self.base / "log"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("LUXFUSE_", "AWS_"))} | {
            "LUXFUSE_STATE_DIR": str(self.base / "lib"),
            "LUXFUSE_CACHE_DIR": str(self.base / "cache"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.mounter: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.tried: set[tuple[str, str]] = set()
        """Calls, and how they were tried: "twice", "twice after a kill", "wrong arguments"."""
        self._answered: set[tuple[str, bytes]] = set()
        """What this driver has been asked, and has done."""
        self._killed = False
        """Whether the driver before this one was killed."""

    def start_mounter(self) -> None:
        """Start the mounter."""
        (self.directory / "mounter.sock").unlink(missing_ok=True)
        self.mounter = self._start("mounter", "--secrets", str(self.memory))
        self._wait_for(self.mounter, self.directory / "mounter.sock")

    def start_driver(self, **environment: str) -> None:
        """Start the driver, after the end of the one before."""
        if self.driver is not None:
            self._killed = self.driver.wait(PATIENCE_S) != 0
        self._answered.clear()
        self.endpoint.unlink(missing_ok=True)
        self.driver = self._start("driver", "--node-id", "node-1", "--endpoint", f"unix://{self.endpoint}", **environment)
        self._wait_for(self.driver, self.endpoint)

    @staticmethod
    def _wait_for(process: subprocess.Popen[bytes], endpoint: Path) -> None:
        """Wait until a process listens: between bind and listen its socket is there already, and refuses."""

        def listens() -> bool:
            assert process.poll() is None, f"it ended with {process.returncode}"
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(endpoint)) == 0

        wait_for(f"{endpoint} to be listened on", listens)

    @property
    def endpoint(self) -> Path:
        """The driver's socket."""
        return self.base / "csi.sock"

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "luxfuse.cli.main", "csi", *arguments, "--directory", str(self.directory)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                                    env=self.environment | environment)  # fmt: skip

    def call(self, name: str, timeout_s: float = PATIENCE_S, **fields: Any) -> Any:
        """Make a call. Raises `grpc.RpcError`."""
        path, method = SERVICES[name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        answer = message_factory.GetMessageClass(method.output_type)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{self.endpoint}", options=options) as channel:
            done = channel.unary_unary(path, lambda r: r.SerializeToString(), answer.FromString)(request, timeout=timeout_s)
        asked = (name, request.SerializeToString(deterministic=True))
        if asked in self._answered:
            self.tried.add((name, "twice after a kill" if self._killed else "twice"))
        self._answered.add(asked)
        return done

    def refused(self, name: str, timeout_s: float = PATIENCE_S, **fields: Any) -> tuple[str, str]:
        """Make a call that must fail; returns code and text."""
        try:
            self.call(name, timeout_s, **fields)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.INVALID_ARGUMENT:
                self.tried.add((name, "wrong arguments"))
            return exc.code().name, str(exc.details())
        raise AssertionError(f"{name} was done")

    def target(self, name: str) -> str:
        """The target path of a pod, whose parent is there."""
        pod = self.pods / name
        pod.mkdir(exist_ok=True)
        return str(pod / "mount")

    def unpublish(self, volume_id: str, name: str) -> None:
        """Take a volume from a pod."""
        self.call("NodeUnpublishVolume", volume_id=volume_id, target_path=self.target(name))

    def records(self) -> list[Path]:
        """The registry's records of mounts that are there."""
        return sorted((self.base / "lib/mounts").glob("*/mount.json"))

    def mounted(self) -> list[str]:
        """What is mounted on this node, by mountpoint."""
        return sorted(m.mountpoint for m in mounts.read_mounts() if mounts.is_inside(m.mountpoint, str(self.base)))

    def logs(self) -> str:
        """What driver, mounter and daemons have said."""
        files = [self.log, *self.base.glob("lib/mounts/*/daemon.log*")]
        return "".join(file.read_text(errors="replace") for file in files)

    def end(self, process: subprocess.Popen[bytes] | None, number: int = signal.SIGTERM) -> None:
        """End driver or mounter."""
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE_S)

    def close(self) -> None:
        """Leave nothing behind."""
        self.end(self.driver)
        self.end(self.mounter)
        for mountpoint in reversed(self.mounted()):
            free(mountpoint)
        with contextlib.suppress(OSError):
            shutil.rmtree(self.memory)
        if not self.mounted():
            shutil.rmtree(self.base, ignore_errors=True)
