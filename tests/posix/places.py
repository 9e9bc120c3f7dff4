"""The places that the tests run on: a directory of a local file system, and mounts in both modes."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import fast_s3
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount, free

KINDS = ("ext4", "passthrough", "copying")
REMOUNTS = 3  # after so many hung tests the others would only take long


@dataclass(frozen=True)
class Place:
    """An empty directory of a test's own, that everybody may write to. Exists once the test runs, in its process."""

    kind: str
    path: Path

    @property
    def on_mount(self) -> bool:
        """Whether luxfuse serves it, and not the local file system."""
        return self.kind != "ext4"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


class Places:
    """Makes each place when it is asked for first; closes all. Never touches a mount: only tests' processes do."""

    def __init__(self) -> None:
        self._server: FastS3 | None = None
        self._mounts: dict[str, Mount] = {}
        self._logs_seen: dict[str, int] = {}
        self._missing: dict[str, str] = {}
        self._mounted = 0
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._serial = itertools.count()

    def fresh(self, kind: str, name: str) -> Place:
        """Return a place for one test. Skips where this machine cannot have it."""
        root = self._local_root() if kind == "ext4" else self._mount(kind).path
        return Place(kind, root / f"{next(self._serial)}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"[:60].rstrip("-"))

    def _local_root(self) -> Path:
        if self._local is None:
            if os.geteuid() != 0:
                pytest.skip("needs root, to become other users")
            self._local = tempfile.TemporaryDirectory(prefix="posix-")
            Path(self._local.name).chmod(0o755)
            if (found := _file_system(self._local.name)) != "ext4":
                pytest.skip(f"temporary files are on {found}, not ext4")
        return Path(self._local.name)

    def _mount(self, kind: str) -> Mount:
        mount = self._mounts.get(kind)
        if mount is not None and mount.mounted:
            return mount
        if kind in self._missing:
            pytest.skip(self._missing[kind])
        self._close(kind)
        if self._mounted >= len(KINDS) - 1 + REMOUNTS:
            pytest.fail("too many mounts were lost", pytrace=False)
        _skip_unless_mountable()
        bucket = f"bucket-{self._mounted}"
        self._mounted += 1
        (self._serving().root / bucket).mkdir(parents=True)
        made = self._mounts[kind] = Mount(
            f"s3://{bucket}", "--allow-other", endpoint_url=self._serving().endpoint,
            options={"passthrough": "false"} if kind == "copying" else None,
        )  # fmt: skip
        made.base.chmod(0o755)
        made.mount()
        if kind == "passthrough" and not made.status()["passthrough"]:
            self._missing[kind] = f"no passthrough here: {made.status()['passthrough_reason']}"
            self._close(kind)
            pytest.skip(self._missing[kind])
        return made

    def _serving(self) -> FastS3:
        if self._server is None:
            if reason := fast_s3.available():
                pytest.skip(reason)
            self._server = FastS3(buckets=())
            self._server.start()
        return self._server

    def new_log_lines(self, kind: str) -> list[str]:
        """Warnings and errors of the daemon that this has not returned before."""
        if kind not in self._mounts:
            return []
        lines = self._mounts[kind].unexpected_logs()
        seen = self._logs_seen.get(kind, 0)
        self._logs_seen[kind] = len(lines)
        return lines[seen:]

    def free(self, kind: str) -> None:
        """Let go whoever hangs in the mount; the next test gets another one."""
        if kind in self._mounts:
            free(str(self._mounts[kind].path))

    def _close(self, kind: str) -> None:
        mount = self._mounts.pop(kind, None)
        if mount is None:
            return
        # What the log said so far failed the test that was running.
        mount.expected_logs += [re.escape(line) for line in mount.unexpected_logs()[: self._logs_seen.pop(kind, 0)]]
        mount.close()

    def close(self) -> None:
        """Unmount, and remove everything."""
        try:
            for kind in KINDS:
                self._close(kind)
        finally:
            if self._server is not None:
                self._server.stop()
            if self._local is not None:
                self._local.cleanup()


def _file_system(path: str) -> str:
    """Return the type of the file system that holds the path."""
    best = ("", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mountpoint, kind, *_ = line.split(" ")
        if f"{os.path.realpath(path)}/".startswith(mountpoint.rstrip("/") + "/") and len(mountpoint) >= len(best[0]):
            best = mountpoint, kind
    return best[1]


def _skip_unless_mountable() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs a usable /dev/fuse")
