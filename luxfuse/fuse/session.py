"""Mounting and serving: the device comes from our own mount(2) as root, from fusermount3 as a plain user.

pyfuse3 gets one end of a socket pair as an already mounted descriptor (libfuse takes the path /dev/fd/N as such). INIT is
relayed once: read from the device, handed to libfuse, and libfuse's reply, caught at the other end of the pair, is given
the flags that libfuse 3.14 does not know before it goes to the device. Then the device takes the pair's place (dup2), so
that libfuse replies to the kernel directly, and the lanes of the extension begin to read requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from luxfuse.errors import MountError
from luxfuse.estate.facts import Facts
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.inheritance import INIT, InitFact
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.fuse.mountpoint import MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.prompt import Prompt
from luxfuse.keeper import RESEND, saying
from luxfuse.steps import reached

log = logging.getLogger(__name__)

INIT_IN = struct.Struct("IIIII")
"""struct fuse_init_in: major, minor, max_readahead, flags, flags2."""
INIT_OUT = struct.Struct("IIIIHHIIHHII")
"""struct fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2, max_stack_depth."""
IN_HEADER_BYTES, OUT_HEADER_BYTES = 40, 16
FUSE_INIT_EXT = 1 << 30
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
"""Set-id bits are ours to clear. Without it the kernel asks for file capabilities before each write, in passthrough too."""
FUSE_PARALLEL_DIROPS = 1 << 18
"""Names of one directory are looked up at the same time, and while it is read. Else one that waits has all others wait."""
FUSE_AUTO_INVAL_DATA = 1 << 12
"""The kernel asks for attributes that have run out before each read, and drops what it has cached if they are others.

