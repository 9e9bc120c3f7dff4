"""The CSI calls that a node offers, and the identity of the driver: checks requests, and answers them.

https://github.com/container-storage-interface/spec/blob/v1.12.0/spec.md says what each call must do. There is no staging:
publishing a volume mounts it if it is not mounted yet, so inline volumes, which are never staged, go the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from luxfuse import __version__
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient
from luxfuse.csi import volumes
from luxfuse.csi.api import csi_pb2
from luxfuse.csi.publications import Publication
from luxfuse.csi.publishing import Publishing
from luxfuse.csi.refusals import Refused, invalid
from luxfuse.errors import LuxError
from luxfuse.fuse import mountpoint as mounts

NAME = "csi.luxfuse.io"
STATUS_DEADLINE_S = 5.0
STATFS_BYTES, STATFS_FILES = 1 << 60, 1 << 40
"""Of a store without a size."""
_MODE = csi_pb2.VolumeCapability.AccessMode
_ALONE = (_MODE.SINGLE_NODE_WRITER, _MODE.SINGLE_NODE_SINGLE_WRITER, _MODE.SINGLE_NODE_READER_ONLY)
_READERS = (_MODE.SINGLE_NODE_READER_ONLY, _MODE.MULTI_NODE_READER_ONLY)
_TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
_STRING_MAX_BYTES = 128
_CONTEXT_MAX_BYTES = 4096
_ID_MAX_BYTES = 192


class Identity:
    """``csi.v1.Identity``."""

    def get_plugin_info(self, _request: Any, _give_up_at: float) -> Any:
        """Name and version."""
        return csi_pb2.GetPluginInfoResponse(name=NAME, vendor_version=__version__)

    def get_plugin_capabilities(self, _request: Any, _give_up_at: float) -> Any:
        """None: volumes are made by hand, and can be anywhere."""
        return csi_pb2.GetPluginCapabilitiesResponse()

    def probe(self, _request: Any, _give_up_at: float) -> Any:
        """The driver is well if it answers. Whether the mounter does is another matter: to restart us would be no cure."""
        answer = csi_pb2.ProbeResponse()
        answer.ready.value = True
        return answer


class Node:
    """``csi.v1.Node``."""

    def __init__(self, node_id: str, publishing: Publishing) -> None:
        self._node_id = node_id
        self._publishing = publishing

    def node_get_info(self, _request: Any, _give_up_at: float) -> Any:
        """The node's name."""
        return csi_pb2.NodeGetInfoResponse(node_id=self._node_id)

    def node_get_capabilities(self, _request: Any, _give_up_at: float) -> Any:
        """What is offered besides publishing."""
        kind = csi_pb2.NodeServiceCapability.RPC
        types = (kind.GET_VOLUME_STATS, kind.VOLUME_CONDITION, kind.SINGLE_NODE_MULTI_WRITER, kind.VOLUME_MOUNT_GROUP)
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=kind(type=each)) for each in types]
        )

    def node_publish_volume(self, request: Any, give_up_at: float) -> Any:
        """Show a volume to a pod."""
        volume_id = _volume_id(request.volume_id)
        target = _path("target_path", request.target_path)
        capability = _capability(request)
        context = dict(request.volume_context)
        if (
            sum(len(name.encode()) + len(value.encode()) for name, value in context.items() if name != _TOKENS)
            > _CONTEXT_MAX_BYTES
        ):
            raise invalid(f"volume_context: is longer than {_CONTEXT_MAX_BYTES} bytes")
        group = capability.mount.volume_mount_group
        wanted = volumes.wanted(
            volume_id, context, capability.mount.mount_flags, request.secrets, group=group,
            node_key=self._publishing.node_key,
        )  # fmt: skip
        publication = Publication(
            target=target, volume_id=volume_id, key=wanted.key, alone=capability.access_mode.mode in _ALONE,
            arguments=_arguments(context, capability, request.readonly),
        )  # fmt: skip
        read_only = request.readonly or capability.access_mode.mode in _READERS
        self._publishing.publish(wanted, publication, give_up_at, read_only=read_only)
        return csi_pb2.NodePublishVolumeResponse()

    def node_unpublish_volume(self, request: Any, give_up_at: float) -> Any:
        """Take it away from the pod."""
        volume_id = _volume_id(request.volume_id)
        self._publishing.unpublish(volume_id, _path("target_path", request.target_path), give_up_at)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def node_get_volume_stats(self, request: Any, _give_up_at: float) -> Any:
        """How a volume is doing, without touching it: a bucket has no size, but its mount has a condition."""
        volume_id = _volume_id(request.volume_id)
        if request.volume_path and not request.volume_path.startswith("/"):
            raise Refused(grpc.StatusCode.NOT_FOUND, "volume_path: is no absolute path, so no volume is published there")
        path = _path("volume_path", request.volume_path)
        known = self._publishing.publications.at(path)
        if known is None or known.volume_id != volume_id or mounts.find_mount(path) is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"{path}: the volume is not published there")
        unit = csi_pb2.VolumeUsage
        fault = _fault(self._publishing.place(known.key))
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=[
                unit(unit=unit.BYTES, total=STATFS_BYTES, available=STATFS_BYTES),
                unit(unit=unit.INODES, total=STATFS_FILES, available=STATFS_FILES),
            ],
            volume_condition=csi_pb2.VolumeCondition(abnormal=bool(fault), message=fault or "serving"),
        )


