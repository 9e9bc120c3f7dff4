"""Replicas that this node holds for the writers of others: files in its state directory. Every method here blocks.

``<root>/<writer>/<journal>-<number>.record`` describes the replica of one file; a file ``.data`` beside it, which it
names, is the content. A new content is written to a file of its own and synced; then a new record is synced and renamed
over the old one: that is the moment at which the new content takes the place of the old. Content that no record names
is left by a crash and removed at the start. When a replica has been brought to the store, the record stays without
content, for the writer.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
import zlib
from pathlib import Path

import msgspec

from luxfuse.core.replicas import FileId, Outcome, Replica, State
from luxfuse.durable import make_private, sync_directory, write_synced
from luxfuse.errors import ConfigError, LuxError
from luxfuse.steps import reached
from luxfuse.tiers.directory import write_all

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MOST_RECORDS = 200_000
READ_BYTES = 1 << 20
_WRITER = re.compile("[0-9a-f]{16}")


class Refused(LuxError):
    """A replica is not taken; the text says why in one line."""


class HeldReplica(msgspec.Struct, frozen=True, array_like=True):
    """The replica of one file. ``content``: name of the file with the content, or ""; ``crc`` is its CRC-32.

    ``version``, ``effective``: see `Outcome`. ``changed_s``: wall-clock time of the last change here.
    """

    replica: Replica
    state: State
    content: str
    crc: int
    version: str
    effective: bool
    changed_s: float

    @property
    def outcome(self) -> Outcome:
        """Its state, as its writer wants to know it."""
        return Outcome(self.replica.write, self.replica.key, self.state, self.version, self.effective)


_encode = msgspec.msgpack.Encoder().encode
_decode_format = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_decode = msgspec.msgpack.Decoder(HeldReplica).decode


class ReplicaFiles:
    """All replicas of this node. Threads may share it."""

    def __init__(self, root: Path, capacity_bytes: int) -> None:
        """Take over what is in ``root``. Raises OSError, and `ConfigError` for what another version has written."""
        self.root = root
        self.capacity_bytes = capacity_bytes
        self.holdings: dict[FileId, HeldReplica] = {}
        """Replaced, never changed; to be read in any thread."""
        self.used_bytes = 0
        """Of content, what is arriving included."""
        self._lock = threading.Lock()
        self._serials = itertools.count(1)
        make_private(root)
        for directory in sorted(root.iterdir()):
            if directory.is_dir() and _WRITER.fullmatch(directory.name):
                self._load(directory)

    def _load(self, directory: Path) -> None:
        used: set[str] = set()
        for path in sorted(directory.glob("*.record")):
            holding = _read(path)
            if holding is None:
                continue
            if holding.content and not _has_size(directory / holding.content, holding.replica.size):
                log.error("the replica of %r in %s has lost its content", holding.replica.key, directory)
                path.unlink()
                continue
            used.add(holding.content)
            self.holdings[holding.replica.write.file] = holding
            self.used_bytes += holding.replica.size if holding.content else 0
        for path in [*directory.glob("*.data"), *directory.glob("*.part")]:
            if path.name not in used:
                path.unlink()

    # -- taking

    def begin(self, replica: Replica) -> Arrival:
        """Make room for a replica that is to arrive. Raises `Refused`, OSError."""
        with self._lock:
            self._check(replica)
            if self.used_bytes + replica.size > self.capacity_bytes:
                raise Refused(f"there is no room for {replica.size} bytes beside {self.used_bytes} of replicas")
            self.used_bytes += replica.size
            serial = next(self._serials)
        try:
            return Arrival(self, replica, serial)
        except BaseException:
            self._give_back(replica.size)
            raise

    def _check(self, replica: Replica) -> None:
        known = self.holdings.get(replica.write.file)
        if known is None:
            if len(self.holdings) >= MOST_RECORDS:
                raise Refused(f"there are {len(self.holdings)} replicas already")
        elif known.replica.write.generation > replica.write.generation:
            raise Refused("a later content of the file is held already")
        elif known.state is State.TAKEN:
            raise Refused("an earlier content of the file is being brought to the store")

    def describe(self, replica: Replica, content: int, moment_s: float) -> None:
        """Say that the content held of generation ``content`` has become ``replica``. Raises `Refused`, OSError."""
        with self._lock:
            self._check(replica)
            known = self.holdings.get(replica.write.file)
            if known is None or not known.content or known.state is not State.HELD:
                raise Refused("the content is not here")
            same = known.replica.write.generation in (content, replica.write.generation)
            if not same or known.replica.size != replica.size:
                raise Refused("another content of the file is here")
            self._put(msgspec.structs.replace(known, replica=replica, changed_s=moment_s))

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.used_bytes -= size

    def _commit(self, replica: Replica, content: str, crc: int, moment_s: float) -> None:
        with self._lock:
            self._check(replica)
            self._put(HeldReplica(replica, State.HELD, content, crc, "", False, moment_s))

    # -- what becomes of it

    def settle(
        self, holding: HeldReplica, state: State, moment_s: float, *, version: str = "", effective: bool = False
    ) -> bool:
        """Note what became of what is held. False, and nothing done, if it is not what is held now. Raises OSError.

        Content that nobody needs any more goes.
        """
        with self._lock:
            file = holding.replica.write.file
            if self.holdings.get(file) is not holding:
                return False
            keeps = state in (State.HELD, State.TAKEN)
            self._put(msgspec.structs.replace(
                holding, state=state, content=holding.content if keeps else "", version=version, effective=effective,
                changed_s=moment_s,
            ))  # fmt: skip
            return True

    def drop(self, file: FileId, generation: int) -> bool:
        """Forget a file, unless what is held of it is later than ``generation`` or being brought up. Raises OSError."""
        with self._lock:
            known = self.holdings.get(file)
            if known is None or known.replica.write.generation > generation or known.state is State.TAKEN:
                return False
            self._record_of(file).unlink(missing_ok=True)
            reached("replica.dropped")
            del self.holdings[file]
            self._remove_content(known)
            return True

    def path_of(self, holding: HeldReplica) -> Path:
        """Return the path of the content."""
        return self._directory_of(holding.replica.write.file) / holding.content

    def is_whole(self, holding: HeldReplica) -> bool:
        """Whether the content is as it arrived. Raises OSError."""
        crc = 0
        with self.path_of(holding).open("rb") as file:
            while data := file.read(READ_BYTES):
                crc = zlib.crc32(data, crc)
            return file.tell() == holding.replica.size and crc == holding.crc

    # -- files

    def _directory_of(self, file: FileId) -> Path:
        return self.root / file.writer

    def _record_of(self, file: FileId) -> Path:
        return self._directory_of(file) / f"{file.journal}-{file.number:x}.record"

    def _put(self, holding: HeldReplica) -> None:
        """Replace the record of a file, durably, and remove the content that the old one named."""
        file = holding.replica.write.file
        path = self._record_of(file)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)  # of a run that was killed
        write_synced(part, _encode((FORMAT_VERSION, holding)))
        reached("replica.record-written")
        part.rename(path)
        reached("replica.recorded")
        before = self.holdings.get(file)
        self.holdings[file] = holding
        sync_directory(path.parent)  # before the old content goes: the old record may come back until then
        if before is not None and before.content != holding.content:
            self._remove_content(before)
        reached("replica.settled")

    def _remove_content(self, holding: HeldReplica) -> None:
        if holding.content:
            self.path_of(holding).unlink(missing_ok=True)
            self.used_bytes -= holding.replica.size


class Arrival:
    """A replica that is being received. Ends with `commit` or `abort`."""

    def __init__(self, files: ReplicaFiles, replica: Replica, serial: int) -> None:
        self._files = files
        self._replica = replica
        file = replica.write.file
        directory = files.root / file.writer
        if not directory.is_dir():
            make_private(directory)
            sync_directory(files.root)
        name = f"{file.journal}-{file.number:x}.{replica.write.generation:x}-{serial:x}.{os.getpid():x}.data"
        self._path = directory / name
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._written = 0
        self._crc = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. Raises `Refused` for more than were announced, OSError."""
        if self._written + len(data) > self._replica.size:
            raise Refused("more came than was announced")
        write_all(self._fd, data, self._written)
        self._written += len(data)
        self._crc = zlib.crc32(data, self._crc)

    def commit(self, moment_s: float) -> None:
        """Hold it, durably, in place of what was held of the file. Raises `Refused`, OSError; it is to be aborted then."""
        if self._written != self._replica.size:
            raise Refused(f"{self._written} bytes came instead of {self._replica.size}")
        os.fsync(self._fd)
        reached("replica.content")
        self._files._commit(self._replica, self._path.name, self._crc, moment_s)
        self._close()

    def abort(self) -> None:
        """Give it up; nothing happens after a `commit`."""
        if self._fd >= 0:
            self._close()
            held = self._files.holdings.get(self._replica.write.file)
            if held is not None and held.content == self._path.name:
                return  # recorded, though not for sure on the platter
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._files._give_back(self._replica.size)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _read(path: Path) -> HeldReplica | None:
    """Read a record; one that is damaged is put aside, and None returned. Raises `ConfigError` for another version."""
    try:
        version, rest = _decode_format(path.read_bytes())
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{path} has format {version}, this luxfuse knows {FORMAT_VERSION}; use the luxfuse that wrote it: it "
                "holds what another node has not uploaded yet"
            )
        return _decode(rest)
    except msgspec.MsgspecError as exc:
        aside = path.with_suffix(".damaged")
        log.error("the record of a replica cannot be read (%s); it is put aside as %s", exc, aside)  # noqa: TRY400
        path.rename(aside)
        return None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
