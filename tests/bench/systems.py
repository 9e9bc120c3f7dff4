"""The systems that are compared are used the same way; here what they share, and those that mount nothing.

A mounting system is started with an empty cache (`start`), used through `path`, and stopped, which removes its mount
and its cache; it is read-only unless started with a write mode. `Failed` from any of them becomes an "n/a" with its
reason in the table.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench import processes
from tests.bench.processes import Failed
from tests.support.fast_s3 import FastS3

MOUNT_TIMEOUT_S = 30.0
BUCKET = "bench"


def program(name: str) -> str:
    """The program beside this Python, or else on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Failed(f"{name} is not installed")
    return found


class System:
    """Where the bucket's tree can be read; `memory_bytes` is the highest peak over all starts."""

    name = ""
    mounts = False
    command = ""  # the program that it needs

    def __init__(self, server: FastS3, work: Path) -> None:
        self.server = server
        self.work = work / self.name
        self.memory_bytes = 0
        self.unusable: str | None = None

    @property
    def path(self) -> Path:
        raise NotImplementedError

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be measured on this machine."""
        try:
            if cls.command:
                program(cls.command)
        except Failed as error:
            return str(error)
        return None

    def prepare(self, names: set[str]) -> None:
        """Once, after the bucket was filled with ``names``: for a system with objects of its own."""

    def start(self, write_mode: str | None = None, *, passthrough: bool = True) -> None:
        pass

    def server_files(self, name: str) -> list[Path]:
        """The server's files that it reads for an object or a directory."""
        path = self.server.bucket_path(BUCKET) / name
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    def place(self, source: Path, name: str) -> None:
        """Puts an object into the bucket, while the system is started."""
        shutil.copyfile(source, self.server.bucket_path(BUCKET) / name)

    def stored(self, name: str) -> Path | None:
        """A file of the server that is whole once the object is stored; None: closing waits for that."""
        return self.server.bucket_path(BUCKET) / name

    def processes(self) -> list[int]:
        """The daemon and its descendants."""
        return []

    def load(self, path: Path, *, timeout_s: float) -> None:
        """Gets a file or directory into the cache."""
        raise NotImplementedError

    def settle(self, path: Path) -> None:
        """Waits until a file that was read is whole in the cache, where the system can tell."""

    def observe(self) -> None:
        """Notes the memory used so far."""

    def stop(self) -> None:
        pass


class Native(System):
    """The server's own directory on the local disk."""

    name = "native"

    @property
    def path(self) -> Path:
        return self.server.bucket_path(BUCKET)


class Raw(System):
    """obstore in threads; ``to`` is where it writes, or None."""

    name = "raw"
    to: Path | None = None

    def run(self, what: str, key: str, *, timeout_s: float, threads: int = 1) -> dict[str, float]:
        options = ["--threads", str(threads)]
        options += ["--to", str(self.to)] if self.to is not None else []
        return self._run([what, self.server.endpoint, BUCKET, key, *options], timeout_s)

    def upload(self, file: Path, key: str, *, timeout_s: float) -> dict[str, float]:
        return self._run(["upload", self.server.endpoint, BUCKET, key, "--file", str(file)], timeout_s)

    def _run(self, arguments: list[str], timeout_s: float) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.bench.raw", *arguments]
        root = Path(__file__).resolve().parents[2]
        result: dict[str, float] = json.loads(processes.run(command, timeout_s=timeout_s, cwd=root))
        return result


class RawToFile(Raw):
    name = "raw to file"

    def start(self, write_mode: str | None = None, *, passthrough: bool = True) -> None:
        self.stop()
        self.to = self.work
        self.work.mkdir(parents=True)

    def stop(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


class Mounted(System):
    """A FUSE file system with a disk cache."""

    mounts = True

    def __init__(self, server: FastS3, work: Path) -> None:
        super().__init__(server, work)
        self.write_mode: str | None = None
        self.passthrough = True
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.work / "mnt"

    @property
    def cache(self) -> Path:
        return self.work / "cache"

    @property
    def state(self) -> Path:
        return self.work / "state"

    @property
    def log(self) -> Path:
        return self.work / "log"

    def start(self, write_mode: str | None = None, *, passthrough: bool = True) -> None:
        self.stop()
        self.write_mode = write_mode
        self.passthrough = passthrough
        for directory in (self.path, self.cache, self.state):
            directory.mkdir(parents=True)
        self.mount()

    def mount(self) -> None:
        raise NotImplementedError

    def daemon_pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def run_foreground(self, command: list[str], env: dict[str, str] | None = None) -> None:
        """For programs that stay in the foreground: waits until the mount is there."""
        with self.log.open("wb") as log:
            self.process = process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        processes.wait_until(
            lambda: processes.is_mounted(self.path) or process.poll() is not None, MOUNT_TIMEOUT_S, f"{self.name} mount"
        )
        if process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise Failed(f"{self.name} ended: {lines[-1][:160]}")

    def observe(self) -> None:
        self.memory_bytes = max(self.memory_bytes, processes.peak_memory_bytes(self.processes()))

    def processes(self) -> list[int]:
        pid = self.daemon_pid()
        return [] if pid is None else processes.family(pid)

    def unmount(self) -> None:
        processes.free(self.path)

    def stop(self) -> None:
        if processes.is_mounted(self.path):
            self.observe()
            self.unmount()
        processes.free(self.path)
        if self.process is not None:
            processes.stop(self.process)
            self.process = None
        if not processes.is_mounted(self.path):
            shutil.rmtree(self.work, ignore_errors=True)