def _fault(place: Path) -> str:
    """Return what is wrong with a mount; empty if nothing is."""
    record = registry.at(state_root(), str(place))
    if record is None or not record.alive:
        return record.death if record is not None else "the mount has no daemon any more"
    try:
        status: Mapping[str, Any] = ControlClient(record.socket_path, STATUS_DEADLINE_S).status()
    except LuxError as exc:
        return str(exc)
    faults = [str(reason) for reason in status["degraded_reasons"]]
    if status["understore"]["state"] != "ok" and not faults:
        faults.append("the store cannot be reached")
    if status["dirty"]["failing"]:
        faults.append(f"{status['dirty']['failing']} changes cannot be brought to the store: {status['dirty']['error']}")
    return "; ".join(faults)


def _volume_id(volume_id: str) -> str:
    if not volume_id:
        raise invalid("volume_id: is missing")
    if len(volume_id.encode()) > _ID_MAX_BYTES:
        raise invalid(f"volume_id: is longer than {_ID_MAX_BYTES} bytes")
    return volume_id


def _path(name: str, path: str) -> str:
    """Return a path as the mount table has it."""
    if not path:
        raise invalid(f"{name}: is missing")
    if not path.startswith("/") or "\0" in path:
        raise invalid(f"{name}: is no absolute path")
    return mounts.resolve(path)


def _capability(request: Any) -> Any:
    """Return how the volume is to be used. Raises `Refused` for what is not offered."""
    if not request.HasField("volume_capability"):
        raise invalid("volume_capability: is missing")
    capability = request.volume_capability
    if capability.WhichOneof("access_type") != "mount":
        raise invalid("volume_capability: a bucket is no block device; use volumeMode: Filesystem")
    if capability.mount.fs_type not in ("", "luxfuse", mounts.FSTYPE):
        raise invalid(f"volume_capability: fs_type {capability.mount.fs_type!r} is not luxfuse; leave it out")
    if capability.access_mode.mode == _MODE.UNKNOWN:
        raise invalid("volume_capability: access_mode is missing")
    if capability.access_mode.mode not in _MODE.Mode.values():
        raise invalid("volume_capability: access_mode is none of those of CSI 1.12")
    return capability


def _arguments(context: Mapping[str, str], capability: Any, readonly: bool) -> str:
    """Return a digest of what must not differ when a target is published once more; tokens change by themselves."""
    digest = hashlib.sha256(capability.SerializeToString(deterministic=True))
    for name, value in sorted(context.items()):
        if name != _TOKENS:
            digest.update(f"{len(name)} {len(value)} {name}{value}".encode())
    digest.update(str(readonly).encode())
    return digest.hexdigest()[:32]