Where all reads and writes are requests it has no need to: what is in an inode changes only by its own requests.
"""
FUSE_PASSTHROUGH_2 = 1 << 5
"""FUSE_PASSTHROUGH is bit 37: bit 5 of flags2."""
MOST_BYTES = 1 << 20
"""Of one READ or WRITE, as lanes have memory for (`MOST_BYTES` in C). Newer libfuse asks for what `fs.fuse.max_pages_limit`
allows, and the kernel lets nobody read the device who has less room than that."""
MAX_BACKGROUND = 128
MAX_TASKS = 1000
"""Requests handled at once. Reads that wait for a slow store must leave room for names and cached files."""
READ_AHEAD_KB = 8192
"""Measured: 8 MiB of read-ahead in the kernel about doubles a copied stream against the default of 128 KiB."""
STEP_DEADLINE_S = 10.0
REST_S = 2.0
"""For how long requests that are under way are waited for when another daemon is to go on: no other is read meanwhile."""
REST_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Held:
    """The device that a keeper holds open, and the facts for a successor; ``inherited``: it is mounted already.

    ``serves``: tells whether a daemon that ends has a successor, as it has from its first answer on.
    """

    device: int
    facts: Facts
    inherited: bool
    serves: Callable[[], bool]


class Session:
    """One mount of ``operations`` at ``mountpoint``."""

    def __init__(
        self,
        operations: Operations,
        kernel: KernelSide,
        *,
        mountpoint: str,
        source: str,
        allow_other: bool,
        want_passthrough: bool,
        want_data_plane: bool,
        cache_directories: Sequence[Path],
        prompt: Prompt | None = None,
        held: Held | None = None,
    ) -> None:
        """``prompt``: answers first what it can. ``held``: the device, if a keeper has it."""
        self._held = held
        self._operations = operations
        self._kernel = kernel
        self._mountpoint = mountpoint
        self._source = source
        self._allow_other = allow_other
        self._want_passthrough = want_passthrough
        self._want_data_plane = want_data_plane
        self._cache_directories = cache_directories
        self._prompt = prompt
        self.privileged = os.geteuid() == 0
        self._mounted = False
        self._initialised = False
        self._device_number: str | None = None
        self._device = -1
        self.ended = trio.Event()
        """Set once the mount is gone."""

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, report through ``task_status`` once requests are answered, and serve until unmounted."""
        try:
            await self._serve_device(await self._mount(), task_status)
        finally:
            with trio.CancelScope(shield=True):
                if self._mounted and not (self._held is not None and self._held.serves() and saying.is_heard()):
                    await trio.to_thread.run_sync(self._detach)
            if self._initialised:
                pyfuse3.close(unmount=False)
            self.ended.set()

    async def _mount(self) -> int:
        """Mount, and return the descriptor of the device. Raises `MountError`."""
        if self._held is not None and self._held.inherited:
            self._has_mounted()
            return self._held.device
        options = ["default_permissions", *(["allow_other"] if self._allow_other else [])]
        if self.privileged:
            device = self._held.device if self._held is not None else open_device()
            flags = MS_NOSUID | MS_NODEV | MS_NOATIME | (MS_RDONLY if self._operations.read_only else 0)
            options += ["rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
            mounts.mount_device(device, self._mountpoint, self._source, options, flags)
        else:
            options += ["nosuid", "nodev", "noatime", *(["ro"] if self._operations.read_only else [])]
            device = await trio.to_thread.run_sync(mounts.fusermount_device, self._mountpoint, self._source, options)
        self._has_mounted()
        reached("session.mounted")
        return device

    def _has_mounted(self) -> None:
        self._mounted = True
        mount = mounts.find_mount(self._mountpoint)
        if mount is not None:
            self._device_number = mount.device
            saying.mounted(mount.device)  # to the keeper, which may have to take it away

    async def _serve_device(self, device: int, task_status: trio.TaskStatus[None]) -> None:
        events_fd = passthrough.attach()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = theirs.detach()
        pyfuse3.init(self._operations, f"/dev/fd/{link}", set())
        self._initialised = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kernel.listen, events_fd)
            nursery.start_soon(self._kernel.end_waits)
            nursery.start_soon(self._operations.interrupts.run)
            if self._prompt is not None:
                nursery.start_soon(self._prompt.run)
            self._begin_main(nursery)
            with trio.fail_after(STEP_DEADLINE_S):
                offered = await self._relay_init(device, ours)
            ours.close()
            os.dup2(device, link, inheritable=False)
            nursery.start_soon(self._kernel.invalidate)  # no earlier: until now the link was the one that relayed INIT
            self._set_up_passthrough(device, offered)
            self._kernel.serves_bytes = self._want_data_plane
            self._device = device
            passthrough.start(device, self._want_data_plane)
            self._tune()
            if self._held is not None and self._held.inherited:
                self._kernel.end_inheritance()
                os.write(device, RESEND)
            task_status.started()

    async def _relay_init(self, device: int, ours: socket.socket) -> bool:
        """Pass INIT through libfuse; returns whether the kernel offers passthrough."""
        inherited = self._inherited_init()
        if inherited is not None:  # the kernel has its answer; libfuse is to know what it said
            passthrough.push(inherited.request)
            await trio.lowlevel.wait_readable(ours)
            ours.recv(4096)
            return inherited.offered
        init = await trio.to_thread.run_sync(os.read, device, 1 << 21, abandon_on_cancel=True)
        _, _, _, flags, *_ = INIT_IN.unpack_from(init.ljust(IN_HEADER_BYTES + INIT_IN.size, b"\0"), IN_HEADER_BYTES)
        flags2 = INIT_IN.unpack_from(init, IN_HEADER_BYTES)[4] if len(init) >= IN_HEADER_BYTES + INIT_IN.size else 0
        offered = bool(flags & FUSE_INIT_EXT and flags2 & FUSE_PASSTHROUGH_2)
        passthrough.push(init)
        await trio.lowlevel.wait_readable(ours)
        reply = bytearray(ours.recv(4096))
        out = list(INIT_OUT.unpack_from(reply, OUT_HEADER_BYTES))
        out[4], out[5] = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
        out[6], out[8] = min(out[6], MOST_BYTES), min(out[8], MOST_BYTES // os.sysconf("SC_PAGESIZE"))
        if offered and self._want_passthrough and self.privileged:
            out[3] |= FUSE_INIT_EXT
            out[10] |= FUSE_PASSTHROUGH_2
            out[11] = max(map(_stack_depth, self._cache_directories))
        else:
            out[3] &= ~FUSE_AUTO_INVAL_DATA
        out[3] |= flags & (FUSE_HANDLE_KILLPRIV_V2 | FUSE_PARALLEL_DIROPS)
        if self._held is not None:
            self._held.facts.put(INIT, msgspec.msgpack.encode(InitFact(init, offered)))
        INIT_OUT.pack_into(reply, OUT_HEADER_BYTES, *out)
        os.write(device, reply)
        return offered

    def _inherited_init(self) -> InitFact | None:
        found = self._held.facts.get(INIT) if self._held is not None else None
        return None if found is None else msgspec.msgpack.decode(found, type=InitFact)

    def _set_up_passthrough(self, device: int, offered: bool) -> None:
        if not self._want_passthrough:
            self._kernel.disable("switched off by the settings")
        elif not self.privileged:
            self._kernel.disable("the kernel offers it to root only")
        elif not offered:
            self._kernel.disable("the kernel does not offer it; Linux 6.9 or later does")
        else:
            self._kernel.enable(device)
            for directory in self._cache_directories:
                self._probe(directory)

    def probe(self, directory: Path) -> None:
        """Find out whether the kernel takes files of one more cache directory, if it takes any. Raises OSError."""
        if self._kernel.passthrough:
            self._probe(directory)

    def _probe(self, directory: Path) -> None:
        try:
            probe = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # it is read-only, or full: its files can be read all the same
            probe = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._kernel.probe(probe)
        finally:
            os.close(probe)

    def _begin_main(self, nursery: trio.Nursery) -> None:
        def fallocate(request: int, _inode: int, fh: int, mode: int, offset: int, length: int) -> None:
            nursery.start_soon(self._fallocate, request, fh, mode, offset, length)

        passthrough.set_fallocate(fallocate)
        nursery.start_soon(self._main, nursery.cancel_scope)

    async def _main(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main(max_tasks=MAX_TASKS)
        passthrough.set_fallocate(None)
        self._mounted = False
        scope.cancel()

    async def _fallocate(self, request: int, fh: int, mode: int, offset: int, length: int) -> None:
        code = 0
        try:
            await self._operations.fallocate(fh, mode, offset, length)
        except pyfuse3.FUSEError as exc:
            code = exc.errno
        passthrough.reply_err(request, code)

    def _tune(self) -> None:
        if self._device_number is None:
            return
        minor = self._device_number.partition(":")[2]
        settings = {f"/sys/class/bdi/{self._device_number}/read_ahead_kb": READ_AHEAD_KB}
        if not self.privileged:
            settings[f"/sys/fs/fuse/connections/{minor}/max_background"] = MAX_BACKGROUND
        for path, value in settings.items():
            with contextlib.suppress(OSError):  # needs root, or fusectl: then the kernel's defaults stay
                Path(path).write_text(str(value))

    async def rest(self) -> bool:
        """Read no more requests, and answer those that were read; False where some are not answered within `REST_S`.

        `go_on` reads requests again. Raises `MountError` if the kernel is too busy for that.
        """
        if not await self._kernel.hold():
            raise MountError(f"{self._mountpoint}: the kernel is busy with what it was told to forget; try again")
        with trio.move_on_after(REST_S):
            while not self._at_rest():  # noqa: ASYNC110 (lanes are other threads, and tell nothing)
                await trio.sleep(REST_POLL_S)
        return self._at_rest()

    def _at_rest(self) -> bool:
        return not passthrough.stop() and not passthrough.queued() and not self._operations.busy

    def go_on(self) -> None:
        """Read requests again."""
        passthrough.start(self._device, self._want_data_plane)
        self._kernel.go_on()

    async def unmount(self, *, lazy: bool = False) -> None:
        """Take the mount away; `serve` returns when the last file is closed.

        Raises `MountError` where it is busy, unless ``lazy``: then it leaves the tree at once, and open files live on.
        """
        if mounts.find_mount(self._mountpoint) is None:
            return  # another process did it; open files live on
        await trio.to_thread.run_sync(lambda: mounts.unmount(self._mountpoint, lazy=lazy))

    async def terminate(self) -> None:
        """End the connection, though files may be open: `serve` returns soon."""
        if self._device_number is not None:
            with contextlib.suppress(OSError, MountError):
                await trio.to_thread.run_sync(mounts.abort, self._device_number)
        pyfuse3.terminate()

    def _detach(self) -> None:
        """Leave no dead mount behind, after an error either."""
        with contextlib.suppress(MountError, OSError):
            mounts.unmount(self._mountpoint, lazy=True, force=True)


def open_device() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(f"/dev/fuse: {exc.strerror}; load the kernel module with: modprobe fuse") from None


def _stack_depth(directory: Path) -> int:
    """How deep file systems may lie on each other: overlayfs counts as one, and so do we."""
    path = str(directory.resolve())
    holder = max((m for m in mounts.read_mounts() if mounts.is_inside(path, m.mountpoint)), key=lambda m: len(m.mountpoint))
    return 2 if holder.fstype == "overlay" else 1
