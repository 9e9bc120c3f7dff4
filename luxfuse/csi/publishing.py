"""Publishes volumes: has them mounted, once for a volume or all inline volumes that are alike, and shows that at targets.

What is so is found in the mount table, the registry of mounts and the files of `Publications`; so every step can be done
again, by another process as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

import grpc
import msgspec

from luxfuse.csi import binds, serving
from luxfuse.csi.mounter_client import MOUNTPOINTS, MounterClient
from luxfuse.csi.publications import Publication, Publications
from luxfuse.csi.refusals import NOT_FINAL, Refused, unmet
from luxfuse.csi.turns import Turns
from luxfuse.csi.volumes import Wanted
from luxfuse.durable import make_private, replace_file
from luxfuse.errors import LuxError, MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.steps import reached

log = logging.getLogger(__name__)

SWEEP_S = 600.0
_TARGETS, _NODE_KEY = "targets", "node.key"


class Publishing:
    """The volumes of one node. ``directory``: shared with the mounter, under the same path."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        make_private(directory)
        self._mountpoints = directory / MOUNTPOINTS
        self.publications = Publications(directory / _TARGETS)
        self._mounter = MounterClient(directory)
        self._turns = Turns()
        key = directory / _NODE_KEY
        if not key.exists():
            replace_file(key, os.urandom(32))
        self.node_key = key.read_bytes()

    def place(self, key: str) -> Path:
        """Return where something is mounted."""
        return self._mountpoints / key

    def publish(self, wanted: Wanted, publication: Publication, give_up_at: float, *, read_only: bool) -> None:
        """Have a volume at its target. Raises `Refused`, LuxError, OSError."""
        target = publication.target
        with self._turns.of(target, give_up_at):
            known = self.publications.at(target)
            there = mounts.find_mount(target)
            if known is None and there is not None:
                raise unmet(f"{target}: {there.source} ({there.fstype}) is mounted there already")
            if known is not None and there is not None:
                if (known.volume_id, known.arguments) != (publication.volume_id, publication.arguments):
                    text = f"{target}: is published with other arguments; unpublish it first"
                    raise Refused(grpc.StatusCode.ALREADY_EXISTS, text)
                # An inline volume whose secret is another one by now: its mount gets that, too.
                wanted, publication = msgspec.structs.replace(wanted, key=known.key), known
            with self._turns.of(wanted.key, give_up_at):
                self._check_alone(publication)
                self.publications.put(publication)
                reached("csi: noted")
                try:
                    self._mounter.mount(wanted, give_up_at)
                    reached("csi: mounted")
                    binds.show(self._mounted(wanted.key), target, read_only=read_only)
                except (Refused, LuxError, OSError) as exc:
                    if there is None and not (isinstance(exc, Refused) and exc.code in NOT_FINAL):
                        self._undo(publication, give_up_at)
                    raise
            if known is not None and known.key != wanted.key:
                with self._turns.of(known.key, give_up_at):
                    self._release(known.key, give_up_at)

    def unpublish(self, volume_id: str, target: str, give_up_at: float) -> None:
        """Take a volume off its target; what nobody uses any more is unmounted. Raises `Refused`, LuxError, OSError."""
        with self._turns.of(target, give_up_at):
            known = self.publications.at(target)
            if known is not None and known.volume_id != volume_id:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"{target}: another volume is published there")
            key = self._key_at(target) if known is None else known.key
            if key is None:
                binds.hide(target)
                return
            with self._turns.of(key, give_up_at):
                binds.hide(target)
                reached("csi: hidden")
                self._release(key, give_up_at)
                reached("csi: unmounted")
                self.publications.remove(target)

    def sweep_on(self) -> None:
        """Sweep now, and again from time to time; does not return."""
        while True:
            try:
                self.sweep()
            except Exception:
                log.exception("what is left of calls that were cut short cannot be looked for; it is tried again")
            time.sleep(SWEEP_S)

    def sweep(self) -> None:
        """Unmount what is left of calls that were cut short and that nobody asked for again. Logs what fails."""
        self.publications.prune()
        keys = [path.name for path in self._mountpoints.iterdir()] if self._mountpoints.is_dir() else []
        for key in keys:
            give_up_at = time.monotonic() + serving.DEADLINE_S
            try:
                with self._turns.of(key, give_up_at):
                    if all(known.key != key for known in self.publications.all()):
                        self._release(key, give_up_at)
            except (Refused, LuxError, OSError) as exc:
                log.warning("%s, which no pod uses, stays mounted: %s", self.place(key), exc)

    def _check_alone(self, publication: Publication) -> None:
        """Some volumes may be at one target only, by their access mode."""
        for other in self.publications.all():
            same = other.volume_id == publication.volume_id and other.target != publication.target
            if same and (other.alone or publication.alone) and mounts.find_mount(other.target) is not None:
                raise unmet(f"the volume is published at {other.target}, and by its access mode at one place only")

    def _mounted(self, key: str) -> mounts.MountInfo:
        found = mounts.find_mount(str(self.place(key)))
        if found is None or found.fstype != mounts.FSTYPE:
            raise MountError(
                f"{self.place(key)}: was mounted by the mounter and cannot be seen here; the driver needs the directory "
                "above it at the same path, with mountPropagation: HostToContainer, and the mounter with Bidirectional"
            )
        return found

    def _key_at(self, target: str) -> str | None:
        """Return which of our mounts is at a target of which nothing is noted."""
        there = mounts.find_mount(target)
        if there is None:
            return None
        same = (Path(mount.mountpoint) for mount in mounts.read_mounts() if mount.device == there.device)
        return next((place.name for place in same if place.parent == self._mountpoints), None)

    def _release(self, key: str, give_up_at: float) -> None:
        if not binds.users(self.place(key)):
            self._mounter.unmount(key, give_up_at)

    def _undo(self, publication: Publication, give_up_at: float) -> None:
        """A caller that hears of a final failure does not take back what was begun."""
        with contextlib.suppress(Refused, LuxError, OSError):  # the first failure is the one to tell of
            binds.hide(publication.target)
            self._release(publication.key, give_up_at)
            self.publications.remove(publication.target)
