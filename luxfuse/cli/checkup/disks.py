"""Whether the cache directories and the state directory are on disks that serve: room, speed, kind of file system."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from luxfuse.cli.checkup.findings import Finding, State, fail, ok, warn
from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.units import format_size
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.mountpoint import MountInfo

MIB = 1 << 20
_SAMPLE = os.urandom(MIB)
SAMPLE_MIB = 32
"""So much is written and read; a disk that takes longer than `PATIENCE_S` for it is told by what it did until then."""
PATIENCE_S = 5.0
SYNCS = 15
SLOW_WRITE, SLOW_READ = 50 * MIB, 100 * MIB
"""Bytes a second; below, a cache on the disk is no faster than many a store. The reading of a disk of 2015."""
SLOW_SYNC_S = 0.02
"""Of one small file, as each close of async-through waits for. A disk that turns takes about 10 ms."""
LITTLE_BYTES = 1 << 30
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "9p", "virtiofs", "fuse", "fuseblk")


def check_disks(settings: Settings) -> Generator[Finding, None, None]:
    """Look at all directories that a mount with these settings would use. Leaves nothing there."""
    mounted = mounts.read_mounts()
    for setting in settings.cache_dirs:
        yield from _check_directory("cache", setting.path, mounted, setting, settings.free_space_ratio)
    yield from _check_directory("state", settings.state_dir, mounted, None, 0.0)


def _check_directory(
    name: str, path: str, mounted: list[MountInfo], cache: CacheSetting | None, free_ratio: float
) -> Iterator[Finding]:
    option = "--cache-dir" if cache is not None else "LUXFUSE_STATE_DIR"
    real = mounts.resolve(path, mounted)
    mount = mounts.mount_around(real, mounted)
    assert mount is not None  # there is always one at the root
    if mount.fstype == mounts.FSTYPE:
        yield fail(name, f"{path} is on a luxfuse mount", f"choose a local disk with {option}")
        return
    there = existing(Path(real))
    if not os.access(there / ".", os.F_OK):
        yield fail(name, f"{path} cannot be made: {there} is no directory", f"choose another with {option}")
        return
    kind = f"{path} on {mount.fstype}"
    if "ro" in mount.options:
        yield fail(name, f"{kind}: mounted read-only", f"mount it to be written, or choose another with {option}")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".luxfuse-doctor-", dir=there) as scratch:
            yield _check_kind(name, kind, mount.fstype, cache is not None, option)
            if cache is not None:
                yield _check_room(path, there, cache, free_ratio)
                yield from _check_speed(path, Path(scratch))
    except OSError as exc:
        yield fail(name, f"{kind}: {exc.strerror}", f"make {there} writable for this user, or choose another with {option}")


def existing(path: Path) -> Path:
    """Return the directory itself, or the nearest one above it that exists, as far as this user may look."""
    while not os.access(path, os.F_OK) and path != path.parent:
        path = path.parent
    return path


def _check_kind(name: str, kind: str, fstype: str, is_cache: bool, option: str) -> Finding:
    if fstype in _NETWORK or fstype.startswith("fuse."):
        if is_cache:
            return warn(name, f"{kind}: a network disk, or one behind a program", f"choose a local disk with {option}")
        return fail(
            name, f"{kind}: locks and shared memory may not work there, which protect the mount's records",
            f"choose a local disk with {option}",
        )  # fmt: skip
    if fstype in ("tmpfs", "ramfs"):
        what = "what is cached" if is_cache else "what is known of the mount, changes not uploaded among it,"
        return warn(name, f"{kind}: {what} is gone after a restart of the machine", f"choose a disk with {option}")
    if fstype == "overlay" and is_cache:
        return warn(
            name, f"{kind}: goes with the container", f"mount a volume of the host there, or choose one with {option}"
        )
    return ok(name, kind)


def _check_room(path: str, there: Path, cache: CacheSetting, free_ratio: float) -> Finding:
    found = os.statvfs(there)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    kept = int(total * (cache.free_space_ratio if cache.free_space_ratio is not None else free_ratio))
    usable = max(0, free - kept) + _taken(Path(path))
    wanted = (
        cache.size_bytes if cache.size_bytes is not None else int(total * cache.size_ratio) if cache.size_ratio else None
    )
    said = f"{format_size(free)} free of {format_size(total)}, of which {format_size(kept)} stay free"
    if found.f_files and found.f_favail < 1000:
        return fail("cache room", f"{path}: {found.f_favail} inodes are left", "remove files there, or choose another disk")
    if usable < 64 * MIB:
        return fail(
            "cache room", f"{path}: {said}", "free some, choose another with --cache-dir, or lower --free-space-ratio"
        )
    if usable < LITTLE_BYTES or (wanted is not None and usable < wanted):
        short = f"; the cache may have {format_size(wanted)}" if wanted is not None and usable < wanted else ""
        return warn(
            "cache room", f"{path}: {said}{short}", "free some, or give the cache a size that there is: --cache-size"
        )
    return ok("cache room", f"{path}: {said}")


def _taken(path: Path) -> int:
    """Return about how much a cache has already, which makes room for what comes."""
    taken, began = 0, time.perf_counter()
    for file in path.glob("*/objects/*/*"):
        with contextlib.suppress(OSError):
            taken += file.stat().st_blocks * 512
        if time.perf_counter() - began > PATIENCE_S:
            break  # so much is enough to tell that there is room
    return taken


def _check_speed(path: str, scratch: Path) -> Iterator[Finding]:
    """Write, sync and read. Raises OSError."""
    file = scratch / "sample"
    began, written = time.perf_counter(), 0
    with file.open("wb", buffering=0) as out:
        while written < SAMPLE_MIB * MIB and time.perf_counter() - began < PATIENCE_S:
            written += out.write(_SAMPLE)
            if written % (8 * MIB) == 0:
                os.fdatasync(out.fileno())
        os.fsync(out.fileno())
    write_rate = written / (time.perf_counter() - began)
    with file.open("rb", buffering=0) as back:
        os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, read = time.perf_counter(), 0
        while chunk := back.read(MIB):
            if chunk != _SAMPLE[: len(chunk)]:
                yield fail("cache speed", f"{path}: what was read is not what was written", "replace this disk")
                return
            read += len(chunk)
            if time.perf_counter() - began > PATIENCE_S:
                break
    read_rate = read / max(1e-9, time.perf_counter() - began)
    sync_s = _sync_time(scratch)
    rates = f"writes {format_size(write_rate)}/s with fsync, reads {format_size(read_rate)}/s"
    text = f"{path}: {rates}, a small file is safe in {1000 * sync_s:.1f} ms"
    state: State = "warn" if write_rate < SLOW_WRITE or read_rate < SLOW_READ or sync_s > SLOW_SYNC_S else "ok"
    advice = "choose a faster disk with --cache-dir, or look what else uses it (iostat -x 1)"
    yield Finding("cache speed", state, text, advice if state == "warn" else "")


def _sync_time(scratch: Path) -> float:
    """Return the median seconds that a small file takes to be safe, as it is written by most programs."""
    took, began = [], time.perf_counter()
    for number in range(SYNCS):
        start = time.perf_counter()
        with (scratch / str(number)).open("wb") as out:
            out.write(b"x" * 4096)
            out.flush()
            os.fsync(out.fileno())
        took.append(time.perf_counter() - start)
        if time.perf_counter() - began > PATIENCE_S:
            break
    return statistics.median(took)
