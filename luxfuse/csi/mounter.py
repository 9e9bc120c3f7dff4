"""The mounter: starts and ends the mounts of the volumes of this node, by the commands of luxfuse.

A process that lives longer than the driver, since the daemons live in its pod. It knows nothing by heart: what is mounted
is in the registry of mounts, and what is wanted, secrets included, in files in memory (tmpfs), for root alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import msgspec

from luxfuse.cluster import LOCATIONS
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.csi import serving
from luxfuse.csi.mounter_client import LOCK, MOUNTPOINTS, SERVICE, SOCKET, Done, Key
from luxfuse.csi.refusals import Refused, invalid, unmet
from luxfuse.csi.turns import Turns
from luxfuse.csi.volumes import FILES, INLINE, KEY, Wanted, toml
from luxfuse.durable import make_private, replace_file
from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.peers import identity

log = logging.getLogger(__name__)

COMMAND_MOST_S = 3600.0
"""After so long a command is killed. By itself `mount` and `unmount` give up after a minute without progress."""
_WANTED, _CONFIG = "wanted.json", "config.toml"
_USAGE = 2
_SHORTEST_SECRET = 4


class Mounter:
    """The mounts of one node. ``directory``: shared with the driver, under the same path; ``secrets``: in memory."""

    def __init__(self, directory: Path, secrets: Path) -> None:
        """Raises MountError if the secrets would be on a disk."""
        self._directory = directory
        self._secrets = secrets
        self._turns = Turns()
        make_private(secrets)
        place = max((m for m in mounts.read_mounts() if mounts.is_inside(os.path.realpath(secrets), m.mountpoint)),
                    key=lambda mount: len(mount.mountpoint))  # fmt: skip
        if place.fstype not in ("tmpfs", "ramfs"):
            raise MountError(f"{secrets}: is on a disk ({place.fstype}), but secrets go there; mount a tmpfs on it")

    def mount(self, wanted: Wanted, give_up_at: float) -> Done:
        """Mount, unless that is done; secrets that have changed since are taken up."""
        where = self._place(wanted.key)
        with self._turns.of(wanted.key, give_up_at):
            record = registry.at(state_root(), str(where))
            if record is not None and (record.alive or record.is_restarting):
                self._again(wanted, where)
            else:
                self._mount(wanted, where, record)
        return Done()

    def unmount(self, asked: Key, give_up_at: float) -> Done:
        """Bring what was written to the store, and take the mount away."""
        where = self._place(asked.key)
        with self._turns.of(asked.key, give_up_at):
            if registry.at(state_root(), str(where)) is not None or mounts.find_mount(str(where)) is not None:
                self._run(self._kept(asked.key), "unmount", str(where))
                log.info("unmounted %s", where)
            self._forget(asked.key, where)
            if asked.key.startswith(INLINE):
                _discard_state(where)
        return Done()

    def _place(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise invalid("key: write 16 hexadecimal digits, after inline- for an inline volume")
        return self._directory / MOUNTPOINTS / key

    def _mount(self, wanted: Wanted, where: Path, record: MountRecord | None) -> None:
        if record is None and (left := mounts.find_mount(str(where))) is not None and left.fstype == mounts.FSTYPE:
            mounts.unmount(str(where), lazy=True, force=True)  # a dead one, whose state is gone
        make_private(where.parent)
        with contextlib.suppress(FileExistsError):
            where.mkdir(mode=0o755)
        self._write(wanted, where)
        try:
            self._run(wanted, "mount", "--config", str(self._secrets / wanted.key / _CONFIG))
        except Refused:
            self._forget(wanted.key, where)
            raise
        self._note(wanted)
        log.info("mounted %s on %s", wanted.settings["source"], where)

    def _again(self, wanted: Wanted, where: Path) -> None:
        """It is mounted: see to it that it is what is wanted."""
        before = self._kept(wanted.key)
        if before == wanted:
            return
        if before is not None and before.settings != wanted.settings:
            changed = {name for name in {*before.settings, *wanted.settings}
                       if before.settings.get(name) != wanted.settings.get(name)}  # fmt: skip
            raise unmet(
                f"{', '.join(sorted(changed))}: is mounted otherwise on this node, for a pod that uses the volume; a "
                "change holds when no pod here does"
            )
        self._write(wanted, where)
        self._run(wanted, "reload", str(where))
        self._note(wanted)  # only now: until then it is tried again
        log.info("took up new secrets of %s", where)

    def _kept(self, key: str) -> Wanted | None:
        """Return what is wanted."""
        try:
            return msgspec.json.decode((self._secrets / key / _WANTED).read_bytes(), type=Wanted)
        except (OSError, msgspec.DecodeError):
            return None

    def _note(self, wanted: Wanted) -> None:
        replace_file(self._secrets / wanted.key / _WANTED, msgspec.json.encode(wanted))

    def _write(self, wanted: Wanted, where: Path) -> None:
        directory = self._secrets / wanted.key
        make_private(directory)
        for name, content in wanted.files.items():
            if name not in FILES:
                raise invalid("files: there is no such secret")
            replace_file(directory / name, content.encode())
        replace_file(directory / _CONFIG, toml(wanted, str(directory), str(where)).encode())

    def _forget(self, key: str, where: Path) -> None:
        shutil.rmtree(self._secrets / key, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is empty, and no harm
            where.rmdir()

    def _run(self, wanted: Wanted | None, *arguments: str) -> None:
        """Run a command of luxfuse. Raises `Refused` with its last line."""
        command = [sys.executable, "-P", "-m", "luxfuse.cli.main", *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_MOST_S, check=False, cwd="/"
            )
        except subprocess.TimeoutExpired:
            text = f"luxfuse {arguments[0]} did not end within {COMMAND_MOST_S:g} s"
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        if done.returncode == 0:
            return
        said = done.stderr.decode(errors="replace").strip().splitlines()
        text = said[-1].removeprefix("luxfuse: ") if said else f"luxfuse {arguments[0]} ended with {done.returncode}"
        for secret in wanted.secrets if wanted is not None else []:
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        raise invalid(text) if done.returncode == _USAGE else unmet(text)


def _discard_state(where: Path) -> None:
    try:
        registry.discard(state_root(), os.path.realpath(where), needless=[LOCATIONS, identity.FILE])
    except OSError as exc:
        log.warning("the state of %s, which is not mounted any more, cannot be removed: %s", where, exc)


def run(directory: Path, secrets: Path) -> None:
    """Hold mounts until told to end; they go on without us. Raises MountError."""
    lock = serving.Lock(directory / LOCK, "mounter")
    try:
        mounter = Mounter(directory, secrets)
        calls = {"Mount": _handler("Mount", mounter.mount, Wanted), "Unmount": _handler("Unmount", mounter.unmount, Key)}
        serving.serve(directory / SOCKET, {SERVICE: calls})
    finally:
        lock.close()


def _handler(name: str, method: serving.Method, kind: type[Any]) -> Any:
    return serving.handler(name, method, lambda data: msgspec.json.decode(data, type=kind), msgspec.json.encode)
