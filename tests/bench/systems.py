"""The systems that are compared: one class each, all used the same way.

A mounting system is started with an empty cache (`start`), used through `path`, and stopped, which removes its mount
and its cache; it is read-only unless started with a write mode. `Failed` from any of them becomes an "n/a" with its
reason in the table.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench import processes
from tests.bench.processes import Failed
from tests.support.fast_s3 import FastS3

MOUNT_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 180.0  # what was written is uploaded before luxfuse unmounts
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

    def __init__(self, server: FastS3, work: Path) -> None:
        self.server = server
        self.work = work / self.name
        self.memory_bytes = 0
        self.unusable: str | None = None

    @property
    def path(self) -> Path:
        raise NotImplementedError

    def start(self, write_mode: str | None = None) -> None:
        pass

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

    def start(self, write_mode: str | None = None) -> None:
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

    def start(self, write_mode: str | None = None) -> None:
        self.stop()
        self.write_mode = write_mode
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
        pid = self.daemon_pid()
        if pid is not None:
            self.memory_bytes = max(self.memory_bytes, processes.peak_memory_bytes(pid))

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


class Rclone(Mounted):
    name = "rclone"

    def mount(self) -> None:
        env = {
            **os.environ, "RCLONE_CONFIG": str(self.state / "none.conf"), "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "Other", "RCLONE_CONFIG_BENCH_ENDPOINT": self.server.endpoint,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": self.server.access_key,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": self.server.secret_key,
        }  # fmt: skip
        command = [
            program("rclone"), "mount", f"bench:{BUCKET}", str(self.path), "--vfs-cache-mode", "full",
            "--cache-dir", str(self.cache), "--dir-cache-time", "1h", "--attr-timeout", "1h",
            "--vfs-fast-fingerprint", "--use-server-modtime",
        ]  # fmt: skip
        if self.write_mode is None:
            command.append("--read-only")
        elif self.write_mode == "cache-through":
            command += ["--vfs-write-back", "0s"]  # else it waits for 5 s after the close
        self.run_foreground(command, env)


class S3fs(Mounted):
    name = "s3fs"

    def mount(self) -> None:
        passwd = self.state / "passwd"
        passwd.touch(0o600)
        passwd.write_text(f"{self.server.access_key}:{self.server.secret_key}\n")
        options = (
            f"url={self.server.endpoint},use_path_request_style,use_cache={self.cache},passwd_file={passwd},"
            "stat_cache_expire=3600,max_stat_cache_size=200000"
        )
        if self.write_mode is None:
            options += ",ro"
        self.run_foreground([program("s3fs"), BUCKET, str(self.path), "-f", "-o", options])


class Luxfuse(Mounted):
    name = "luxfuse"

    def _env(self) -> dict[str, str]:
        return {**os.environ, "LUXFUSE_STATE_DIR": str(self.state)}

    def mount(self) -> None:
        command = [
            program("luxfuse"), "mount", f"s3://{BUCKET}", str(self.path), "--endpoint-url", self.server.endpoint,
            "--storage-option", f"key={self.server.access_key}", "--storage-option", f"secret={self.server.secret_key}",
            "--cache-dir", str(self.cache), "--metadata-ttl", "1h",
            *(["--read-only"] if self.write_mode is None else ["--write-mode", self.write_mode]),
        ]  # fmt: skip
        processes.run(command, timeout_s=MOUNT_TIMEOUT_S, env=self._env())
        if not processes.is_mounted(self.path):
            raise Failed("luxfuse mount returned, but nothing is mounted")

    def command(self, *arguments: str, timeout_s: float) -> str:
        return processes.run([program("luxfuse"), *arguments], timeout_s=timeout_s, env=self._env())

    def settle(self, path: Path) -> None:
        state = "import os, sys; print(os.getxattr(sys.argv[1], 'user.luxfuse.state').decode())"
        processes.wait_until(
            lambda: processes.run([sys.executable, "-I", "-S", "-c", state, str(path)], timeout_s=10) == "cached\n",
            MOUNT_TIMEOUT_S, "caching the whole file",
        )  # fmt: skip

    def daemon_pid(self) -> int | None:
        try:
            command = [program("luxfuse"), "status", str(self.path), "--json"]
            status = json.loads(processes.run(command, timeout_s=10, env=self._env()))
            if isinstance(status, list):
                status = status[0]
            return int(status["pid"])
        except (Failed, ValueError, KeyError, IndexError, TypeError):
            return None

    def unmount(self) -> None:
        try:
            processes.run([program("luxfuse"), "unmount", str(self.path)], timeout_s=DRAIN_TIMEOUT_S, env=self._env())
        except Failed:
            processes.free(self.path)


ALL: tuple[type[System], ...] = (Native, Raw, RawToFile, Rclone, S3fs, Luxfuse)
